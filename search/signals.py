"""How training hears that it is to stop after its step: the trials of a search by a file, a single run by a signal."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STOP_FILE = "stop"  # in the folder of a search
LOOK_EVERY = 0.2  # seconds between two looks of a trial for that file


class InterruptedRun(KeyboardInterrupt):
    """The user stopped a single run. The text says what was kept, and how to go on."""


def told_to_stop(folder: Path) -> Callable[[], bool]:
    """For a trial of the search in `folder`: whether it is to end now. May be asked after every step."""
    file, looked, found = folder / STOP_FILE, -LOOK_EVERY, False

    def look() -> bool:
        nonlocal looked, found
        now = time.monotonic()
        if now - looked >= LOOK_EVERY:
            looked, found = now, file.exists()
        return found

    return look


class Stop:
    """SIGINT and SIGTERM for a single run: `asked` tells it to end after its step, a second signal stops now.

    Nothing has to be saved before the run first asks; until then the first signal stops at once.

    Args:
        on_ask: called when the run is told to end.
    """

    def __init__(self, on_ask: Callable[[], None]):
        self.on_ask, self.stopping, self.listening = on_ask, False, False

    def asked(self) -> bool:
        """Whether the run is to end now."""
        self.listening = True
        return self.stopping

    def __call__(self, number: int, frame: Any) -> None:
        """Take a signal."""
        if self.stopping or not self.listening:
            raise KeyboardInterrupt
        self.stopping = True
        self.on_ask()


@contextmanager
def stoppable(on_ask: Callable[[], None]) -> Iterator[Stop]:
    """Take over SIGINT and SIGTERM for the length of a run; what the shell has a process ignore stays ignored."""
    stop = Stop(on_ask)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    mine = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in mine:
        signal.signal(number, stop)
    try:
        yield stop
    finally:
        for number, old in mine.items():
            signal.signal(number, old)
