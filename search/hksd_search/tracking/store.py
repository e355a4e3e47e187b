"""The runs of one search in one store of MLflow: made, gone on with, restored, written again.

MLflow deletes by a mark. Whoever deletes an experiment or a run in the page while a search writes to it finds it
restored; what is gone for good (`mlflow gc`, a database that was deleted or put back from an old copy) is written again
from the study. Runs are found by their ids, and where those are not known, or not there, by the tags of the search.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hksd.errors import UserError
from hksd_search.tracking import refill
from hksd_search.tracking.access import SQLITE, WEB, make_whole, quiet_environment, scheme_of, sqlite_file
from hksd_search.tracking.batch import Batch
from hksd_search.tracking.facts import ACCURACY
from hksd_search.tracking.known import Known
from hksd_search.tracking.refill import PARENT_TAG, is_deleted

EXPERIMENT = "hksd"
PARENT = "search"

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
        self._unanswered: set[str] = set()  # runs that were asked for, and may be there

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

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write records of one run, in order, in as few calls as can be; once more leaves the store as it is.

        Their kinds are the methods below, and one to `look` whether all is there.
        """
        if records[0]["kind"] != "look":
            self._write(records)
        self._mends = 0

    def _write(self, records: Sequence[Mapping[str, Any]], told: bool = False) -> None:
        name, batch = records[0]["run"], Batch(told=told)
        kinds = {"start": self._start_run, "metrics": self._add_metrics, "tags": self._add_tags}
        kinds |= {"text": self._write_text, "end": self._end_run}
        for record in records:
            if record["kind"] != "start" and name not in self.runs:
                self._make(name)
            kinds[record["kind"]](record, batch)
        self._send(name, batch)

    def _send(self, name: str, batch: Batch) -> None:
        """Send what was gathered of a run."""
        steps = {metric.step for metric in batch.metrics if metric.key == ACCURACY}
        begins = bool(batch.params)
        batch.send(self._client, self.runs[name])
        if begins:
            self.earlier |= {name}  # a trial that is tried again starts again
        if batch.told:
            self._told |= {(name, step) for step in steps}

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
        self._whole |= bool(gone)  # also where this is not finished, and begun again
        self.runs = {name: run.info.run_id for name, run in found.items()}
        self.earlier = frozenset(name for name, run in found.items() if run.data.params)
        if PARENT in found:
            self.open_end = found[PARENT].info.status == "RUNNING"
        elif PARENT not in self._expected:
            self._write([self._opening()])
        if parent := self.runs.get(PARENT):
            for name, run in found.items():
                if name != PARENT and run.data.tags.get(PARENT_TAG) != parent:
                    client.set_tag(run.info.run_id, PARENT_TAG, parent)
        for records in study.values():
            self._complete(records, found.get(records[0]["run"]))
        self.note(self.runs)

    def _complete(self, records: list[dict[str, Any]], run: Any) -> None:
        """Write what the study has of a trial: all where it has no run, else what its run may lack."""
        name = records[0]["run"]
        if run is None and name not in self._expected:
            self._write(records, told=True)
        elif run is not None and self._whole:
            there = self._steps(run.info.run_id)
            missing = [r for r in records if r["kind"] == "metrics" and r["step"] not in there]
            missing += [r for r in records if r["kind"] == "end" and r["status"] != run.info.status]
            if missing:
                self._write(missing, told=True)

    def _steps(self, run: str) -> set[int]:
        """Epochs whose accuracy a run has."""
        return {point.step for point in self._client.get_metric_history(run, ACCURACY)}

    def _study(self) -> dict[str, list[dict[str, Any]]]:
        """The records of each trial as the study has them; none where there is no study."""
        if self.study is None:
            return {}
        try:
            return refill.told_by_study(self.study, self.name, int(time.time() * 1000))
        except UserError:
            return {}

    def _opening(self) -> dict[str, Any]:
        return self.opening or _start(PARENT, self.name, {"hksd.search": self.name, "hksd.kind": "search"})

    def _make(self, name: str) -> None:
        """Make a run that a record belongs to and nobody has begun."""
        if name == PARENT:
            self._write([self._opening()])
        elif records := self._study().get(name):
            self._write(records, told=True)
        else:
            label, kind = (f"{int(name):03d}", "trial") if name.isdigit() else (name, name)
            self._write([_start(name, label, {"hksd.search": self.name, "hksd.kind": kind})])

    # --- the kinds of records

    def _start_run(self, record: Mapping[str, Any], batch: Batch) -> None:
        """Make a run, or let one go on; its params and first metrics are written once."""
        from mlflow.entities import Metric

        name, at = record["run"], record["time"]
        if name in self.runs:
            self._send(name, batch)  # what came before
            self._client.update_run(self.runs[name], status="RUNNING")
            batch.tags |= record["tags"]
        else:
            self.runs[name] = self._create(record)
            self.note({name: self.runs[name]})
        self.open_end |= name == PARENT
        if name not in self.earlier:
            batch.params |= record["params"]
            batch.metrics += [Metric(key, value, at, 0) for key, value in record.get("metrics", {}).items()]

    def _create(self, record: Mapping[str, Any]) -> str:
        """Make a run that is not there. Where nobody answered when it was asked for before, it may be: see first."""
        name, tags = record["run"], record["tags"]
        if name != PARENT:
            if PARENT not in self.runs:
                self._make(PARENT)
            tags = tags | {PARENT_TAG: self.runs[PARENT]}
        client, at = self._client, record["time"]
        made = refill.made(client, str(self.experiment_id), tags, at) if name in self._unanswered else None
        self._unanswered.add(name)  # until the answer is here
        made = made or client.create_run(self.experiment_id, start_time=at, tags=tags, run_name=record["name"])
        self._unanswered.discard(name)
        return str(made.info.run_id)

    def _add_metrics(self, record: Mapping[str, Any], batch: Batch) -> None:
        """The values of a step; of one that may be repeated only if it is not there, an accuracy told only once."""
        from mlflow.entities import Metric

        name, step, at = record["run"], record["step"], record["time"]
        if record.get("once") and batch.has(step, lambda: self._steps(self.runs[name])):
            return
        batch.steps.add(step)
        told = (name, step) in self._told
        values = {key: float(value) for key, value in record["metrics"].items() if not (told and key == ACCURACY)}
        batch.metrics += [Metric(key, value, at, step) for key, value in values.items()]

    def _add_tags(self, record: Mapping[str, Any], batch: Batch) -> None:
        batch.tags |= record["tags"]

    def _write_text(self, record: Mapping[str, Any], batch: Batch) -> None:
        self._send(record["run"], batch)
        self._client.log_text(self.runs[record["run"]], record["text"], record["file"])

    def _end_run(self, record: Mapping[str, Any], batch: Batch) -> None:
        name = record["run"]
        if name == PARENT:  # the last moment to see what was deleted meanwhile
            ids = set(self.runs.values())
            if any(one.info.run_id in ids for one in self._ours(self._client, [str(self.experiment_id)], 0, True)):
                self._agree(self._client)
        batch.tags |= record["tags"]
        self._send(name, batch)
        self._client.set_terminated(self.runs[name], record["status"], end_time=record["time"])
        self.open_end &= name != PARENT
        self.note({})


def _start(run: str, name: str, tags: dict[str, str]) -> dict[str, Any]:
    """A record that makes a run of which nothing else is known."""
    return {"kind": "start", "run": run, "time": int(time.time() * 1000), "name": name, "tags": tags, "params": {}}
