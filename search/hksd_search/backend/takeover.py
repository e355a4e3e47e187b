"""What a process that takes the place of one whose Ray has died is told, in its environment, and does first.

Ray's library ends a process whose Ray has died from C++, by `_Exit(1)`, as soon as it misses the object store: some 70
ms after an agent of the raylet has died. So the old process does nothing but give way (`backend.ray_watch.Restart`),
and what is left of its Ray is cleared away here.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

from hksd_search.backend import private

STOPPED = "HKSD_STOPPED"  # the search was being stopped; only its books are to be closed
DIED = "HKSD_RAY_DIED"  # what of Ray died
LEFT = "HKSD_RAY_LEFT"  # numbers of the processes that Ray began with, children of this process
COUNT = "HKSD_RAY_RESTARTS"  # restarts in a row without a finished epoch between them
PATIENCE_S = 5.0  # for a process that was killed to be gone


def environment(died: str, left: Iterable[int], count: int, stopping: bool) -> dict[str, str]:
    """What the new process is told.

    Args:
        died: name of the process of Ray that died.
        left: numbers of the processes that Ray began with.
        count: restarts in a row, this one included.
        stopping: whether the search is being stopped.
    """
    told = {STOPPED: "1"} if stopping else {COUNT: str(count)}
    return {**told, DIED: died, LEFT: ",".join(map(str, left))}


def clear() -> None:
    """Say what has happened and end what is left of Ray, where this process is in the place of another one."""
    died = os.environ.pop(DIED, None)
    if died is None:
        return
    then = "trials wait at" if STOPPED in os.environ else "it is started again, and trials go on from"
    with suppress(OSError):
        out = sys.stderr if "--json" in sys.argv else sys.stdout
        print(f"Ray died ({died}); {then} their last checkpoints", file=out, flush=True)
    numbers = os.environ.pop(LEFT, "").split(",")
    end({int(number) for number in numbers if number.isdecimal()})


def end(processes: set[int]) -> None:
    """Kill children of this process, and the sessions that they began; wait until the former are gone."""
    mine = {process for process in processes if _child(process)}  # not yet waited for: nobody else has their numbers
    for process in mine:
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)
    private.kill_sessions(mine)
    deadline = time.monotonic() + PATIENCE_S
    while mine and time.monotonic() < deadline:
        for process in list(mine):
            with suppress(ChildProcessError):
                if os.waitpid(process, os.WNOHANG)[0] == 0:
                    continue
            mine.discard(process)
        time.sleep(0.005)


def _child(process: int) -> bool:
    """Whether a process is a child of this one that nobody has waited for, alive or not."""
    try:
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
