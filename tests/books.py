"""What three books say of a search: its study, the MLflow store and its folder; and that they say the same."""

from __future__ import annotations

from pathlib import Path

import optuna
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from hksd_search.study.records import STUDY_NAME, Record, open_storage, read_records
from hksd_search.tracking.tracker import EXPERIMENT


def states(folder: Path) -> dict[int, str]:
    """State of every trial, as Optuna (and its dashboard) reads the study."""
    study = optuna.load_study(study_name=STUDY_NAME, storage=open_storage(folder))
    return {trial.number: trial.state.name for trial in study.get_trials(deepcopy=False)}


def stored(uri: str, search: str) -> tuple[Run, dict[int, Run]]:
    """The parent run of a search, and its trials by number; fails on what is there twice."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    mine = [r for r in client.search_runs([experiment.experiment_id]) if r.data.tags["hksd.search"] == search]
    (parent,) = [run for run in mine if run.data.tags["hksd.kind"] == "search"]
    children = [run for run in mine if run.data.tags["hksd.kind"] == "trial"]
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children)
    by_number = {int(str(run.info.run_name).split()[0]): run for run in children}
    assert len(by_number) == len(children), "a trial has two runs"
    return parent, by_number


def epochs(uri: str, run: Run) -> list[int]:
    """Steps of the validation accuracy of a run."""
    points = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, "val/accuracy")
    return sorted(point.step for point in points)


class Facts:
    """What three books say of a search: its study, the store, its folder.

    Args:
        runs: folder of all searches.
        name: of the search.
        uri: the MLflow store; by default the one that a search without a server has.
    """

    def __init__(self, runs: Path, name: str, uri: str | None = None):
        self.folder, self.uri = runs / name, uri or f"sqlite:///{runs.resolve() / 'mlflow.db'}"
        self.records: list[Record] = read_records(self.folder)
        self.states = states(self.folder)
        self.parent, self.children = stored(self.uri, name)
        self.trained = [r for r in self.records if r.status not in ("rejected", "duplicate")]

    def epochs(self, number: int) -> list[int]:
        """Steps at which the store has a validation accuracy of a trial."""
        return epochs(self.uri, self.children[number])

    def must_agree(self) -> None:
        """The books name the same trials, with the same outcome, and nothing runs."""
        expected = {
            "complete": ("COMPLETE", "FINISHED"),
            "pruned": ("PRUNED", "KILLED"),
            "failed": ("FAIL", "FAILED"),
            "interrupted": ("WAITING", "KILLED"),
        }
        numbers = {record.number for record in self.trained}
        assert self.children.keys() == numbers
        assert {path.name for path in (self.folder / "trials").iterdir()} == {f"{number:03d}" for number in numbers}
        for record in self.trained:
            run = self.children[record.number]
            assert (self.states[record.number], run.info.status) == expected[record.status], record
            assert run.data.tags["hksd.status"] == record.status
            assert run.data.tags.get("hksd.reason") == record.reason
            assert run.data.tags.get("hksd.node", "") == ", ".join(record.nodes)
            assert self.epochs(record.number) == list(range(1, record.epoch + 1))
        for record in self.records:
            if record not in self.trained:
                assert self.states[record.number] == "PRUNED"
        assert self.parent.info.status != "RUNNING"
