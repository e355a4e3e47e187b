"""MLflow, in one place: parent run = search, child run = trial, the values of an epoch at its step.

Everything is written by one background thread of the driver, the records of each run in their order. The search never
waits for it and never fails because of it: every record goes to a spool file in the folder of the search first; while
the store cannot be written, records wait and are tried again; what is unsent when the process ends, or dies, is sent
when the search is resumed, or by `hksd sync`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hksd_search.study.records import Assignment, Record
from hksd_search.tracking import known
from hksd_search.tracking.facts import ACCURACY, STATUS, epoch_metrics, trial_end, trial_start
from hksd_search.tracking.known import NOTES_FILE as NOTES_FILE
from hksd_search.tracking.known import RUNS_FILE as RUNS_FILE
from hksd_search.tracking.known import SPOOL_FILE as SPOOL_FILE
from hksd_search.tracking.known import Known
from hksd_search.tracking.line import Entry
from hksd_search.tracking.sender import Sender
from hksd_search.tracking.spool import Spool
from hksd_search.tracking.store import EXPERIMENT as EXPERIMENT
from hksd_search.tracking.store import PARENT as PARENT
from hksd_search.tracking.store import Store

STOP_FLUSH_S = 8.0  # for all that is left where a search is being stopped, which may not take long; the rest is kept


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
        self._fault: str | None = None  # of a file that remembers
        self._spool, self._notes = Spool(folder / SPOOL_FILE), Spool(folder / NOTES_FILE)
        self._store: Store | None = None
        self._sender: Sender | None = None
        if uri is not None:
            self._store = self._take_over(uri)

    @property
    def sent(self) -> int:
        """Records that have reached the store."""
        return self._sender.sent if self._sender else 0

    @property
    def problem(self) -> str | None:
        """Why records wait, or have waited last."""
        return (self._sender.problem or self._fault) if self._sender else "off"

    @property
    def idle(self) -> bool:
        """Nothing waits to be sent, and nothing is under way."""
        return self._sender is None or self._sender.idle

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
        self._keep_runs(store)  # before the spool is cut: at worst records are sent twice
        self._notes.start([])
        self._spool.start(left)
        self._sender = Sender(store, self._spool)
        for line, record in enumerate(left):
            self._sender.put(Entry(record, line))
        self._sender.thread.start()
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
            self._fault = f"{self.folder / RUNS_FILE}: {error.strerror}"

    def _note(self, runs: Mapping[str, str]) -> None:
        """Remember the ids of new runs and how much of the spool is done."""
        assert self._store is not None
        assert self._sender is not None
        self._closed = PARENT in self.runs and not self._store.open_end
        done = 0 if self._sender.left else self._spool.acknowledged  # what is left behind is in a spool of its own
        facts = {"experiment": self.experiment_id, "runs": dict(runs), "acknowledged": done, "closed": self._closed}
        self._notes.add(facts)
        self._fault = self._notes.problem or self._fault

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
            self._put("metrics", str(assignment.number), metrics={ACCURACY: accuracy}, step=epoch, once=True)

    def epoch(self, number: int, report: Mapping[str, Any]) -> None:
        """Log the report of an epoch as one batch; one that is marked as repeated only if the store lacks it."""
        once = bool(report.get("repeated"))
        self._put("metrics", str(number), metrics=epoch_metrics(report), step=int(report["epoch"]), once=once)

    def trial_node(self, number: int, nodes: str) -> None:
        """Note where a trial runs: the names of its nodes so far, which take the place of those noted before."""
        self._put("tags", str(number), tags={"hksd.node": nodes})

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
            if self._sender is not None:
                self._sender.closing = records
                self._sender.put(Entry(_record("look", PARENT)))
            return
        for record in records:
            self._send_later(record)

    def close(self, longest: float | None = None) -> Sent:
        """Send what is left, for a limited time (at most `longest` seconds), and spool the rest."""
        if self._store is None or self._sender is None:
            return Sent(0, 0, None)
        left = self._sender.close(longest)
        unseen = any(record["kind"] == "look" for record in left)
        left = [record for record in left if record["kind"] != "look"]
        self._keep_runs(self._store)
        if self._sender.left:  # a run that the thread makes yet is noted
            self._notes.start([])
        else:
            self._notes.end([])
        self._spool.end(left)
        problem = self.problem if left or unseen else None
        if self._spool.problem:
            problem = f"{self.problem}; and the spool cannot be written: {self._spool.problem}"
        return Sent(self.sent, len(left), problem)

    def _put(self, kind: str, run: str, **fields: Any) -> None:
        self._send_later(_record(kind, run, **fields))

    def _send_later(self, record: dict[str, Any]) -> None:
        if self._sender is not None:
            self._sender.put(Entry(record, self._spool.add(record)))


def _record(kind: str, run: str, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "run": run, "time": int(time.time() * 1000), **fields}


def _opens(record: Mapping[str, Any]) -> bool:
    """Whether a record makes the parent run."""
    return bool(record["kind"] == "start" and record["run"] == PARENT)


def waiting(folder: Path) -> int:
    """Records in the spool of a search that have not been sent."""
    before = known.read(folder)
    return len(Spool(folder / SPOOL_FILE).read(before.acknowledged if before else 0))
