"""Records that wait to be sent: each in its turn, those of one run together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hksd_search.tracking.store import PARENT

TOGETHER = ("start", "metrics", "tags", "end")  # kinds that one call can take with others of their run
AT_ONCE = 64  # records of a run that leave together: at 15 values each about the 1,000 that MLflow takes in a call
NOWHERE = -1  # line of a record that is not in the spool


@dataclass(frozen=True)
class Entry:
    """A record and its line in the spool."""

    record: Mapping[str, Any]
    line: int = NOWHERE


@dataclass
class _Stage:
    """Records that may overtake each other, except those of one run; or one that nothing may overtake."""

    alone: bool
    runs: dict[str, deque[Entry]] = field(default_factory=dict)


class Line:
    """A queue for one taker.

    While it is short, a record leaves as soon as it has come. Where records come faster than they are taken, those of
    one run gather, and leave together: the longer the line, the more of them. The run that waits longest is next. A
    record about the search itself, and a file, waits for all before it, and all after it wait for it.
    """

    def __init__(self) -> None:
        self._stages: deque[_Stage] = deque()
        self._ended = self._taken = False
        self._changed = threading.Condition()

    @property
    def idle(self) -> bool:
        """Nothing waits, and the taker has come back since it was given something."""
        with self._changed:
            return not self._stages and not self._taken

    def put(self, entry: Entry) -> None:
        """Add a record."""
        run = entry.record["run"]
        alone = run == PARENT or entry.record["kind"] not in TOGETHER
        with self._changed:
            if alone or not self._stages or self._stages[-1].alone:
                self._stages.append(_Stage(alone))
            self._stages[-1].runs.setdefault(run, deque()).append(entry)
            self._changed.notify()

    def end(self) -> None:
        """Nothing is added any more."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def take(self) -> list[Entry]:
        """Wait for records of one run, in order; none when the line has ended."""
        with self._changed:
            self._taken = False
            self._changed.wait_for(lambda: self._stages or self._ended)
            if not self._stages:
                return []
            self._taken = True
            runs = self._stages[0].runs
            run = next(iter(runs))
            waiting = runs.pop(run)
            taken = [waiting.popleft() for _ in range(min(AT_ONCE, len(waiting)))]
            if waiting:
                runs[run] = waiting  # behind the others
            if not runs:
                self._stages.popleft()
            return taken

    def rest(self) -> list[Entry]:
        """What has not been taken."""
        with self._changed:
            return [entry for stage in self._stages for waiting in stage.runs.values() for entry in waiting]
