"""What a machine says of itself. Runs on nodes where hksd may be missing or old: it is sent there whole.

So nothing of it may need more than Python and Ray, but for what it finds out.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from hksd_search.backend.shared_folder import Mark, fault

PACKAGES = ("torch", "hksd", "hksd_search.backend.trial")  # in that order; the last one is what trains a trial
OURS = ("hksd", "hksd_search")
DATA = "spaces"  # below hksd_search where that is installed, elsewhere in the repository
TEMPORARY = "/tmp"  # where Ray keeps its objects that do not fit into memory, and its logs
VISIBLE = "CUDA_VISIBLE_DEVICES"


def clock() -> float:
    """Seconds since 1970."""
    return time.time()


def look(mark: Mark) -> dict[str, Any]:
    """What a node says of itself; for a process of its own, since it imports what it asks about.

    Args:
        mark: of the driver in the folder of all searches.
    """
    see_as_raylet()
    why = fault(mark)
    folders = [TEMPORARY, *([] if why else [str(Path(mark.path).parent)])]
    return {
        "host": socket.gethostname(),
        **software(),
        "gpus": gpus(),
        "shared": why,
        "free": {folder: shutil.disk_usage(folder).free for folder in folders},
    }


def software() -> dict[str, Any]:
    """Versions, the digest of our own files, and what cannot be imported, by name."""
    import ray

    versions, faults = {"python": platform.python_version(), "ray": ray.__version__}, {}
    for name in PACKAGES:
        try:
            versions[name] = str(getattr(import_module(name), "__version__", ""))
        except BaseException as error:  # whatever a package does
            faults[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            break
    return {"versions": versions, "faults": faults, "source": None if faults else source()}


def source() -> str:
    """A digest of the code of hksd that is imported here."""
    digest = hashlib.sha256()
    for package in OURS:
        root = Path(sys.modules[package].__path__[0])
        for file in sorted(root.rglob("*")):
            place = file.relative_to(root)
            if file.suffix in (".py", ".c", ".h") and place.parts[0] != DATA:
                digest.update(f"{package}/{place.as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def see_as_raylet() -> None:
    """See the GPUs that the node was started with: Ray hides them from work that asks for none."""
    with suppress(OSError):
        for line in Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0"):
            if line.startswith(f"{VISIBLE}=".encode()):
                os.environ[VISIBLE] = line.decode().partition("=")[2]
                return
        os.environ.pop(VISIBLE, None)


def gpus() -> list[tuple[str, int]]:
    """Name and bytes of memory of each GPU that torch sees."""
    if (torch := sys.modules.get("torch")) is None:
        return []
    found = [torch.cuda.get_device_properties(place) for place in range(torch.cuda.device_count())]
    return [(str(one.name), int(one.total_memory)) for one in found]
