"""Standard output and error whose reader may go away: a closed terminal, a connection that broke, a pipe."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from types import FrameType


def mute_dead() -> None:
    """Let what is written to a standard stream without a reader be lost, in place of an error at each write."""
    for number in (1, 2):
        if _dead(number):
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)


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
