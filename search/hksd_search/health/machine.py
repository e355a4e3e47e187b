"""Checks of this machine."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from hksd.errors import UserError
from hksd_search.health.finding import Finding, attempt

LEAST_DISK_GB = 1.0
ONE_WRITER = "only the search itself writes there, no other node"


def check_machine(runs: Path, tracking_uri: str | None, cluster: bool) -> list[Finding]:
    """Check this machine: Python, packages, devices, storage, Ray, MLflow.

    Args:
        runs: folder of all searches.
        tracking_uri: MLflow store; None takes that of the environment, else the one below `runs`.
        cluster: searches run on the Ray of a cluster, so that none of its own need start here.
    """
    return [
        attempt("python", python),
        attempt("torch", torch_works),
        attempt("torchvision", torchvision),
        attempt("devices", devices),
        attempt("storage", lambda: storage(runs)),
        *([] if cluster else [attempt("ray", private_ray)]),
        attempt("mlflow", lambda: mlflow(runs, tracking_uri) + (f"; {ONE_WRITER}" if cluster else "")),
    ]


def python() -> str:
    """Which Python this is."""
    return f"{platform.python_version()} at {sys.executable}"


def torch_works() -> str:
    """Torch is there and computes."""
    import torch

    product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product[0, 0] == 2
    return f"{torch.__version__}, {len(os.sched_getaffinity(0))} core(s)"


def torchvision() -> str:
    """The parts of torchvision that are used can be imported."""
    from hksd.torchvision_guard import import_datasets

    import_datasets()
    import torchvision

    return str(torchvision.__version__)


def devices() -> str:
    """The GPUs that torch sees."""
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names) or "CPU only"


def storage(runs: Path) -> str:
    """The folder of all searches can be written, and has room."""
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


def mlflow(runs: Path, uri: str | None) -> str:
    """The MLflow store that a new search would take can be used."""
    from hksd_search.tracking import access, examine

    store = access.store_uri(uri or os.environ.get(access.VARIABLE), runs)
    if trouble := examine.examine(store):
        raise UserError(examine.say(store, trouble))
    return access.check(store)


def private_ray() -> str:
    """A Ray of our own starts here."""
    from hksd_search.backend import connect

    connect.prepare(None)
    import ray

    connect.start_ray()
    try:
        have = ray.cluster_resources()
        return f"{ray.__version__} starts here, {have.get('CPU', 0):g} CPU(s), {have.get('GPU', 0):g} GPU(s)"
    finally:
        connect.stop_ray()
