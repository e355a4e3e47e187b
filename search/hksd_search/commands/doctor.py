"""`hksd doctor`: check that this machine, or every node of a cluster, can run searches."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hksd.errors import UserError
from hksd_search.commands.options import DEFAULT_RUNS, FAILED, Json, Runs, install_line, text
from hksd_search.commands.output import Output

EXAMPLE = "`hksd doctor`"
LEAST_DISK_GB = 1.0


def doctor(
    runs: Runs = DEFAULT_RUNS,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            parser=text,
            metavar="URI",
            help="MLflow store to check; default $MLFLOW_TRACKING_URI, else SQLite in --runs.",
        ),
    ] = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="Also check every node of a Ray cluster.")] = False,
    address: Annotated[
        str | None, typer.Option(parser=text, metavar="TEXT", help="Ray cluster for --cluster; default auto.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that this machine (or every node of a cluster) can run searches."""
    output = Output(as_json)
    if address is not None and not cluster:
        raise UserError("--address is for the check of a cluster; add --cluster, or leave it out")
    findings = check_machine(runs, tracking_uri)
    if cluster:
        findings += check_cluster(address or "auto")
    good = all(finding.ok for finding in findings)

    def show(console: Console) -> None:
        for finding in findings:
            console.print(
                f"{'ok  ' if finding.ok else 'FAIL'} {finding.name}: {finding.detail}", highlight=False, markup=False
            )

    output.give({"ok": good, "checks": [finding.__dict__ for finding in findings]}, show)
    if not good:
        raise typer.Exit(FAILED)


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    name: str
    ok: bool
    detail: str


def _try(name: str, check: Callable[[], str]) -> Finding:
    """Run a check; whatever it raises is its finding."""
    try:
        return Finding(name, True, check())
    except Exception as error:  # a check exists to catch anything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Finding(name, False, install_line(error) or first)


def check_machine(runs: Path, tracking_uri: str | None) -> list[Finding]:
    """Check this machine: Python, packages, devices, Ray, storage, MLflow."""
    return [
        _try("python", _python),
        _try("torch", _torch),
        _try("torchvision", _torchvision),
        _try("devices", _devices),
        _try("storage", lambda: _storage(runs)),
        _try("ray", _ray),
        _try("mlflow", lambda: _mlflow(runs, tracking_uri)),
    ]


def _python() -> str:
    return f"{platform.python_version()} at {sys.executable}"


def _torch() -> str:
    import torch

    product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product[0, 0] == 2
    return f"{torch.__version__}, {len(os.sched_getaffinity(0))} core(s)"


def _torchvision() -> str:
    from hksd.torchvision_guard import import_datasets

    import_datasets()
    import torchvision

    return str(torchvision.__version__)


def _devices() -> str:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) or "CPU only"


def _storage(runs: Path) -> str:
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=runs) as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{runs} cannot be written: {error.strerror}") from error
    free = shutil.disk_usage(runs).free / 1e9
    if free < LEAST_DISK_GB:
        raise UserError(f"{runs} has only {free:.2f} GB free")
    return f"{runs} is writable, {free:.0f} GB free"


def _mlflow(runs: Path, uri: str | None) -> str:
    from hksd_search.tracking import access

    return access.check(access.store_uri(uri or os.environ.get(access.VARIABLE), runs))


def _ray() -> str:
    from hksd_search.backend import connect

    connect.prepare(None)
    import ray

    connect.start_ray()
    try:
        have = ray.cluster_resources()
        return f"{ray.__version__} starts here, {have.get('CPU', 0):g} CPU(s), {have.get('GPU', 0):g} GPU(s)"
    finally:
        connect.stop_ray()


def check_cluster(address: str) -> list[Finding]:
    """Run a check on every node of the cluster at `address`."""
    from hksd_search.backend import connect

    connect.prepare(address)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    try:
        connect.start_ray(address)
    except UserError as error:
        return [Finding("cluster", False, str(error))]
    try:
        task = ray.remote(num_cpus=0)(_node)
        findings = []
        for node in ray.nodes():
            name = f"node {node['NodeManagerAddress']}"
            if not node["Alive"]:
                findings.append(Finding(name, False, "dead"))
                continue
            place = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            findings.append(
                _try(
                    name,
                    lambda p=place: str(
                        ray.get(  # type: ignore[misc]
                            task.options(scheduling_strategy=p).remote(platform.python_version()), timeout=120
                        )
                    ),
                )
            )
        return findings
    finally:
        connect.stop_ray()


def _node(driver_python: str) -> str:
    """What one node says of itself."""
    import torch

    from hksd import __version__

    details: dict[str, Any] = {
        "hksd": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpus": torch.cuda.device_count(),
    }
    if details["python"].split(".")[:2] != driver_python.split(".")[:2]:
        raise UserError(f"Python {details['python']} here, {driver_python} at the driver: Ray needs the same")
    return ", ".join(f"{key} {value}" for key, value in details.items())
