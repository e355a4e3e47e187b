"""What ends a trial before its time: faults told apart, epochs that hang, memory that leaks.

A worker that leaks is ended from inside, by a thread of its own, after it has left its last words in the folder of its
trial; the driver, which only sees that the process is gone, reads the reason there. One that hangs is ended by another
process (`hksd_search.backend.watchdog`), so a trial that hangs while it holds the interpreter's lock is ended too.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import re
import sys
import sysconfig
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

import torch

from hksd.errors import NonFiniteLossError, RunError, UserError
from hksd.files import FULL
from hksd_search.backend import failures
from hksd_search.backend.gpu import GpuMemoryError
from hksd_search.backend.watchdog import watchdog
from hksd_search.study.records import STRIKES
from hksd_search.study.trial_log import LAST_WORDS as LAST_WORDS

MEMORY_STRIKES = 2  # tries after which a trial has failed that leaks: it would leak again
SHORTEST, SHORTEST_FIRST, EPOCHS = 60.0, 600.0, 20.0  # default patience: that many epochs, or seconds if more
GB = 10**9
SHARE, FLOOR = 0.9, 2 * GB  # default memory of a trial: its part of that share of the machine's, but not less than that
LOOK_EVERY = 1.0  # seconds between two looks
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
Kind = Literal["final", "again", "disk full"]


def kind(error: BaseException, model: str) -> Kind:
    """What to do about a fault of a trial.

    Args:
        error: what was raised.
        model: `student.model` of the trial; ``module:factory`` where it is a network of the user's own.

    Returns:
        ``disk full``: no trial can go on. ``final``: trying again would end the same. ``again``: a fault of the
        machine, or one that nobody knows.
    """
    chain = list(_causes(error))
    if full(error):
        return "disk full"
    if any(isinstance(one, (OSError, MemoryError, torch.AcceleratorError)) for one in chain):
        return "again"
    if isinstance(error, (UserError, NonFiniteLossError, GpuMemoryError)):
        return "final"
    return "final" if ":" in model and _passes_through(error.__traceback__, model.partition(":")[0]) else "again"


def full(error: BaseException) -> bool:
    """Whether an error, or what it came from, says that the disk has no room."""
    return any(isinstance(one, OSError) and one.errno in FULL for one in _causes(error))


@contextlib.contextmanager
def disk_full_explained(resume: str) -> Iterator[None]:
    """Turn a full disk, whoever met it, into a message that says how to go on.

    Args:
        resume: the command that continues the search.

    Raises:
        RunError: the disk is full.
    """
    try:
        yield
    except (OSError, UserError, RunError) as error:
        if not full(error):
            raise
        raise RunError(how_to_go_on(f"the disk is full: {error}", resume)) from error


def how_to_go_on(trouble: str, resume: str, gone: bool = False) -> str:
    """What is said when something ended a search that a user can mend.

    Args:
        trouble: what ended it.
        resume: the command that continues it.
        gone: its folder is not there any more.
    """
    if gone:
        return f"{trouble}. When it is back where it was, resume with:\n  {resume}"
    return f"{trouble}; everything up to there is saved. When that is mended, resume with:\n  {resume}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _passes_through(trace: TracebackType | None, module: str) -> bool:
    """Whether code of the package of `module` was at work when an error was raised."""
    package = module.partition(".")[0]
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == package:
            return True
        trace = trace.tb_next
    return False


@dataclass(frozen=True)
class Rules:
    """How long an epoch may take, and how much memory a trial may hold.

    Attributes:
        epoch_timeout: seconds; None goes by the epochs so far (see `patience`).
        memory: bytes; None is this trial's part of the machine (see `part_of_memory`).
        concurrent: trials at once.
        cpu: cores of a trial.
    """

    epoch_timeout: float | None = None
    memory: int | None = None
    concurrent: int = 1
    cpu: int = 1

    def patience(self, mine: float, others: float) -> float:
        """Seconds that the next epoch of a trial may take.

        Args:
            mine: the longest epoch of this trial so far, in seconds; 0 before its first.
            others: the longest of the trials before it; counts only before its first.
        """
        if self.epoch_timeout is not None:
            return self.epoch_timeout
        return max(SHORTEST, EPOCHS * mine) if mine else max(SHORTEST_FIRST, EPOCHS * others)

    def bound(self) -> int:
        """Bytes that a trial may hold on this machine."""
        if self.memory is not None:
            return self.memory
        return part_of_memory(machine_memory(), min(self.concurrent, len(os.sched_getaffinity(0)) // self.cpu))


def part_of_memory(total: int, trials: int) -> int:
    """Bytes for each of some trials on a machine that has `total`; at least `FLOOR`, where the machine has it."""
    usable = int(SHARE * total)
    return min(usable, max(FLOOR, usable // max(1, trials)))


def machine_memory(root: Path = Path("/")) -> int:
    """Bytes of memory of this machine, or of the control group (container) that this process lies in.

    Args:
        root: where ``proc`` and ``sys`` are mounted.
    """
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    groups = root / "sys/fs/cgroup"
    limits = [groups / "memory.max", groups / "memory/memory.limit_in_bytes"]
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/"):
                mine = Path(line[4:])
                limits += [groups / place / "memory.max" for place in (mine, *mine.parents)]
    for limit in limits:
        with contextlib.suppress(OSError, ValueError):  # none set: the word max
            total = min(total, int(limit.read_text()))
    return total


def held_memory() -> int:
    """Bytes that this process alone holds: without the files and the shared memory that it looks at. 0 if unknown."""
    if not Path("/proc/self/statm").exists():
        return 0
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


class Guard:
    """Ends this process when an epoch hangs, the memory grows too large, or Ray is gone; a context around training.

    Also keeps every other process out of the trial: one whose driver has died may still be at work for a second.

    Args:
        folder: of the trial, for the last words.
        rules: what is too long and too much.
        others: the longest epoch of the trials before, in seconds.
    """

    def __init__(self, folder: Path, rules: Rules, others: float = 0.0):
        self.path, self.rules, self.others, self.mine = folder / LAST_WORDS, rules, others, 0.0
        self._file: IO[bytes] | None = None
        self._over = threading.Event()

    def __enter__(self) -> Guard:
        self._over = threading.Event()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        faulthandler.enable(file=self._file)  # what ends this process leaves its last words, a crash of C code too
        self.watch()
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.truncate(0)
        threading.Thread(target=self._look, args=[self._over, os.getppid()], name="guard", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()
        self._over.set()
        faulthandler.disable()
        if sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)  # where Ray has put it
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()

    def watch(self, epoch: float = 0.0) -> None:
        """Give the next epoch its time; the one that ended took `epoch` seconds."""
        self.mine = max(self.mine, epoch)
        assert self._file is not None
        watchdog.watch(self.rules.patience(self.mine, self.others), self._file)

    def rest(self) -> None:
        """Nothing is waited for: what comes now is not the trial's to be quick about."""
        watchdog.rest()

    def _look(self, over: threading.Event, parent: int) -> None:
        bound = self.rules.bound()
        while not over.wait(LOOK_EVERY):
            if os.getppid() != parent:  # workers of Ray are children of its raylet
                os._exit(1)
            held = held_memory()
            if held > bound and not over.is_set():
                self.path.write_text(
                    f"its process held {held / GB:.1f} GB of memory, more than the {bound / GB:.1f} GB that it may "
                    "(search.resources.memory_gb)"
                )
                os._exit(1)


def last_words(folder: Path) -> tuple[str, int]:
    """Why the process of a trial is gone, and after how many such ends the trial has failed.

    Args:
        folder: of the trial.
    """
    try:
        text = (folder / LAST_WORDS).read_text(errors="replace").strip()
    except OSError:  # nothing was written, or on another machine
        text = ""
    if not text:
        return failures.DIED, STRIKES
    crash = re.match(r"Fatal Python error: (.+)", text)
    if crash is not None:
        return f"its process crashed {_last_at(text)}: {crash[1]}", STRIKES
    timeout = re.match(r"Timeout \((\d+):(\d+):([\d.]+)\)!", text)
    if timeout is None:
        return text, MEMORY_STRIKES
    hours, minutes, seconds = map(float, timeout.groups())
    waited = timedelta(hours=hours, minutes=minutes, seconds=seconds).total_seconds()
    return f"no epoch ended in {waited:g} s (search.epoch_timeout); it hung {_last_at(text)}", STRIKES


def _last_at(dump: str) -> str:
    """The innermost place outside Python's libraries, in the training thread of a dump of all threads."""
    for thread in dump.split("\n\n"):
        frames = re.findall(r'File "(.+)", line (\d+) in (.+)', thread)
        if any(Path(file).name == "trial.py" and function == "run_trial" for file, _, function in frames):
            own = (frame for frame in frames if not frame[0].startswith(LIBRARIES))
            file, line, function = next(own, frames[0])
            return f"in {file}:{line} ({function})"
    return "at a place that is not known"
