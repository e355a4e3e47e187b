"""Files: written so that a reader, or a machine that goes down, never finds half of one; found where users say."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hksd.bounds import NAME_LENGTH, PATH_LENGTH
from hksd.errors import UserError

SHOWN = 100  # characters of a path that a message about its form repeats

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # what systems say when there is no room for a file

# What systems say whose folders cannot be opened or synchronised: they keep names in their own way.
NO_SYNC = frozenset({errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


def expanded(path: str | Path, key: str) -> Path:
    """A path as the user wrote it, with ``~`` and ``~user`` put in full.

    Args:
        path: what was written.
        key: key path or option that it stands at, for messages.

    Raises:
        UserError: no path can be so: empty, of an unknown user, too long, or with a NUL inside.
    """
    text = str(path)
    shown = text if len(text) <= SHOWN else text[:SHOWN] + "..."
    if not text.strip():
        raise UserError(f"{key}: an empty path; write . for the folder that you are in")
    if "\0" in text:
        raise UserError(f"{key}: {shown!r} has a NUL inside, which no path can")
    try:
        found = Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}: {shown}: there is no user of that name here, so no home folder") from error
    longest = max(len(os.fsencode(part)) for part in (*found.parts, ""))
    if longest > NAME_LENGTH or len(os.fsencode(found)) > PATH_LENGTH:
        raise UserError(
            f"{key}: {shown}: too long: names have at most {NAME_LENGTH} bytes, and paths {PATH_LENGTH} in all"
        )
    return found


@contextmanager
def replaced(path: Path, previous: Path | None = None) -> Iterator[BinaryIO]:
    """Give a file to write into that takes the place of `path` at the end; not after an exception inside.

    A crash leaves either the old content or the new, never a part; what else it leaves is named ``.NAME.PID.tmp``.

    Args:
        path: the file; its folder is made.
        previous: where the old content goes, if there is any. A crash may leave it there and nothing at `path`.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or the new name may reach the disk before the content
        if previous is not None:
            with suppress(FileNotFoundError):
                path.replace(previous)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)  # or a machine that goes down now may come back with the old content


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves either the old content or the new, never a part.

    Raises:
        OSError: it cannot be written.
    """
    with replaced(path) as file:
        file.write(content)


def _sync(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    try:
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
