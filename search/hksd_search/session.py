"""The surroundings of a search: its name and folder, the lock, signals, the command that resumes it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from hksd.config.run import dump
from hksd.data import store
from hksd.errors import UserError, nearest
from hksd.files import write_atomically
from hksd.yaml import Override, parse_yaml, to_yaml
from hksd_search.console import relative
from hksd_search.space import space as spaces
from hksd_search.space.latency import FOLDER as LATENCIES
from hksd_search.space.space import Space

if TYPE_CHECKING:  # imports Optuna
    pass

SPACE_FILE = "space.yaml"
TEACHERS = "teachers"  # folder of cached teachers below the runs folder
IMAGES = store.FOLDER  # folder of decoded images below the runs folder
HOLDER = ".holder"  # says who holds the lock of a folder; the lock itself is empty
RAISABLE = (
    "trials",
    "concurrent",
    "max_device_hours",
    "max_cost",
    "price",
    "node_timeout",
)  # of `search`; a resume may change them
RESERVED = {TEACHERS, IMAGES, LATENCIES, "mlflow-artifacts", "mlflow.db"}


def new_name(space: Space) -> str:
    """A fresh name: the space and the time."""
    return f"{space.name}-{datetime.now():%Y%m%d-%H%M%S}"


def space_and_name(
    given: str, name: str | None, runs: Path, overrides: Sequence[str | Override], going_on: bool, extend: int
) -> tuple[Space, str]:
    """The space and the name of a search, from what the user typed.

    Args:
        given: a space, or the name of an earlier search that goes on.
        name: name of the search, when it was given apart.
        runs: folder of all searches.
        overrides: ``a.b=value``.
        going_on: an earlier search goes on.
        extend: trials that it gets in addition.

    Raises:
        UserError: no such space or search.
    """
    if not going_on:
        space = spaces.load(given, overrides)
        return space, new_name(space) if name is None else name
    if name is None and Path(given).is_file():
        raise UserError(f"{given}: which search goes on? `hksd search NAME --resume`, or this file with --name NAME")
    name = name or given
    file = runs / name / SPACE_FILE
    if not file.exists():
        known = sorted(path.parent.name for path in runs.glob(f"*/{SPACE_FILE}"))
        listed = f" (there are: {', '.join(known)})" if known else ""
        raise UserError(f"{runs / name}: no search to go on with{nearest(name, known)}{listed}")
    space = spaces.load(str(file if given == name else given), overrides)
    if extend:
        space = space.with_trials(spaces.load(str(file)).search.trials + extend)
    return space, name


def resolved(space: Space) -> str:
    """The space as one YAML text, overrides included."""
    tree = {**space.tree, "search": dump(space.search)}
    return to_yaml(json.loads(json.dumps(tree)))


def choose_folder(space: Space, runs: Path, name: str, resume: bool) -> Path:
    """Return the folder of a new search, or of the one to resume; writes nothing.

    Raises:
        UserError: a name that cannot be, a search that exists, or none to resume, or one of another space.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name in RESERVED:
        raise UserError(f"--name {name}: use letters, digits, '.', '_' and '-' (not {', '.join(sorted(RESERVED))})")
    folder = runs / name
    if resume:
        if not (folder / SPACE_FILE).exists():
            raise UserError(f"{folder}: no search to resume; leave --resume out to start one")
        texts = (folder / SPACE_FILE).read_text(), resolved(space)
        before, now = (parse_yaml(text, str(folder / SPACE_FILE)).tree for text in texts)
        for tree in (before, now):
            tree["search"].update(dict.fromkeys(RAISABLE))
            tree["search"].get("resources", {}).pop("nice", None)
        changed = [key for key in {*before, *now} if before.get(key) != now.get(key)]
        if changed:
            raise UserError(
                f"{folder}: the space has changed since the search began (section {', '.join(sorted(changed))}); "
                f"resume as it was with `hksd search {name} --resume`, or start a new search"
            )
    elif folder.exists():
        raise UserError(
            f"{folder} exists already: continue it with `hksd search {name} --resume`, or choose another --name"
        )
    return folder


def write(path: Path, text: str) -> None:
    """Write a text file atomically; a fault is the user's to mend."""
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


@contextmanager
def locked(folder: Path, doing: str = "running this search") -> Iterator[None]:
    """Make the folder and keep every other process out of it; `doing` says what the other one does.

    Raises:
        UserError: it cannot be written, or another process has it.
    """
    holder = folder / HOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}")
    except Timeout as error:
        raise UserError(f"{folder}: another process is {doing}{_held_by(holder)}") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # a disk that has become read-only; the lock itself is let go of all the same
            holder.unlink(missing_ok=True)
        lock.release()


def _held_by(holder: Path) -> str:
    try:
        return f" ({holder.read_text()})"
    except OSError:
        return ""


def holder(folder: Path) -> str | None:
    """Who holds the lock of a folder, in words; None where no process does (it may have been killed)."""
    try:
        with (folder / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _held_by(folder / HOLDER).strip(" ()") or "a process"
    except OSError:  # never locked, or a file system without locks
        pass
    return None


def is_halted(holding: str) -> bool:
    """Whether the process of a `holder` is on this machine, and stopped by a signal (SIGSTOP, Ctrl-Z)."""
    found = re.match(r"process (\d+) on (\S+),", holding)
    if found is None or found[2] != socket.gethostname():
        return False
    try:
        return Path(f"/proc/{found[1]}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


def how_to_resume(name: str, runs: Path, address: str | None) -> str:
    """The command that continues a search; where it is tracked, it remembers itself."""
    words = ["hksd", "search", name]
    words += [] if runs == Path("runs") else ["--runs", relative(runs)]
    words += ["--address", address] if address else []
    return shlex.join([*words, "--resume"])
