"""The runs of one search in one store of MLflow: made, gone on with, restored, written again.

MLflow deletes by a mark. Whoever deletes an experiment or a run in the page while a search writes to it finds it
restored; what is gone for good (`mlflow gc`, a database that was deleted or put back from an old copy) is written again
from the study. Runs are found by their ids, and where those are not known, or not there, by the tags of the search.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from hksd.errors import UserError
from hksd_search.tracking import refill
from hksd_search.tracking.access import SQLITE, WEB, make_whole, quiet_environment, scheme_of, sqlite_file
from hksd_search.tracking.known import Known
from hksd_search.tracking.refill import PARENT_TAG, is_deleted

EXPERIMENT = "hksd"
PARENT = "search"

BATCH_PARAMS = 100  # MLflow takes at most that many parameters in a batch
MENDS = 3  # times in a row that a record is tried again at once, after something was restored
log = logging.getLogger(__name__)


class Store:
    """Writes records (see `hksd_search.tracking.tracker.Tracker`) of one search; used by one thread.

    Args:
        uri: the store.
        name: name of the search.
        study: folder of the search, of whose trials everything is written that the store lacks; None for nothing.
        note: called with the ids of runs that were made.
        before: the runs and their experiment, as far as they are known.
        new: nothing has to be looked for.
        expected: runs that the first records make.
    """

    def __init__(
        self,
        uri: str,
        name: str,
        study: Path | None,
        note: Callable[[Mapping[str, str]], None],
        before: Known,
        new: bool = False,
        expected: Collection[str] = (),
    ):
        self.uri, self.name, self.study, self.note = uri, name, study, note
        self.runs, self.experiment_id = dict(before.runs), before.experiment
        self.earlier: frozenset[str] = frozenset(self.runs)  # they have their params; MLflow forbids to change them
        self.opening: dict[str, Any] = {}  # what the run of the search begins with
        self.open_end = False  # the run of the search has not been ended
        self._client: Any = None
        self._agreed, self._expected = new, frozenset(expected)
        self._whole = before.fresh and not new  # runs that are there may lack something too
        self._empty = False  # there are no tables
        self._mends = 0
        self._told: set[tuple[str, int]] = set()  # run and epoch of the accuracies that the study told it

    def connect(self) -> None:
        """Get ready to write: find the experiment and see that all runs are there; at once where that was done.

        Whatever MLflow raises is about the store as it stands, and says nothing of a record.
        """
        if self._client is None:
            quiet_environment()
            if self.uri.startswith(SQLITE):
                sqlite_file(self.uri).parent.mkdir(parents=True, exist_ok=True)
                if self._empty:
                    refill.make_tables(self.uri)
                else:
                    make_whole(self.uri)
            from mlflow.tracking import MlflowClient

            client = MlflowClient(tracking_uri=self.uri)
            self.experiment_id = self._experiment(client)
            self._client = client
        if not self._agreed:
            self._agree(self._client)
            self._agreed, self._empty, self._whole, self._expected = True, False, False, frozenset()

    def write(self, record: Mapping[str, Any]) -> None:
        """Write a record; its kinds are the methods below, and one to `look` whether all is there."""
        if record["kind"] != "look":
            self._write(record)
        self._mends = 0

    def _write(self, record: Mapping[str, Any]) -> None:
        kind, name = record["kind"], record["run"]
        if kind == "start":
            self._start_run(record)
        else:
            write = {"metrics": self._write_metrics, "text": self._write_text, "end": self._end_run}[kind]
            write(self.runs.get(name) or self._make(name), record)

    def mend(self, error: Exception) -> bool:
        """Whether a fault was one of a store that has deleted or lost something, so that another try may help."""
        empty = refill.has_no_tables(error)
        if self._mends >= MENDS or not self._says(error) or not (empty or refill.is_gone(error) or is_deleted(error)):
            return False
        if not is_deleted(error) and not self._whole:
            log.warning("MLflow has lost runs of this search; they are written again, as the study has them")
            self._whole = True
        self._empty |= empty
        self._mends += 1
        self._client, self._agreed = None, False
        return True

    def refuses(self, error: Exception) -> bool:
        """Whether MLflow refuses a record for what stands in it, so that it would again."""
        return getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE" and self._says(error)

    def _says(self, error: Exception) -> bool:
        """Whether an error is an answer of MLflow; a proxy, say, answers with the same numbers."""
        return scheme_of(self.uri) not in WEB or type(error).__name__ == "RestException"

    # --- what is there

    def _experiment(self, client: Any) -> str:
        """Id of our experiment, which may bear another name by now; restored, or made."""
        found = None
        if self.experiment_id:
            try:
                found = client.get_experiment(self.experiment_id)
            except Exception as error:
                if not (refill.is_gone(error) and self._says(error)):
                    raise
            # A store that was made anew gives old numbers to others.
            if found is not None and found.name != EXPERIMENT and not self._ours(client, [self.experiment_id], 1):
                found = None
        found = found or client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            artifacts = None
            if self.uri.startswith(SQLITE):
                artifacts = (sqlite_file(self.uri).parent / "mlflow-artifacts").as_uri()
            return str(client.create_experiment(EXPERIMENT, artifact_location=artifacts))
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
            log.warning("the MLflow experiment %s had been deleted; it is restored with its runs", found.name)
        return str(found.experiment_id)

    def _ours(self, client: Any, experiments: list[str], at_most: int = 0, deleted: bool = False) -> list[Any]:
        return refill.find_runs(client, experiments, self.name, at_most, deleted)

    def _agree(self, client: Any) -> None:
        """See which of our runs are there, restore what was deleted, and write again what is gone."""
        study = self._study()
        found = refill.ours(self._ours(client, [str(self.experiment_id)]), self.runs, study, PARENT)
        deleted = [run for run in found.values() if run.info.lifecycle_stage == "deleted"]
        for run in deleted:
            client.restore_run(run.info.run_id)
        if deleted:
            names = ", ".join(str(run.info.run_name) for run in deleted[:2])
            log.warning("%d run(s) had been deleted in MLflow (%s); they are restored", len(deleted), names)
        gone = self.runs.keys() - found.keys()
        if gone and not self._whole:
            log.warning("MLflow has lost %d run(s) of this search; they are written again", len(gone))
        whole = self._whole or bool(gone)
        self.runs = {name: run.info.run_id for name, run in found.items()}
        self.earlier = frozenset(name for name, run in found.items() if run.data.params)
        if PARENT in found:
            self.open_end = found[PARENT].info.status == "RUNNING"
        elif PARENT not in self._expected:
            self._start_run(self._opening())
        if parent := self.runs.get(PARENT):
            for name, run in found.items():
                if name != PARENT and run.data.tags.get(PARENT_TAG) != parent:
                    client.set_tag(run.info.run_id, PARENT_TAG, parent)
        for records in study.values():
            self._complete(records, found.get(records[0]["run"]), whole)
        self.note(self.runs)

    def _complete(self, records: list[dict[str, Any]], run: Any, whole: bool) -> None:
        """Write what the study has of a trial: all where it has no run, what is missing of it where `whole`."""
        name = records[0]["run"]
        if run is None and name not in self._expected:
            self._tell(records)
        elif run is not None and whole:
            points = self._client.get_metric_history(run.info.run_id, "val/accuracy")
            there = {point.step for point in points}
            self._tell(r for r in records if r["kind"] == "metrics" and r["step"] not in there)
            self._tell(r for r in records if r["kind"] == "end" and r["status"] != run.info.status)

    def _tell(self, records: Any) -> None:
        for record in records:
            self._write(record)
            if record["kind"] == "metrics":
                self._told.add((record["run"], record["step"]))

    def _study(self) -> dict[str, list[dict[str, Any]]]:
        """The records of each trial as the study has them; none where there is no study."""
        if self.study is None:
            return {}
        try:
            return refill.told_by_study(self.study, self.name, int(time.time() * 1000))
        except UserError:
            return {}

    def _opening(self) -> dict[str, Any]:
        tags = {"hksd.search": self.name, "hksd.kind": "search"}
        now = int(time.time() * 1000)
        plain = {"kind": "start", "run": PARENT, "time": now, "name": self.name, "tags": tags, "params": {}}
        return self.opening or plain

    def _make(self, name: str) -> str:
        """Make a run that a record belongs to and nobody has begun."""
        if name == PARENT:
            self._start_run(self._opening())
        elif records := self._study().get(name):
            self._tell(records)
        else:
            tags = {"hksd.search": self.name, "hksd.kind": "trial" if name.isdigit() else name}
            label, now = f"{int(name):03d}" if name.isdigit() else name, int(time.time() * 1000)
            self._start_run({"run": name, "time": now, "name": label, "tags": tags, "params": {}})
        return self.runs[name]

    # --- the kinds of records

    def _start_run(self, record: Mapping[str, Any]) -> None:
        """Make a run, or let one go on; its params and first metrics are written once."""
        from mlflow.entities import Metric, Param

        client, name, tags, at = self._client, record["run"], record["tags"], record["time"]
        run = self.runs.get(name)
        if run is None:
            parent = {} if name == PARENT else {PARENT_TAG: self.runs.get(PARENT) or self._make(PARENT)}
            made = client.create_run(self.experiment_id, start_time=at, tags=tags | parent, run_name=record["name"])
            run = self.runs[name] = made.info.run_id
            self.note({name: run})
        else:
            client.update_run(run, status="RUNNING")
            for key, value in tags.items():
                client.set_tag(run, key, value)
        self.open_end |= name == PARENT
        new = name not in self.earlier
        params = [Param(key, value[:6000]) for key, value in record["params"].items() if new]
        metrics = [Metric(k, v, at, 0) for k, v in record.get("metrics", {}).items() if new]
        for start in range(0, max(len(params), bool(metrics)), BATCH_PARAMS):
            client.log_batch(run, metrics, params[start : start + BATCH_PARAMS])
            metrics = []
        if params:
            self.earlier |= {name}  # a trial that is tried again starts again

    def _write_metrics(self, run: str, record: Mapping[str, Any]) -> None:
        """One batch a step; one that may be repeated only if it is not there, an accuracy that was told only once."""
        from mlflow.entities import Metric

        step, at = record["step"], record["time"]
        if record.get("once") and any(m.step == step for m in self._client.get_metric_history(run, "val/accuracy")):
            return
        told = (record["run"], step) in self._told
        metrics = {k: v for k, v in record["metrics"].items() if not (told and k == "val/accuracy")}
        self._client.log_batch(run, metrics=[Metric(k, float(v), at, step) for k, v in metrics.items()])

    def _write_text(self, run: str, record: Mapping[str, Any]) -> None:
        self._client.log_text(run, record["text"], record["file"])

    def _end_run(self, run: str, record: Mapping[str, Any]) -> None:
        from mlflow.entities import RunTag

        if record["run"] == PARENT:  # the last moment to see what was deleted meanwhile
            ids = set(self.runs.values())
            if any(one.info.run_id in ids for one in self._ours(self._client, [str(self.experiment_id)], 0, True)):
                self._agree(self._client)
        self._client.log_batch(run, tags=[RunTag(key, value) for key, value in record["tags"].items()])
        self._client.set_terminated(run, record["status"], end_time=record["time"])
        self.open_end &= record["run"] != PARENT
        self.note({})
