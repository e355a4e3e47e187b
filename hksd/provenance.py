"""Where a result comes from: configuration, data, seeds; versions, hardware and commit of each session that made it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from hksd.config.run import RunConfig, config_hash
from hksd.data import DataSet
from hksd.files import write_atomically
from hksd.kernels import native

FILE = "provenance.json"
PACKAGES = ("hksd", "torch", "torchvision", "numpy", "ray", "optuna", "mlflow", "onnxruntime")


@functools.cache
def provenance() -> dict[str, Any]:
    """Versions of the packages that matter, hardware, and the git commit with its dirty flag (None outside git)."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "hardware": hardware(), "git": _git()}


def describe_data(data: DataSet) -> dict[str, Any]:
    """Name, fingerprint and splits of a data set; the index says which images of the source a split holds."""
    splits = {"train": data.train, "validation": data.validation}
    return {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "splits": {
            name: {"images": len(split), "index_sha256": hashlib.sha256(split.index.tobytes()).hexdigest()}
            for name, split in splits.items()
        },
    }


def describe_run(config: RunConfig, data: DataSet) -> dict[str, Any]:
    """What a run is made of."""
    teacher = config.teacher.seed if config.teacher and config.terms.teacher_needs else None
    return {
        "config_hash": config_hash(config),
        "data": describe_data(data),
        "seeds": {"run": config.seed, "data": config.data.seed, "teacher": teacher},
    }


def note(folder: Path, facts: Mapping[str, Any], session: Mapping[str, Any]) -> None:
    """Write `folder`/provenance.json when a session begins: what is made, and one entry for each session at it.

    Args:
        folder: folder of a run or a search.
        facts: what is made; replaces what stands there.
        session: facts of its own of the one that begins; versions, hardware and commit are added.

    Raises:
        OSError: it cannot be written.
    """
    path, started = folder / FILE, datetime.now(timezone.utc).isoformat(timespec="seconds")
    sessions = [*_sessions(path), {"started": started, **session, **provenance()}]
    write_atomically(path, json.dumps({**facts, "sessions": sessions}, indent=1).encode())


def _sessions(path: Path) -> list[Any]:
    """The sessions so far; none where the file is missing or damaged."""
    try:
        return list(json.loads(path.read_text())["sessions"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def hardware() -> dict[str, Any]:
    """Processor, usable cores and GPUs of this machine, and whether it runs our kernels."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": gpus,
        "kernels": native.library() is not None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor() -> str:
    """Name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git() -> dict[str, Any] | None:
    def ask(*words: str) -> str:
        folder = Path(__file__).resolve().parent
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None
