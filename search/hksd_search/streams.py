"""Standard output and error whose reader may go away: a closed terminal, a connection that broke, a pipe."""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any, TextIO


class Lasting:
    """A standard stream that outlives what it leads to: when that is closed, full or gone, what is written is lost.

    A search of hours must not end because somebody has closed the page in which it was read.

    Attributes:
        fault: why what was written is lost; empty while nothing is.
    """

    def __init__(self, stream: TextIO):
        self._stream, self.fault = stream, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """See io.TextIOBase."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._mute(error)
        return len(text)

    def flush(self) -> None:
        """See io.IOBase."""
        try:
            self._stream.flush()
        except OSError as error:
            self._mute(error)

    def _mute(self, error: OSError) -> None:
        if self.fault:
            return
        self.fault = error.strerror or type(error).__name__
        _lead_nowhere(self._stream.fileno())
        with suppress(OSError):
            self._stream.flush()  # what is still in its buffer


def make_last() -> None:
    """Give this process three standard streams that last, also where it was started without.

    A file that is opened would get the number of one that is not there, and what C libraries print with it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _lead_nowhere(number)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name) or os.fdopen(number, "w", errors="replace", closefd=False)
        if not isinstance(stream, Lasting):
            setattr(sys, name, Lasting(stream))


def _lead_nowhere(number: int) -> None:
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
        os.set_inheritable(number, True)


def mute_dead() -> None:
    """Let what is written to a standard stream without a reader be lost, in place of an error at each write."""
    for number in (1, 2):
        if _dead(number):
            _lead_nowhere(number)


def _dead(number: int) -> bool:
    """Whether a descriptor is a pipe, a socket or a terminal that nobody reads any more."""
    looked = select.poll()
    looked.register(number, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in looked.poll(0))


def _stop(number: int, frame: FrameType | None) -> None:
    mute_dead()
    raise KeyboardInterrupt


def heed_signals() -> None:
    """SIGTERM and SIGHUP stop a command as Ctrl-C does; what the shell has it ignore (`nohup`) stays ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGHUP))  # see `backend.ray_watch.Restart`
