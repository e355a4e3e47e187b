"""What is expensive to make is made once, by one process, and found by all others."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

CHUNK = 1 << 20  # bytes that are read at a time
T = TypeVar("T")


class LockError(OSError):
    """A lock cannot be had: its folder cannot be written, or the file system has no locks."""


def made_once(lock: Path, recall: Callable[[], T | None], make: Callable[[], T]) -> tuple[T, bool]:
    """Recall a value or make it; of all processes that ask under one lock, one makes it while the others wait.

    Args:
        lock: file of the lock; its folder is made.
        recall: reads what is kept; None where there is nothing, or nothing whole.
        make: makes the value and keeps it.

    Returns:
        The value, and whether it was recalled.

    Raises:
        LockError: there can be no lock here; neither function was called.
    """
    held = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        number, reason = getattr(error, "errno", None), getattr(error, "strerror", None)
        raise LockError(number or errno.ENOLCK, reason or str(error), str(lock)) from error
    try:
        found = recall()
        return (make(), False) if found is None else (found, True)
    finally:
        held.release()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file (64 hexadecimal digits).

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            digest.update(part)
    return digest.hexdigest()
