"""Whether a folder is one and the same on several machines: one of them leaves a mark in it, the others look for it.

`fault` runs on machines where hksd may be missing or old, so it needs nothing but Python.
"""

from __future__ import annotations

import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hksd.errors import UserError

NAME = ".hksd-shared-"  # of a mark; random digits follow
SECONDS = 10.0  # a network file system may show another machine's new file after seconds only
PAUSE_S = 0.25  # between two looks


@dataclass(frozen=True)
class Mark:
    """A file that one machine has left in a folder.

    Attributes:
        path: of the file, from the root.
        text: what it holds, which nobody can guess.
    """

    path: str
    text: str


def mark(runs: Path) -> Mark:
    """Leave a mark in a folder, which is made; `unmark` removes it.

    Raises:
        UserError: the folder cannot be written.
    """
    path = runs.resolve() / f"{NAME}{secrets.token_hex(8)}"
    made = Mark(str(path), secrets.token_hex(16))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made.text)
    except OSError as error:
        raise UserError(f"{runs}: cannot be written: {error.strerror or error}") from error
    return made


def fault(mark: Mark, write: bool = True, seconds: float = SECONDS) -> str | None:
    """What keeps this machine from sharing the folder of a mark, in words; None where it is the same folder.

    Args:
        mark: of the other machine.
        write: also leave an answer there, which `answered` finds; `unmark` removes it.
        seconds: to wait for the mark, or for its text.
    """
    path, here = Path(mark.path), socket.gethostname()
    until = time.monotonic() + seconds
    while True:
        try:
            with suppress(StopIteration):
                next(path.parent.iterdir())  # opening the folder has NFS ask its server anew
            if path.read_text() == mark.text:
                break
            why = f"{path.parent} on {here} has another text in {path.name}"
        except FileNotFoundError:
            there = path.parent.is_dir()
            why = f"{path.parent} on {here} is another folder" if there else f"there is no {path.parent} on {here}"
        except OSError as error:
            why = f"{path.parent} cannot be read on {here}: {error.strerror or error}"
        if time.monotonic() >= until:
            return why
        time.sleep(PAUSE_S)
    if write:
        try:
            path.with_name(f"{path.name}.{secrets.token_hex(8)}").write_text(mark.text)
        except OSError as error:
            return f"{path.parent} cannot be written on {here}: {error.strerror or error}"
    return None


def answered(mark: Mark, seconds: float = SECONDS) -> bool:
    """Whether this machine sees the answer of another one to a mark, within some seconds."""
    path = Path(mark.path)
    until = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            if any(answer.read_text() == mark.text for answer in path.parent.glob(f"{path.name}.*")):
                return True
        if time.monotonic() >= until:
            return False
        time.sleep(PAUSE_S)


def unmark(mark: Mark) -> None:
    """Remove a mark and the answers to it, where they can be."""
    path = Path(mark.path)
    for file in (path, *path.parent.glob(f"{path.name}.*")):
        with suppress(OSError):
            file.unlink()
