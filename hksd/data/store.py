"""Decoded images on disk: decoded once, then mapped into memory by every process of the machine.

One file per content: a line of magic, a line with the SHA-256 of the rest, a line of JSON, and the arrays of both
splits. The key names all that decides the arrays, so a file is never updated: it is whole or it is made again, and
removing it costs one decoding. Test images are never in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hksd.cache import LockError, made_once
from hksd.data.dataset import AnySplit, DataSet, Split
from hksd.data.raw import FileState
from hksd.data.settings import DataConfig
from hksd.errors import DataError
from hksd.files import replaced

if TYPE_CHECKING:
    from typing_extensions import Buffer

FOLDER = "data"  # name of the store, below a folder of runs and beside the one of teachers
IMAGES = "images"
FORMAT = 3  # part of the key: raise it when the file changes, or what `hksd.data.load` makes of the same images
MAGIC = b"hksd images 1\n"
DIGEST_END = len(MAGIC) + 64
ALIGNMENT = 64  # bytes; every array starts at a multiple of it
# Fields of the `data` section that do not decide what the arrays hold.
ELSEWHERE = frozenset({"root", "download", "threads", "crop", "flip"})

log = logging.getLogger(__name__)
_verified: set[tuple[int, ...]] = set()  # files whose checksum this process has seen to be right


class _DamagedError(ValueError):
    """A file that is truncated, damaged or of another format."""


def beside(teachers: Path) -> Path:
    """The store that belongs to a folder of cached teachers."""
    return teachers.parent / FOLDER


def remember(
    store: Path, config: DataConfig, state: Callable[[], Iterable[FileState]], make: Callable[[], DataSet]
) -> DataSet:
    """Open the images that `config` names, or make and keep them; one process makes, others wait.

    A store that cannot be written is no fault of the run: the images then stay in memory, with a warning.

    Args:
        store: folder of all kept images.
        config: which images; none that are streamed.
        state: states of the files that `make` reads; without any, nothing is kept.
        make: decodes the images.

    Returns:
        Read-only arrays that all processes share; or what `make` gave.
    """
    key = key_of(config, state())
    if key is None:
        return make()
    file, lock = store / key / IMAGES, store / key / ".lock"
    try:
        return _open(file)
    except (OSError, _DamagedError):
        pass  # judged again with the lock, when nobody is about to replace it
    missing = _missing(file.parent)

    def decode() -> DataSet:
        try:
            made = make()
            # Files that changed meanwhile may have been read half before and half after.
            unchanged = key_of(config, state()) == key
        except DataError:
            _leave_no_trace(lock, missing)
            raise
        return (_recall(file) or made) if unchanged and _keep(file, made) else made

    try:
        return made_once(lock, lambda: _recall(file), decode)[0]
    except LockError as error:
        _warn(file.parent, error)
        return make()


def key_of(config: DataConfig, states: Iterable[FileState]) -> str | None:
    """Hash of all that decides the arrays (16 hexadecimal digits); None without files to tell them by."""
    told = {name: value for name, value in dataclasses.asdict(config).items() if name not in ELSEWHERE}
    if told["classes"] is None:
        del told["classes"]  # keys are older than this field
    # Pillow decodes and resizes, numpy draws splits and artefacts.
    digest = hashlib.sha256(json.dumps([FORMAT, version("pillow"), np.__version__, told], sort_keys=True).encode())
    found = list(states)
    for name, size, changed in found:
        digest.update(os.fsencode(name) + f"\0{size} {changed}\n".encode())
    return digest.hexdigest()[:16] if found else None


def _missing(folder: Path) -> list[Path]:
    """Those of a folder and its parents that are not there, from the inside out."""
    with suppress(OSError):  # what may not be looked at is not ours to remove
        return [path for path in (folder, *folder.parents) if not path.exists()]
    return []


def _leave_no_trace(lock: Path, folders: Sequence[Path]) -> None:
    """Remove what was made for a set of images that there is nothing to keep of."""
    with suppress(OSError):
        lock.unlink()
        for folder in folders:
            folder.rmdir()


def _warn(folder: Path, error: OSError) -> None:
    log.warning(
        "%s: decoded images cannot be kept (%s); they stay in memory, and the next run decodes again",
        folder,
        error.strerror or error,
    )


def _recall(file: Path) -> DataSet | None:
    try:
        return _open(file)
    except FileNotFoundError:
        return None
    except (OSError, _DamagedError) as error:
        log.warning("%s: kept images cannot be used (%s) and are decoded again", file, error)
        return None


def _keep(file: Path, data: DataSet) -> bool:
    """Write the file beside its place and move it there; False, with a warning, where that cannot be."""
    try:
        for left in file.parent.glob(f".{file.name}.*.tmp"):  # by a process that was killed: only we have the lock
            left.unlink()
        with replaced(file) as opened:
            _write(opened, data)
    except OSError as error:
        _warn(file.parent, error)
        return False
    return True


def _write(opened: BinaryIO, data: DataSet) -> None:
    arrays = [array for split in (data.train, data.validation) for array in _arrays(split)]
    facts = {
        "name": data.name,
        "classes": data.classes,
        "mean": data.mean,
        "std": data.std,
        "fingerprint": data.fingerprint,
        "notes": data.notes,
        "arrays": [[array.dtype.str, array.shape] for array in arrays],
    }
    text = json.dumps(facts).encode()
    text = text.ljust(_aligned(DIGEST_END + 1 + len(text) + 1) - DIGEST_END - 2) + b"\n"
    gaps = (bytes(_aligned(array.nbytes) - array.nbytes) for array in arrays)
    parts: Iterator[Buffer] = chain([b"\n", text], *zip((array.data for array in arrays), gaps, strict=True))
    digest = hashlib.sha256()
    opened.write(MAGIC + b"0" * 64)
    for part in parts:
        opened.write(part)
        digest.update(part)
    opened.seek(len(MAGIC))
    opened.write(digest.hexdigest().encode())


def _arrays(split: AnySplit) -> list[NDArray[Any]]:
    assert isinstance(split, Split), "streamed images are not kept"
    return [np.ascontiguousarray(array) for array in (split.images, split.labels, split.index)]


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT


def _open(file: Path) -> DataSet:
    """Map a file into memory.

    Raises:
        OSError: it is not there or cannot be read.
        _DamagedError: it is not whole.
    """
    with file.open("rb") as opened:
        status = os.fstat(opened.fileno())
        if status.st_size <= DIGEST_END:
            raise _DamagedError("truncated")
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    _verify(mapped, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    end = mapped.find(b"\n", DIGEST_END + 1)
    facts = json.loads(mapped[DIGEST_END:end])
    arrays, at = [], end + 1
    for kind, shape in facts.pop("arrays"):
        array = np.frombuffer(mapped, kind, math.prod(shape), at).reshape(shape)
        arrays.append(array)
        at += _aligned(array.nbytes)
    facts = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
    return DataSet(train=Split(*arrays[:3]), validation=Split(*arrays[3:]), **facts)


def _verify(mapped: mmap.mmap, state: tuple[int, ...]) -> None:
    """Check the sum, once for each state of a file."""
    if state in _verified:
        return
    if mapped[: len(MAGIC)] != MAGIC:
        raise _DamagedError("of another format")
    with memoryview(mapped) as whole, whole[DIGEST_END:] as rest:
        digest = hashlib.sha256(rest).hexdigest().encode()
    if digest != mapped[len(MAGIC) : DIGEST_END]:
        raise _DamagedError("truncated or damaged")
    _verified.add(state)
