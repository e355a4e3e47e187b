"""MLflow, in one place: parent run = search, child run = trial, one batch per epoch.

Everything is written by one background thread of the driver, in order. The search never waits for it and never fails
because of it: every record goes to a spool file in the folder of the search first; while the store cannot be written,
records wait and are tried again; what is unsent when the process ends, or dies, is sent when the search is resumed, or
by `hksd sync`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hksd_search.study.records import Assignment, Record
from hksd_search.tracking import known
from hksd_search.tracking.access import reason_of
from hksd_search.tracking.facts import STATUS, epoch_metrics, trial_end, trial_start
from hksd_search.tracking.known import NOTES_FILE as NOTES_FILE
from hksd_search.tracking.known import RUNS_FILE as RUNS_FILE
from hksd_search.tracking.known import SPOOL_FILE as SPOOL_FILE
from hksd_search.tracking.known import Known
from hksd_search.tracking.spool import Spool
from hksd_search.tracking.store import EXPERIMENT as EXPERIMENT
from hksd_search.tracking.store import PARENT as PARENT
from hksd_search.tracking.store import Store

RETRY_S, FLUSH_S = 2.0, 20.0
LONGEST_FLUSH_S = 300.0  # a slow store that still takes records gets that long at the end
STOP_FLUSH_S = 8.0  # all of it where a search is being stopped, which may not take long; the rest waits in the spool
LAST_CALL_S = 15.0  # for a call that is under way when time is up; then it is left behind
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sent:
    """How tracking went: records that reached the store, and those left in the spool."""

    sent: int
    unsent: int
    problem: str | None


class Tracker:
    """Writes a search to MLflow in the background.

    Args:
        uri: tracking store, with its secrets; None turns tracking off.
        folder: folder of the search, for the spool and the ids of its runs.
        name: name of the search.
        default: the store is the one below the runs folder.
    """

    def __init__(self, uri: str | None, folder: Path, name: str, *, default: bool = False):
        self.uri, self.folder, self.name, self.default = uri, folder, name, default
        self.sent, self.problem = 0, None if uri else "off"
        self.closing: list[dict[str, Any]] = []  # what ends the parent run, if nobody has
        self._pending: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._unsent: list[dict[str, Any]] = []
        self._files: list[dict[str, Any]] = []  # that wait until the figures are through
        self._current: dict[str, Any] | None = None  # is being sent
        self._left = False  # nobody waits for the thread any more
        self._turn = threading.Lock()  # over the four above
        self._deadline = self._limit = float("inf")
        self._acknowledged = 0  # records of the spool that need not be sent again
        self._spool, self._notes = Spool(folder / SPOOL_FILE), Spool(folder / NOTES_FILE)
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._store: Store | None = None
        if uri is not None:
            self._store = self._take_over(uri)
            self._thread.start()

    @property
    def experiment_id(self) -> str | None:
        """Id of the experiment, once it is known."""
        return self._store.experiment_id if self._store else None

    @property
    def runs(self) -> Mapping[str, str]:
        """Ids of the runs by the number of the trial, and of the parent run."""
        return self._store.runs if self._store else {}

    def _take_over(self, uri: str) -> Store:
        """Queue what an earlier process left unsent; sending a record twice leaves the store as it is."""
        before = known.read(self.folder)
        mine = before if before and before.leads_to(uri, self.folder.parent) else None  # another gets runs of its own
        self._closed = mine.closed if mine else False
        left = self._spool.read(before.acknowledged if before else 0)
        left.sort(key=lambda record: not _opens(record))  # nothing can be written below a parent that is not there
        expected = {record["run"] for record in left if record["kind"] == "start"}
        new = not left and (before is None or before.fresh)
        store = Store(uri, self.name, self.study, self._note, mine or Known(uri), new, expected)
        store.opening = next(filter(_opens, left), {})
        for record in left:
            self._pending.put(record)
        self._keep_runs(store)  # before the spool is cut: at worst records are sent twice
        self._notes.start([])
        self._spool.start(left)
        return store

    @property
    def study(self) -> Path | None:
        """Folder with the study from which runs are written again; None where others see to that."""
        return self.folder

    def _keep_runs(self, store: Store) -> None:
        """Write down the ids of all runs, and that the spool is to be sent from its beginning."""
        facts = Known(store.uri, self.default, store.experiment_id, dict(store.runs), 0, self._closed)
        try:
            known.write(self.folder, facts)
        except OSError as error:
            self.problem = f"{self.folder / RUNS_FILE}: {error.strerror}"

    def _note(self, runs: Mapping[str, str]) -> None:
        """Remember the ids of new runs and how much of the spool is done."""
        assert self._store is not None
        self._closed = PARENT in self.runs and not self._store.open_end
        done = 0 if self._left else self._acknowledged  # what is left behind is in a spool of its own
        facts = {"experiment": self.experiment_id, "runs": dict(runs), "acknowledged": done, "closed": self._closed}
        self._notes.add(facts)
        self.problem = self._notes.problem or self.problem

    def start_search(self, params: Mapping[str, str], space_yaml: str) -> None:
        """Open (or reopen) the parent run with the facts of the search."""
        self.know_search(params)
        if self._store is not None:
            self._send_later(self._store.opening)
        self._put("text", PARENT, file="space.yaml", text=space_yaml)

    def know_search(self, params: Mapping[str, str]) -> None:
        """Say what the parent run begins with, for a store that has none; one that is there is left as it is."""
        if self._store is not None:
            tags = {"hksd.search": self.name, "hksd.kind": "search"}
            self._store.opening = _record("start", PARENT, name=self.name, tags=tags, params=params)

    def start_trial(self, assignment: Assignment) -> None:
        """Open (or reopen) the child run of a trial."""
        self._put("start", str(assignment.number), **trial_start(self.name, assignment))
        for epoch, accuracy in assignment.inherited.items():  # a curve that is whole; the rest is in the parent's run
            self._put("metrics", str(assignment.number), metrics={"val/accuracy": accuracy}, step=epoch, once=True)

    def epoch(self, number: int, report: Mapping[str, Any]) -> None:
        """Log the report of an epoch as one batch; one that is marked as repeated only if the store lacks it."""
        once = bool(report.get("repeated"))
        self._put("metrics", str(number), metrics=epoch_metrics(report), step=int(report["epoch"]), once=once)

    def end_trial(self, record: Record) -> None:
        """Close the child run of a trial with its status; refused draws have no run."""
        if record.status in STATUS:
            self._put("end", str(record.number), **trial_end(record))

    def end_search(
        self,
        status: str,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        texts: Mapping[str, str],
        if_open: bool = False,
    ) -> None:
        """Close the parent run with the final figures and files (name -> text); or only if it turns out to be open."""
        records = [_record("text", PARENT, file=file, text=text) for file, text in texts.items()]
        records += [
            _record("metrics", PARENT, metrics=metrics, step=0),
            _record("end", PARENT, status=status, tags=tags),
        ]
        if if_open:
            self.closing = records
            self._pending.put(_record("look", PARENT))
            return
        for record in records:
            self._send_later(record)

    def close(self, longest: float | None = None) -> Sent:
        """Send what is left, for a limited time (at most `longest` seconds), and spool the rest."""
        if self._store is None:
            return Sent(0, 0, None)
        longest, last_call = longest or LONGEST_FLUSH_S, min(LAST_CALL_S, longest or LAST_CALL_S)
        self._limit = time.monotonic() + longest
        self._deadline = min(self._limit, time.monotonic() + FLUSH_S)
        self._pending.put(None)
        while self._thread.is_alive() and (rest := self._deadline + last_call - time.monotonic()) > 0:
            self._thread.join(min(rest, 1.0))
        left = self._take_back()
        unseen = any(record["kind"] == "look" for record in left)
        left = [record for record in left if record["kind"] != "look"]
        self._keep_runs(self._store)
        if self._left:  # a run that the thread makes yet is noted
            self._notes.start([])
        else:
            self._notes.end([])
        self._spool.end(left)
        if self._spool.problem:
            self.problem = f"{self.problem}; and the spool cannot be written: {self._spool.problem}"
        return Sent(self.sent, len(left), self.problem if left or unseen else None)

    def _take_back(self) -> list[dict[str, Any]]:
        """What has not been sent, in order; the thread, should it still hang in a call, changes nothing of that."""
        with self._turn:
            self._left = self._thread.is_alive()
            left = [*self._unsent]
            if self._left:
                self.problem = self.problem or "a call has not ended after time was up"
                current = [self._current] if self._current else []
                late = bool(current) and current[0]["kind"] == "text"
                left = [*([] if late else current), *left]
                while not self._pending.empty():
                    left.append(self._pending.get())  # type: ignore[arg-type]
                left += [*self._files, *(current if late else [])]
        return [record for record in left if record is not None]

    def _put(self, kind: str, run: str, **fields: Any) -> None:
        self._send_later(_record(kind, run, **fields))

    def _send_later(self, record: dict[str, Any]) -> None:
        if self._store is not None:
            self._spool.add(record)
            self._pending.put(record)

    # --- the thread

    def _work(self) -> None:
        while (record := self._pending.get()) is not None:
            with self._turn:
                self._current = record
                blocked = bool(self._unsent)  # records stay in order: after one is given up, all are spooled
            done = not blocked and self._deliver(record, patient=record["kind"] != "text")
            with self._turn:
                if self._left:
                    return
                self._current = None
                if not done:
                    # Files lie in another store than figures, and must not hold those up.
                    late = record["kind"] == "text" and not blocked
                    (self._files if late else self._unsent).append(record)
                    if late:
                        self._spool.add(record)  # it counts as done below
            self._acknowledged += record["kind"] != "look"
        self._finish()

    def _finish(self) -> None:
        """Files that had to wait, and the end of a parent run that nobody has ended."""
        assert self._store is not None
        rest = [*self._files]
        if self.closing and not self._unsent and self._store.open_end:
            rest += self.closing
        self._files = []
        for place, record in enumerate(rest):
            with self._turn:
                self._current, self._files = record, rest[place + 1 :]
            done = not self._unsent and self._deliver(record, patient=record["kind"] != "text")
            with self._turn:
                if self._left:
                    return
                self._current, self._files = None, []
                self._unsent += [] if done else [record]

    def _deliver(self, record: Mapping[str, Any], patient: bool) -> bool:
        """Send one record; when patient, try again until it is taken or time is up."""
        assert self._store is not None
        while time.monotonic() < self._deadline:
            ready = False
            try:
                self._store.connect()
                ready = True
                self._store.write(record)
                self.sent += record["kind"] != "look"
                self._deadline = min(self._limit, max(self._deadline, time.monotonic() + FLUSH_S))
                return True
            except Exception as error:  # the store is another program's: whatever it raises, training goes on
                if self._store.mend(error):
                    continue
                reason = reason_of(error, self.uri or "")
                if ready and record["kind"] != "text" and self._store.refuses(error):
                    log.warning("MLflow refuses what stands in a record of run %s: %s", record["run"], reason)
                    return True
                if self.problem != reason:
                    self.problem = reason
                    log.warning("MLflow cannot be written, records are kept and tried again: %s", reason)
                if not patient:
                    return False
                time.sleep(RETRY_S)
        self.problem = self.problem or "there was no time left"
        return False


def _record(kind: str, run: str, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "run": run, "time": int(time.time() * 1000), **fields}


def _opens(record: Mapping[str, Any]) -> bool:
    """Whether a record makes the parent run."""
    return bool(record["kind"] == "start" and record["run"] == PARENT)


def waiting(folder: Path) -> int:
    """Records in the spool of a search that have not been sent."""
    before = known.read(folder)
    return len(Spool(folder / SPOOL_FILE).read(before.acknowledged if before else 0))
