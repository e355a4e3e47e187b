"""Where a result comes from: versions, hardware, commit."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from hksd.kernels import native

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
