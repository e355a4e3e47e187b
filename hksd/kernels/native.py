"""The kernels in C: compiled on first use into a folder of the user, and found there by every later process.

They are an optimisation: without a compiler, on another system, or with ``HKSD_KERNELS=0`` everything runs on torch's
own operations.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock

SWITCH = "HKSD_KERNELS"
HEADERS = (Path(__file__).with_name("conv.h"),)
SOURCES = tuple(
    Path(__file__).with_name(name) for name in ("norm.c", "stride.c", "energy.c", "conv_maps.c", "conv_filters.c")
)
# No -ffast-math: what is not a number must stay visible. Contraction into fused multiply-adds is the default.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-w")
COMPILER_SECONDS = 60
log = logging.getLogger(__name__)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had; the reason goes to the debug log."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        path = _compiled()
        try:
            return _declared(ctypes.CDLL(str(path)))
        except (OSError, AttributeError):  # damaged in the cache
            path.unlink(missing_ok=True)
            return _declared(ctypes.CDLL(str(_compiled())))
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        log.debug("kernels are not used: %s", error)
        return None


def _compiled() -> Path:
    """Path of the compiled library, made now if it is not there.

    Raises:
        OSError: it cannot be had on this machine.
        subprocess.SubprocessError: the compiler failed.
    """
    if sys.platform != "linux":
        raise OSError(f"they are for Linux, this is {sys.platform}")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise OSError("there is no C compiler")
    command = [compiler, *FLAGS]
    name = f"kernels-{_key(command)}.so"
    try:
        return _kept(_cache_folder() / name, command)
    except OSError as error:
        log.debug("%s; compiling for this process alone", error)
        return _once(name, command)


def _kept(path: Path, command: Sequence[str]) -> Path:
    """`path`, compiled by one process while others wait."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                _compile(command, path)
    return path


def _once(name: str, command: Sequence[str]) -> Path:
    """Compile into a folder that is left to the system to clear."""
    path = Path(tempfile.mkdtemp(prefix="hksd-")) / name
    _compile(command, path)
    return path


def _compile(command: Sequence[str], path: Path) -> None:
    """Compile and link against the OpenMP runtime that torch has loaded, so that both share one pool of threads."""
    runtime = _openmp()
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    link = ["-shared", "-nodefaultlibs", *map(str, SOURCES), "-o", str(fresh), str(runtime), "-lm", "-lc", "-lgcc"]
    try:
        subprocess.run([*command, *link], check=True, capture_output=True, timeout=COMPILER_SECONDS)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


@functools.cache
def _openmp() -> Path:
    """The GNU OpenMP runtime of torch.

    Raises:
        OSError: torch comes with another one.
    """
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    if not found:
        raise OSError("torch brings no GNU OpenMP runtime")
    return found[0]


def _key(command: Sequence[str]) -> str:
    """Hash of everything that the compiled code depends on."""
    version = subprocess.run([command[0], "--version"], check=True, capture_output=True, timeout=COMPILER_SECONDS)
    parts = [
        *(source.read_bytes() for source in (*SOURCES, *HEADERS)),
        " ".join(command).encode(),
        version.stdout,
        _processor(),
        str(_openmp()).encode(),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> bytes:
    """What tells processors apart for which -march=native gives other code."""
    wanted = ("vendor_id", "cpu family", "model\t", "flags", "Features", "CPU implementer", "CPU part")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    first = dict.fromkeys(line for line in lines if line.startswith(wanted))
    return "\n".join([platform.machine(), *first]).encode()


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hksd"


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the arguments of every function; the comments in C name them."""
    pointer, count, number, flag = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
    found.norm_forward.argtypes = [*[pointer] * 9, count, count, number, number, flag, flag]
    found.norm_backward.argtypes = [*[pointer] * 11, count, count, flag, flag]
    found.add_at_stride.argtypes = [pointer, pointer, *[count] * 5, flag, flag]
    found.energy_forward.argtypes = [pointer, pointer, count, count, flag, flag]
    found.energy_backward.argtypes = [pointer, pointer, pointer, count, count, flag, flag]
    for function in (found.add_at_stride, found.energy_forward, found.energy_backward):
        function.restype = None
    for function in (found.norm_forward, found.norm_backward):
        function.restype = flag
    if hasattr(found, "conv_forward"):  # the compiler knows the instructions of this processor
        for function in (found.conv_forward, found.conv_backward_maps, found.conv_backward_filters):
            function.argtypes = [pointer, pointer, pointer, *[count] * 6, flag]
            function.restype = flag
    return found
