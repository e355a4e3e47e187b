"""MLflow, in one place: parent run = search, child run = trial, one batch per epoch.

Everything is written by one background thread of the driver, in order. The search never waits for it and never fails
because of it: every record goes to a spool file in the folder of the search first; while the store cannot be written,
records wait and are tried again; what is unsent when the process ends, or dies, is sent when the search is resumed.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hksd.files import write_atomically
from hksd_search.study.records import Assignment, Record
from hksd_search.tracking import refill
from hksd_search.tracking.access import SQLITE, quiet_environment, reason_of
from hksd_search.tracking.facts import STATUS, epoch_metrics, trial_end, trial_start
from hksd_search.tracking.spool import Spool

EXPERIMENT = "hksd"
PARENT = "search"
SPOOL_FILE, RUNS_FILE = "tracking-spool.jsonl", "mlflow.json"
NOTES_FILE = "mlflow-notes.jsonl"  # what is new since RUNS_FILE was written; that grows with the search
RETRY_S, FLUSH_S = 2.0, 20.0
LONGEST_FLUSH_S = 300.0  # a slow store that still takes records gets that long at the end
BATCH_PARAMS = 100  # MLflow takes at most that many parameters in a batch
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
        uri: tracking store; None turns tracking off.
        folder: folder of the search, for the spool and the ids of its runs.
        name: name of the search.
    """

    def __init__(self, uri: str | None, folder: Path, name: str):
        self.uri, self.folder, self.name = uri, folder, name
        self.sent, self.problem = 0, None if uri else "off"
        self.runs: dict[str, str] = {}
        self.earlier: frozenset[str] = frozenset()  # runs that have their params; MLflow forbids to change them
        self.experiment_id: str | None = None
        self._pending: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._unsent: list[dict[str, Any]] = []
        self._client: Any = None
        self._deadline = self._limit = float("inf")
        self._opening: list[dict[str, Any]] = []  # what the parent run began with
        self._lost = False  # the store has to be filled again
        self._unknown = False  # the ids of our runs have to be asked for
        self._told: set[tuple[str, int]] = set()  # run and epoch of the accuracies that the study told it then
        self._acknowledged = 0  # records of the spool that need not be sent again
        self._spool, self._notes = Spool(folder / SPOOL_FILE), Spool(folder / NOTES_FILE)
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        if uri is None:
            return
        self._take_over()
        self._thread.start()

    def _take_over(self) -> None:
        """Queue what an earlier process left unsent; sending a record twice leaves the store as it is."""
        known, done, facts = self.folder / RUNS_FILE, 0, None
        if known.exists():
            try:
                facts = json.loads(known.read_text())
            except ValueError:  # half a file
                self._unknown = True
        if facts:
            for note in self._notes.read(0):
                facts = {**facts, **note, "runs": facts["runs"] | note["runs"]}
            done = facts.get("acknowledged", 0)
            if facts["uri"] == self.uri:  # another store gets runs of its own
                self.runs, self.experiment_id = facts["runs"], facts["experiment"]
                self.earlier = frozenset(self.runs)
        left = self._spool.read(done)
        for record in left:
            self._pending.put(record)
        self._keep_runs()  # before the spool is cut: at worst records are sent twice
        self._notes.start([])
        self._spool.start(left)

    def _keep_runs(self) -> None:
        """Write down the ids of all runs, and that the spool is to be sent from its beginning."""
        facts = {"uri": self.uri, "experiment": self.experiment_id, "runs": self.runs, "acknowledged": 0}
        try:
            write_atomically(self.folder / RUNS_FILE, json.dumps(facts).encode())
        except OSError as error:
            self.problem = f"{self.folder / RUNS_FILE}: {error.strerror}"

    def _note(self, runs: Mapping[str, str]) -> None:
        """Remember the ids of new runs and how much of the spool is done."""
        self._notes.add({"experiment": self.experiment_id, "runs": dict(runs), "acknowledged": self._acknowledged})
        self.problem = self._notes.problem or self.problem

    def start_search(self, params: Mapping[str, str], space_yaml: str) -> None:
        """Open (or reopen) the parent run with the facts of the search."""
        self._put(
            "start", PARENT, name=self.name, tags={"hksd.search": self.name, "hksd.kind": "search"}, params=params
        )
        self._put("text", PARENT, file="space.yaml", text=space_yaml)

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
        self, status: str, metrics: Mapping[str, float], tags: Mapping[str, str], texts: Mapping[str, str]
    ) -> None:
        """Close the parent run with the final figures and files (name -> text)."""
        for file, text in texts.items():
            self._put("text", PARENT, file=file, text=text)
        self._put("metrics", PARENT, metrics=metrics, step=0)
        self._put("end", PARENT, status=status, tags=tags)

    def close(self) -> Sent:
        """Send what is left, for a limited time, and spool the rest."""
        if self.uri is None:
            return Sent(0, 0, None)
        self._deadline, self._limit = time.monotonic() + FLUSH_S, time.monotonic() + LONGEST_FLUSH_S
        self._pending.put(None)
        self._thread.join()
        self._keep_runs()
        self._notes.end([])
        self._spool.end(self._unsent)
        if self._spool.problem:
            self.problem = f"{self.problem}; and the spool cannot be written: {self._spool.problem}"
        return Sent(self.sent, len(self._unsent), self.problem if self._unsent else None)

    def _put(self, kind: str, run: str, **fields: Any) -> None:
        if self.uri is not None:
            record = {"kind": kind, "run": run, "time": int(time.time() * 1000), **fields}
            if kind == "start" and run == PARENT:
                self._opening = [record]
            self._spool.add(record)
            self._pending.put(record)

    def _work(self) -> None:
        files: list[dict[str, Any]] = []
        while (operation := self._pending.get()) is not None:
            if self._unsent:
                self._unsent.append(operation)  # records stay in order: after one is given up, all are spooled
            elif not self._deliver(operation, patient=operation["kind"] != "text"):
                # Files lie in another store than figures, and must not hold those up.
                (files if operation["kind"] == "text" else self._unsent).append(operation)
            self._acknowledged += 1
        self._unsent += [file for file in files if self._unsent or not self._deliver(file, patient=False)]

    def _deliver(self, operation: dict[str, Any], patient: bool) -> bool:
        """Send one record; when patient, try again until it is taken or time is up."""
        while time.monotonic() < self._deadline:
            try:
                self._client = self._client or self._connect()
                if self._lost:
                    self._fill_again(self._client)
                self._send(self._client, operation)
                self.sent += 1
                self._deadline = min(self._limit, max(self._deadline, time.monotonic() + FLUSH_S))
                return True
            except Exception as error:  # the store is another program's: whatever it raises, training goes on
                reason = reason_of(error, self.uri or "")
                if self.runs and refill.is_lost(error) and not self._lost:
                    log.warning(
                        "MLflow has lost the runs of this search; they are written again, as the study has them"
                    )
                    self._lost, self._client = True, None
                    continue
                if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
                    log.warning("MLflow refuses a record of run %s for good: %s", operation["run"], reason)
                    return True
                if self.problem != reason:
                    self.problem = reason
                    log.warning("MLflow cannot be written, records are kept and tried again: %s", reason)
                if not patient:
                    return False
                time.sleep(RETRY_S)
        self.problem = self.problem or "there was no time left"
        return False

    def _fill_again(self, client: Any) -> None:
        """Write all that the study knows to a store that has lost it."""
        if not self._opening:
            raise LookupError("the search has not begun")
        self.runs, self.earlier, now = {}, frozenset(), int(time.time() * 1000)
        self._told = set()
        told = list(refill.told_by_study(self.folder, self.name, now))
        for operation in [*self._opening, *told]:
            self._send(client, operation)
        self._lost, self._told = False, {(o["run"], o["step"]) for o in told if o["kind"] == "metrics"}

    def _connect(self) -> Any:
        quiet_environment()
        assert self.uri is not None
        if self._lost and self.uri.startswith(SQLITE):
            refill.make_tables(self.uri)
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=self.uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            self.experiment_id = experiment.experiment_id
            if self._unknown:
                self.runs = refill.find_runs(client, experiment.experiment_id, self.name, PARENT)
                self.earlier, self._unknown = frozenset(self.runs), False
        else:
            artifacts = None
            if self.uri.startswith(SQLITE):
                artifacts = (Path(self.uri.removeprefix(SQLITE)).parent / "mlflow-artifacts").as_uri()
            self.experiment_id = client.create_experiment(EXPERIMENT, artifact_location=artifacts)
        return client

    def _send(self, client: Any, operation: dict[str, Any]) -> None:
        """Write a record of the spool; its kinds are the methods below."""
        kind, run = operation["kind"], self.runs.get(operation["run"])
        if kind == "start":
            self._start_run(client, run, operation)
        elif run is None:
            log.warning("a record of run %s belongs to another MLflow store and is left out", operation["run"])
        else:
            write = {"metrics": self._write_metrics, "text": self._write_text, "end": self._end_run}[kind]
            write(client, run, operation)

    def _start_run(self, client: Any, run: str | None, operation: dict[str, Any]) -> None:
        """Make a run, or let one go on; its params and first metrics are written once."""
        from mlflow.entities import Metric, Param

        name, tags, at = operation["run"], operation["tags"], operation["time"]
        if run is None:
            parent = {} if name == PARENT else {"mlflow.parentRunId": self.runs[PARENT]}
            created = client.create_run(
                self.experiment_id, start_time=at, tags=tags | parent, run_name=operation["name"]
            )
            run = self.runs[name] = created.info.run_id
            self._note({name: run})
        else:
            client.update_run(run, status="RUNNING")
            for key, value in tags.items():
                client.set_tag(run, key, value)
        new = name not in self.earlier
        params = [Param(key, value[:6000]) for key, value in operation["params"].items() if new]
        metrics = [Metric(k, v, at, 0) for k, v in operation.get("metrics", {}).items() if new]
        for start in range(0, max(len(params), bool(metrics)), BATCH_PARAMS):
            client.log_batch(run, metrics, params[start : start + BATCH_PARAMS])
            metrics = []
        self.earlier |= {name}  # a trial that is tried again starts again

    def _write_metrics(self, client: Any, run: str, operation: dict[str, Any]) -> None:
        """One batch a step; one that may be repeated only if it is not there, an accuracy that was told only once."""
        from mlflow.entities import Metric

        step, at = operation["step"], operation["time"]
        if operation.get("once") and any(m.step == step for m in client.get_metric_history(run, "val/accuracy")):
            return
        told = (operation["run"], step) in self._told
        metrics = {k: v for k, v in operation["metrics"].items() if not (told and k == "val/accuracy")}
        client.log_batch(run, metrics=[Metric(k, float(v), at, step) for k, v in metrics.items()])

    def _write_text(self, client: Any, run: str, operation: dict[str, Any]) -> None:
        client.log_text(run, operation["text"], operation["file"])

    def _end_run(self, client: Any, run: str, operation: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        client.log_batch(run, tags=[RunTag(key, value) for key, value in operation["tags"].items()])
        client.set_terminated(run, operation["status"], end_time=operation["time"])
        self._note({})
