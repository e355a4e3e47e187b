"""Signals: what Ctrl-C, SIGTERM, a closed terminal (SIGHUP) and a machine that goes away do to a search or a run."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hksd_search import streams
from hksd_search.backend.stop_file import STOP_FILE
from hksd_search.console import Display
from hksd_search.ending import Why

if TYPE_CHECKING:  # imports Optuna, which a single run does without
    from hksd_search.ledger import Ledger

GRACE = 8.0  # seconds after SIGTERM in which trials may save; the search then ends without them, to be over in 20


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
URGENT = (signal.SIGTERM, signal.SIGHUP)


class Interrupt:
    """What signals do to a search.

    While trials train, Ctrl-C ends each after its epoch, and a second one stops now. SIGTERM, which comes from a
    machine that is about to go away, and SIGHUP, from a terminal that is closed, end each after its step; whatever has
    not ended `GRACE` seconds later is left behind. While the books are opened or closed (`hold`), which takes seconds,
    a first signal waits for that. At any other time a signal stops at once.
    """

    def __init__(self, display: Display, folder: Path):
        self.display, self.stop_file = display, folder / STOP_FILE
        self.ledger: Ledger | None = None  # while trials train
        self.hurried, self.holding, self.noted = False, False, False
        self._ear, self._bell = os.pipe()
        for end in (self._ear, self._bell):
            os.set_blocking(end, False)

    def install(self) -> None:
        """Take over the signals; what the shell has a process ignore at a closed terminal (`nohup`) stays ignored."""
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self)
        signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)

    def heard(self) -> bool:
        """Whether a signal has come since this was asked last, also one that no handler has run for yet."""
        came = b""
        with contextlib.suppress(BlockingIOError):
            came = os.read(self._ear, 4096)
        return any(number in came for number in SIGNALS if number != signal.SIGALRM)

    def __call__(self, number: int, frame: Any) -> None:
        """Take a signal."""
        streams.mute_dead()
        if self.holding and not self.noted:
            self.noted = True
            self.display.line("stopping: what is being written is finished first (again stops now)")
            return
        urgent = number in URGENT and not self.hurried
        if self.ledger is None or (self.ledger.stopping and not urgent):
            raise KeyboardInterrupt
        self.ledger.stop(Why.INTERRUPTED)
        if urgent:
            self._hurry()
        else:
            self.display.line("stopping: each trial finishes its epoch and is saved (Ctrl-C again stops now)")

    def hold(self) -> None:
        """The books are opened, or closed: a first signal waits, and a timer for trials is of no use."""
        self.hurried, self.holding = True, True
        signal.setitimer(signal.ITIMER_REAL, 0)

    def go(self) -> None:
        """The books are open: a signal that came meanwhile counts now.

        Raises:
            KeyboardInterrupt: there was one.
        """
        self.hurried, self.holding = False, False
        if self.noted:
            self.noted = False
            raise KeyboardInterrupt

    def disarm(self) -> None:
        """No trial is waited for any more: a signal stops at once."""
        self.ledger, self.hurried = None, True
        signal.setitimer(signal.ITIMER_REAL, 0)

    def close(self) -> None:
        """Nobody asks for signals any more."""
        signal.set_wakeup_fd(-1)
        for end in (self._ear, self._bell):
            os.close(end)

    def _hurry(self) -> None:
        self.hurried = True
        signal.setitimer(signal.ITIMER_REAL, GRACE)
        try:
            self.stop_file.touch()
        except OSError:  # a full disk: the timer ends what does not hear of it
            self.display.line("stopping: trials cannot be told to save, their last checkpoints count")
        else:
            self.display.line("stopping: each trial finishes its step and is saved (Ctrl-C stops now)")


@contextmanager
def interruptible(display: Display, folder: Path) -> Iterator[Interrupt]:
    """Take over the signals for the length of a search in `folder`."""
    handler = Interrupt(display, folder)
    handler.stop_file.unlink(missing_ok=True)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handler.install()
    try:
        yield handler
    finally:
        handler.disarm()
        handler.close()
        for number, old in before.items():
            signal.signal(number, old)


class InterruptedRun(KeyboardInterrupt):
    """The user stopped a single run. The text says what was kept, and how to go on."""


class Stop:
    """SIGINT, SIGTERM and SIGHUP for a single run: `asked` tells it to end after its step, a second signal stops now.

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
        streams.mute_dead()
        if self.stopping or not self.listening:
            raise KeyboardInterrupt
        self.stopping = True
        self.on_ask()


@contextmanager
def stoppable(on_ask: Callable[[], None]) -> Iterator[Stop]:
    """Take over the signals for the length of a run; what the shell has a process ignore stays ignored."""
    stop = Stop(on_ask)
    before = {number: signal.getsignal(number) for number in SIGNALS if number != signal.SIGALRM}
    mine = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in mine:
        signal.signal(number, stop)
    try:
        yield stop
    finally:
        for number, old in mine.items():
            signal.signal(number, old)
