"""A tracking store that is locked, deleted or forgets: nothing of the search is lost there, and nothing is doubled."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from hksd_search.ledger import Events, Ledger
from hksd_search.study.records import Record, read_records
from hksd_search.tracking import access, refill, sender
from hksd_search.tracking.facts import STATUS
from hksd_search.tracking.tracker import EXPERIMENT, Tracker

Make = Callable[..., Any]
LOCKS = """
import sqlite3, sys, time
base = sqlite3.connect(sys.argv[1], isolation_level=None)
base.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(300)
"""


@pytest.fixture
def begin(
    make_space: Make, open_ledger: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_stores: None
) -> Make:
    """begin(): a ledger and a tracker that hears of its trials; a later call goes on with the same search."""
    monkeypatch.setattr(sender, "RETRY_S", 0.1)

    def go() -> tuple[Ledger, Tracker]:
        tracker = Tracker(access.store_uri(None, tmp_path), tmp_path, "first")
        tracker.start_search({"space": "small"}, "x")
        events = Events([tracker.start_trial], [tracker.epoch], [tracker.end_trial])
        return open_ledger(make_space(search={"trials": 5, "arms": "none"}), events), tracker

    return go


def sent(tracker: Tracker) -> None:
    """Wait until the tracker has nothing to send."""
    while not tracker.idle:
        time.sleep(0.05)
    time.sleep(0.3)


def must_agree(folder: Path) -> None:
    """The store has each trial of the study once, with its status, accuracies and parameters."""
    client = MlflowClient(tracking_uri=access.store_uri(None, folder))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs: list[Run] = list(client.search_runs([experiment.experiment_id]))
    by_number = {int(run.info.run_name.split()[0]): run for run in runs if run.info.run_name != "first"}
    records = [record for record in read_records(folder) if record.status not in ("duplicate", "rejected")]
    assert len(runs) == len(records) + 1
    for record in records:
        run = by_number[record.number]
        assert run.info.status == STATUS[record.status]
        assert run.data.tags["hksd.status"] == record.status
        assert "train.lr" in run.data.params
        history = client.get_metric_history(run.info.run_id, "val/accuracy")
        assert {point.step: point.value for point in history} == record.accuracies
        assert len(history) == len(record.accuracies)


def finish(ledger: Ledger, tracker: Tracker, train: Make) -> None:
    while (assignment := ledger.next()) is not None:
        train(ledger, assignment, (0.1, 0.2, 0.3))
    tracker.end_search("FINISHED", {"trials/complete": 5.0}, {}, {})
    assert tracker.close().unsent == 0


def test_a_store_that_another_process_locks_for_a_while_gets_everything_once(
    begin: Make, train: Make, child: Make, tmp_path: Path
) -> None:
    ledger, tracker = begin()
    train(ledger, ledger.next(), (0.1, 0.2, 0.3))
    sent(tracker)
    process = child(LOCKS, tmp_path / "mlflow.db")
    assert process.stdout.readline() == "locked\n"
    train(ledger, ledger.next(), (0.4, 0.5, 0.6))
    time.sleep(6)  # SQLite itself waits for 5 s
    process.kill()
    process.communicate()
    finish(ledger, tracker, train)
    must_agree(tmp_path)


@pytest.mark.parametrize("copy", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["deleted", "old copy"])
def test_a_store_that_is_lost_in_the_middle_of_a_search_is_filled_again_from_the_study(
    copy: bool, begin: Make, train: Make, tmp_path: Path
) -> None:
    store, old = tmp_path / "mlflow.db", tmp_path / "old.db"
    if copy:  # one that knows nothing of the search
        MlflowClient(tracking_uri=f"sqlite:///{old}").search_experiments()
    ledger, tracker = begin()
    train(ledger, ledger.next(), (0.1, 0.2, 0.3))
    train(ledger, ledger.next(), (0.4, 0.5), "it broke")
    running = ledger.next()
    sent(tracker)
    store.unlink()
    if copy:
        shutil.copy(old, store)
    train(ledger, running, (0.7, 0.8, 0.9))
    finish(ledger, tracker, train)
    must_agree(tmp_path)


def test_a_store_that_was_deleted_between_two_sessions_is_filled_again_too(
    begin: Make, train: Make, tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The test above makes the tables as a search does, which takes seconds.
    monkeypatch.setattr(refill, "make_tables", lambda uri: shutil.copy(empty_store, tmp_path / "mlflow.db"))
    ledger, tracker = begin()
    train(ledger, ledger.next(), (0.1, 0.2, 0.3))
    ledger.next()
    ledger.interrupt()
    tracker.end_search("KILLED", {}, {}, {})
    assert tracker.close().unsent == 0
    (tmp_path / "mlflow.db").unlink()
    finish(*begin(), train)
    must_agree(tmp_path)


def test_an_epoch_that_ends_while_the_store_is_filled_again_is_there_once(
    begin: Make, train: Make, tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refill, "make_tables", lambda uri: shutil.copy(empty_store, tmp_path / "mlflow.db"))
    asked, ended = threading.Event(), threading.Event()

    def read_later(folder: Path) -> list[Record]:
        asked.set()
        assert ended.wait(20)
        return read_records(folder)

    ledger, tracker = begin()
    sent(tracker)
    monkeypatch.setattr(refill, "read_records", read_later)
    (tmp_path / "mlflow.db").unlink()
    assignment = ledger.next()
    assert asked.wait(20)
    time.sleep(0.01)  # no epoch bears the time of the question
    train(ledger, assignment, (0.1, 0.2, 0.3))
    ended.set()
    finish(ledger, tracker, train)
    must_agree(tmp_path)


def test_a_clock_that_is_set_back_changes_nothing(
    begin: Make, train: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count(1_900_000_000, -60)
    monkeypatch.setattr(sender.time, "time", lambda: float(next(now)))
    ledger, tracker = begin()
    train(ledger, ledger.next(), (0.1, 0.2, 0.3))
    ledger.next()
    ledger.interrupt()
    tracker.end_search("KILLED", {}, {}, {})
    assert tracker.close().unsent == 0
    finish(*begin(), train)
    must_agree(tmp_path)
