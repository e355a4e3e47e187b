"""A small space, and what trains its trials without training: reports that a test makes up."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from hksd.config.run import RunConfig, dump
from hksd_search.ledger import Events, Ledger
from hksd_search.space import space as spaces
from hksd_search.space.sizes import Meter, check_feasible
from hksd_search.space.space import Space
from hksd_search.study.records import Assignment, Record, Status

SHAPE = {"in_channels": 1, "classes": 10, "image_size": 8}
BASE: Mapping[str, Any] = {
    "data": {"name": "digits"},
    "teacher": {"model": "resnet8", "width": 0.25, "epochs": 1},
    "student": {"model": {"choice": ["resnet8", "resnet14"]}, "width": {"choice": [0.25, 0.5]}},
    "terms": {
        "ce": {"weight": 1.0},
        "kd": {"weight": {"log_uniform": [0.1, 10], "off": 0.3}, "temperature": {"uniform": [1, 8]}},
    },
    "train": {"epochs": 3, "lr": {"log_uniform": [0.01, 0.3]}},
    "search": {"trials": 8, "sampler": "random"},
}

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="session")
def shape() -> dict[str, int]:
    """What `hksd.models.size.size_of` needs to know of digits."""
    return dict(SHAPE)


@pytest.fixture(scope="session")
def space_text() -> Callable[..., str]:
    """space_text(train={...}, terms={...}): a small space as YAML.

    Sections are merged into the small defaults; `terms` is taken as it is; a section given as None is left out.
    """

    def make(**sections: Any) -> str:
        tree: dict[str, Any] = {}
        for name, defaults in BASE.items():
            given = sections.get(name, {})
            if given is not None:
                tree[name] = given if name == "terms" and name in sections else {**defaults, **given}
        return yaml.safe_dump(tree, sort_keys=False)

    return make


@pytest.fixture(scope="session")
def make_space(space_text: Callable[..., str]) -> Callable[..., Space]:
    """Like `space_text`, as a space."""
    return lambda **sections: spaces.loads(space_text(**sections), "small", "small.yaml")


@pytest.fixture
def quick_stores(empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow fills a new SQLite file of this process with the tables of `empty_store`, not one migration at a time."""
    import mlflow.store.db.utils as stores

    def fill(engine: Any) -> None:
        with engine.begin() as there, closing(sqlite3.connect(empty_store)) as ready:
            ready.backup(there.connection.driver_connection)

    monkeypatch.setattr(stores, "_initialize_tables", fill)


@pytest.fixture
def open_ledger(tmp_path: Path, shape: dict[str, int]) -> Callable[..., Ledger]:
    """open_ledger(space, events): a ledger over the journal of this test; a second call opens the same study."""

    def make(space: Space, events: Events | None = None, folder: Path = tmp_path) -> Ledger:
        return Ledger(space, folder, Meter(shape), check_feasible(space, Meter(shape)), events)

    return make


@pytest.fixture(scope="session")
def epoch_report() -> Callable[..., dict[str, Any]]:
    """epoch_report(epoch, accuracy): the fields of `hksd.run.outcome.EpochReport`, made up."""

    def make(epoch: int, accuracy: float = 0.5, epochs: int = 3, seconds: float = 2.0) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "epochs": epochs,
            "val_accuracy": accuracy,
            "val_loss": 1.5,
            "train_accuracy": 0.4,
            "train_loss": 2.0,
            "terms": {"ce": 1.25},
            "diagnostics": {"adversarial/discriminator_loss": 0.75},
            "lr": 0.1,
            "seconds": seconds,
            "images_per_s": 100.0,
        }

    return make


@pytest.fixture(scope="session")
def train(epoch_report: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """train(ledger, assignment, accuracies, reason): report one epoch per accuracy, then end the trial."""

    def go(ledger: Ledger, assignment: Assignment, accuracies: tuple[float, ...], reason: str | None = None) -> None:
        for epoch, accuracy in enumerate(accuracies, 1):
            ledger.report(assignment.number, epoch_report(epoch, accuracy))
        ledger.finish(assignment.number, reason)

    return go


@pytest.fixture(scope="session")
def small_config(make_config: Callable[..., RunConfig]) -> RunConfig:
    return make_config(terms={"ce": {}, "kd": {"weight": 0.5}}, student={"model": "resnet8", "width": 0.5})


@pytest.fixture(scope="session")
def trial(small_config: RunConfig, shape: dict[str, int]) -> Callable[..., Assignment]:
    """trial(number, arm): something to train."""
    costs = Meter(shape).costs(small_config.student)
    return lambda number, arm=None, resumed=False: Assignment(number, small_config, arm, costs, resumed)


@pytest.fixture(scope="session")
def ended(small_config: RunConfig) -> Callable[..., Record]:
    """ended(number, status, reason): how a trial ended."""

    def make(number: int, status: Status = "complete", reason: str | None = None) -> Record:
        return Record(number, status, None, dump(small_config), {"params": 1, "mflops": 1.0}, 3, 0.5, 6.0, reason)

    return make
