"""Files: written so that a reader, or a machine that goes down, never finds half of one; found where users say."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hksd.errors import UserError

# What systems say whose folders cannot be opened or synchronised: they keep names in their own way.
NO_SYNC = frozenset({errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


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


def expanded(path: str, key: str) -> Path:
    """The path that a configuration gives under `key`, with ``~`` and ``~user`` as the home folders they stand for.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = Path(path).parts[0].removeprefix("~")
        raise UserError(
            f"{key}: {path}: "
            + (f"there is no user '{user}' on this machine" if user else "this user has no home folder")
            + "; write the path in full"
        ) from error


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
