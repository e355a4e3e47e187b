"""The files that bring up a cluster, put together from parts that stand beside this module.

Each kind of cluster has a part of its own; what `ray up` does with nodes is the same for all that it knows, and stands
once, in ray_up.yaml. `@NAME@` in a part is a place to fill.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hksd
from hksd.errors import UserError

PARTS = Path(__file__).parent
RAY = "2.60.0"  # to the dot: nodes and the operator's own machine must agree; inside the range of pyproject.toml
UBUNTU_PYTHON = "3.12.3"  # python3 of Ubuntu 24.04, which the images for clouds are made of
PLACE = re.compile(r"@([A-Z_]+)@")
LABEL = re.compile(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?")  # of Kubernetes; a RayJob's is at most 47 long
HOME_SOURCE = "~/hksd-source"  # where nodes find the code
CODE = ("pyproject.toml", "hksd", "search", "spaces")  # of a checkout, what pip needs
SCRIPTS = "search/hksd_search/cluster"  # the same in a checkout
GPU_CHECK = """python -c 'import torch; assert torch.cuda.is_available(), "no usable GPU on this worker"'"""

GPU_CHECK_WHY = (
    "  # A worker whose driver does not work fails here, instead of training on its CPU at the price of a GPU.\n"
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user says of his cluster; what is None or empty is left to the variant.

    Attributes:
        head, workers: addresses of machines of one's own.
        user, key: how they are reached over SSH; None for the key that ssh takes by itself.
        name: of the cluster or job, and of the search that a job runs.
        space: what a job searches.
        image: id of the machine image, or the name of the container image.
        max_workers: the most workers at a time.
        python: version of Python on all nodes, to the dot.
        venv, shared: paths on the nodes: of the Python environment, and of the folder of all runs, which all see.
        project: of Google's cloud.
        source: the project's folder, or a wheel.
    """

    head: str | None = None
    workers: Sequence[str] = ()
    user: str | None = None
    key: Path | None = None
    name: str | None = None
    space: str | None = None
    image: str | None = None
    max_workers: int | None = None
    python: str | None = None
    venv: str | None = None
    shared: str | None = None
    project: str | None = None
    source: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A kind of cluster.

    Attributes:
        about: what it is, in a few words.
        takes: the fields of `Asked` that mean something to it.
        needs: those of them that it cannot do without.
        parts: its files, in their order.
        defaults: what is taken where nothing is said.
        next_step: what to do with the file.
    """

    about: str
    takes: Sequence[str]
    needs: Sequence[str] = ()
    parts: Sequence[str]
    defaults: Mapping[str, object] = field(default_factory=dict)
    next_step: str


VARIANTS = {
    "aws": Variant(
        about="machines of AWS, by `ray up`",
        takes=("image", "max_workers", "python", "source"),
        parts=("aws.yaml", "ray_up.yaml"),
        defaults={"image": "ami-REPLACE-ME", "max_workers": 4, "python": UBUNTU_PYTHON},
        next_step="ray up FILE",
    ),
    "local": Variant(
        about="machines of your own, by `ray up` over SSH",
        takes=("head", "workers", "user", "key", "name", "python", "venv", "shared", "source"),
        needs=("head", "workers", "user"),
        parts=("local.yaml", "ray_up.yaml"),
        defaults={"name": "hksd"},
        next_step="ray up FILE",
    ),
    "slurm": Variant(
        about="a search as a job of Slurm",
        takes=("name", "space", "max_workers", "venv", "shared"),
        parts=("slurm.sh",),
        defaults={"name": "quickstart", "space": "quickstart", "max_workers": 2},
        next_step="sbatch FILE",
    ),
    "kuberay": Variant(
        about="a search as a RayJob on Kubernetes",
        takes=("image", "name", "space", "max_workers"),
        needs=("image",),
        parts=("kuberay.yaml",),
        defaults={"name": "quickstart", "space": "quickstart", "max_workers": 4},
        next_step="kubectl apply -f FILE",
    ),
    "gcp": Variant(
        about="machines of Google Cloud, by `ray up`",
        takes=("project", "image", "max_workers", "python", "source"),
        needs=("project",),
        parts=("gcp.yaml", "ray_up.yaml"),
        defaults={"image": "image-REPLACE-ME", "max_workers": 4, "python": UBUNTU_PYTHON},
        next_step="ray up FILE",
    ),
}


def compose(variant: str, asked: Asked, here: Path, own_python: str) -> str:
    """The text of the file for a kind of cluster.

    Args:
        variant: one of `VARIANTS`.
        asked: what the user says of it.
        here: the folder that `ray up` is called in, which paths of the file are relative to.
        own_python: version of Python that is taken where neither user nor variant say one.

    Raises:
        UserError: an option is missing or means nothing to this variant, or there is no source.
    """
    kind = VARIANTS[variant]
    said = {name: value for name, value in vars(asked).items() if value}
    if odd := [name for name in said if name not in kind.takes]:
        takes = ", ".join(map(_option, kind.takes))
        raise UserError(f"{_option(odd[0])} means nothing to {variant}, which takes {takes}")
    if missing := [name for name in kind.needs if name not in said]:
        raise UserError(f"{variant} needs {', '.join(map(_option, missing))}")
    if variant == "kuberay" and not LABEL.fullmatch(asked.name or "a"):
        raise UserError("--name: Kubernetes takes at most 47 small letters, digits and '-', a letter first")
    told = {"python": own_python, "shared": "~/runs", "venv": "~/venv", **kind.defaults, **said}
    values = {name.upper(): str(value) for name, value in told.items()} | {"HKSD": hksd.__version__, "RAY": RAY}
    if "ray_up.yaml" in kind.parts:
        values |= _ray_up(variant, told, here)
    text = "".join((PARTS / part).read_text(encoding="utf-8") for part in kind.parts)
    filled = PLACE.sub(lambda place: values[place[1]], text)
    return "".join(line.rstrip() + "\n" for line in filled.splitlines())


def _option(name: str) -> str:
    return "--" + {"workers": "worker"}.get(name, name).replace("_", "-")


def _ray_up(variant: str, told: Mapping[str, object], here: Path) -> dict[str, str]:
    """What the part that all variants of `ray up` share is filled with."""
    code, scripts = _code(told.get("source"), here)
    settings = "".join(
        f"HKSD_{name.upper()}={told[field]} "
        for name, field, default in (("venv", "venv", "~/venv"), ("runs", "shared", "~/runs"))
        if told[field] != default
    )
    check = f"{told['venv']}/bin/{GPU_CHECK}"
    values = {
        "SOURCE": "\n".join(f"  {HOME_SOURCE}/{remote}: {local}" for remote, local in code.items()),
        "SCRIPTS": scripts,
        "SETTINGS": settings,
        "HEAD_SETUP": "",
        "HEAD_ENVIRONMENT": "",
        "HEAD_OPTIONS": "",
        "MLFLOW_SETTINGS": "",
        "WORKER_CHECK": f"{GPU_CHECK_WHY}  - {check}\n",
    }
    if variant == "gcp":  # the autoscaler starts machines with it
        values["HEAD_SETUP"] = f"  - {told['venv']}/bin/pip install -q 'google-api-python-client>=2,<3'\n"
    if variant == "local":
        values |= _own_machines(told) | {"WORKER_CHECK": f"{GPU_CHECK_WHY}  - test ! -e /dev/nvidiactl || {check}\n"}
    return values


def _own_machines(told: Mapping[str, object]) -> dict[str, str]:
    """For `ray up` on machines of one's own, with what its version 2.60 gets wrong there worked around."""
    workers = [str(one) for one in told["workers"]]  # type: ignore[attr-defined]
    key = told.get("key")
    ssh = f"ssh -i {key}" if key else "ssh"
    return {
        "WORKERS": ", ".join(workers),
        "COUNT": str(len(workers)),
        "KEY": f"  ssh_private_key: {key}\n\n" if key else "\n",
        "STOP": f"for host in {' '.join([*workers, str(told['head'])])}; do {ssh} {told['user']}@$host "
        "bash hksd-cluster/stop_node.sh; done",
        # The autoscaler that is the default now takes the head for one of the workers, and one worker never starts.
        "HEAD_ENVIRONMENT": "RAY_enable_autoscaler_v2=0 ",
        "HEAD_OPTIONS": f"--node-ip-address={told['head']} --num-cpus=0 --num-gpus=0 ",
        "MLFLOW_SETTINGS": f"HKSD_MLFLOW_HOST={told['head']} ",
    }


def _code(source: object, here: Path) -> tuple[dict[str, str], str]:
    """What is copied to the nodes: the code, by its name there, and the folder of the scripts.

    Raises:
        UserError: there is nothing that pip could install on a node.
    """
    checkout = PARTS.parents[2]
    place = checkout if source is None else Path(str(source))
    if place.suffix == ".whl" and place.is_file():
        return {place.name: _from(place, here)}, _from(PARTS, here)
    if missing := [name for name in CODE if not (place / name).exists()]:
        what = "this hksd was not started from its own folder" if source is None else f"{place} has no {missing[0]}"
        raise UserError(f"--source: {what}; give the project's folder, or a wheel (hksd-{hksd.__version__}-*.whl)")
    return {name: _from(place / name, here) for name in CODE}, _from(place / SCRIPTS, here)


def _from(path: Path, here: Path) -> str:
    """A path as it is written for somebody in `here`: relative where it lies below, else absolute."""
    path = path.resolve()
    return f"./{path.relative_to(here.resolve())}" if path.is_relative_to(here.resolve()) else str(path)
