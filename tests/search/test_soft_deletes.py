"""What people delete or rename in the page of MLflow while a search writes to it: nothing of the search is missing."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run, ViewType
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from werkzeug.serving import make_server

from hksd_search.ledger import Events, Ledger
from hksd_search.study.records import read_records
from hksd_search.tracking import access, sender
from hksd_search.tracking.facts import STATUS
from hksd_search.tracking.tracker import EXPERIMENT, RUNS_FILE, Tracker

Make = Callable[..., Any]
SERVER = pytest.param("server", marks=pytest.mark.slow)  # every call goes over HTTP
KINDS = ["sqlite", SERVER]


@pytest.fixture(scope="module")
def served(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """MLflow's server on loopback and the database below it, which all tests of the module share."""
    from mlflow.server import app, constants, handlers

    place = tmp_path_factory.mktemp("server")
    base = Path(shutil.copy(empty_store, place / "mlflow.db"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "_tracking_store", None)
        patch.setenv(constants.BACKEND_STORE_URI_ENV_VAR, f"sqlite:///{base}")
        patch.setenv(constants.ARTIFACTS_DESTINATION_ENV_VAR, str(place / "artifacts"))
        patch.setenv(constants.ARTIFACT_ROOT_ENV_VAR, "mlflow-artifacts:/")
        patch.setenv(constants.SERVE_ARTIFACTS_ENV_VAR, "true")
        server = make_server("127.0.0.1", 0, app, threaded=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", base
        server.shutdown()
        server.server_close()


class Page:
    """A store as a person sees it, and one search in it."""

    def __init__(self, uri: str, base: Path, name: str):
        self.uri, self.base, self.name = uri, base, name
        self.client = MlflowClient(tracking_uri=uri)

    def experiment(self) -> str:
        (found,) = [
            one.experiment_id
            for one in self.client.search_experiments(ViewType.ALL)
            if self.client.search_runs([one.experiment_id], f"tags.`hksd.search` = '{self.name}'", ViewType.ALL)
        ]
        return str(found)

    def runs(self) -> list[Run]:
        return list(self.client.search_runs([self.experiment()], f"tags.`hksd.search` = '{self.name}'"))

    def parent(self) -> Run:
        (found,) = [run for run in self.runs() if run.data.tags["hksd.kind"] == "search"]
        return found

    def trial(self, number: int) -> Run:
        (found,) = [run for run in self.runs() if run.data.tags.get("hksd.trial") == str(number)]
        return found

    def purge(self, *runs: Run, experiment: str | None = None) -> None:
        """What `mlflow gc` does."""
        store = SqlAlchemyStore(f"sqlite:///{self.base}", "unused")
        for run in runs:
            if self.client.get_run(run.info.run_id).info.lifecycle_stage == "active":
                self.client.delete_run(run.info.run_id)
            store._hard_delete_run(run.info.run_id)
        if experiment:
            store._hard_delete_experiment(experiment)


@pytest.fixture
def page(request: pytest.FixtureRequest, empty_store: Path, tmp_path: Path) -> Iterator[Page]:
    if request.param == "sqlite":
        base = Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))
        yield Page(access.store_uri(None, tmp_path), base, "first")
        return
    uri, base = request.getfixturevalue("served")
    page = Page(uri, base, tmp_path.name.replace("_", "-"))
    yield page
    for one in page.client.search_experiments():
        if one.experiment_id != "0":  # the next test begins with none
            page.client.delete_experiment(one.experiment_id)
            page.purge(*page.client.search_runs([one.experiment_id], run_view_type=ViewType.ALL))
            page.purge(experiment=one.experiment_id)


Begin = Callable[[], tuple[Ledger, Tracker]]


@pytest.fixture
def begin(
    page: Page, make_space: Make, open_ledger: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Begin]:
    """begin(): a ledger and a tracker that hears of its trials; a later call goes on with the same search."""
    monkeypatch.setattr(sender, "RETRY_S", 0.1)
    folder = tmp_path / "search"
    folder.mkdir()
    trackers: list[Tracker] = []

    def go() -> tuple[Ledger, Tracker]:
        tracker = Tracker(page.uri, folder, page.name)
        trackers.append(tracker)
        tracker.start_search({"space": "small"}, "x")
        events = Events([tracker.start_trial], [tracker.epoch], [tracker.end_trial])
        return open_ledger(make_space(search={"trials": 3, "arms": "none"}), events, folder), tracker

    yield go
    assert all(t._sender and not t._sender.thread.is_alive() for t in trackers), "a thread is left"


def sent(tracker: Tracker) -> None:
    """Wait until the tracker has nothing to send."""
    deadline = threading.Event()
    for _ in range(600):
        if tracker.idle:
            return
        deadline.wait(0.05)
    raise AssertionError("it is not sent")


def finish(ledger: Ledger, tracker: Tracker, train: Make) -> None:
    while (assignment := ledger.next()) is not None:
        train(ledger, assignment, (0.1, 0.2, 0.3))
    tracker.end_search("FINISHED", {"trials/complete": 3.0}, {"hksd.status": "complete"}, {"trials.csv": "a"})
    outcome = tracker.close()
    assert (outcome.unsent, outcome.problem) == (0, None)


def must_agree(page: Page, folder: Path) -> None:
    """The store shows the search and each trial of the study once, whole, with its figures."""
    records = [record for record in read_records(folder) if record.status not in ("duplicate", "rejected")]
    parent = page.parent()
    assert parent.info.status == "FINISHED"
    assert parent.data.params["space"] == "small"
    assert len(page.runs()) == len(records) + 1
    for record in records:
        run = page.trial(record.number)
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == STATUS[record.status]
        assert run.data.params["train.epochs"] == "3"
        history = page.client.get_metric_history(run.info.run_id, "val/accuracy")
        assert sorted((point.step, point.value) for point in history) == sorted(record.accuracies.items())


def delete_experiment(page: Page) -> None:
    page.client.delete_experiment(page.experiment())


def delete_parent(page: Page) -> None:
    page.client.delete_run(page.parent().info.run_id)


def delete_trial_that_has_ended(page: Page) -> None:
    page.client.delete_run(page.trial(0).info.run_id)


def delete_trial_that_runs(page: Page) -> None:
    page.client.delete_run(page.trial(1).info.run_id)


def delete_all_runs(page: Page) -> None:
    for run in page.runs():
        page.client.delete_run(run.info.run_id)


def rename_experiment(page: Page) -> None:
    page.client.rename_experiment(page.experiment(), f"renamed {page.name}")


def rename_and_make_another(page: Page) -> None:
    rename_experiment(page)
    page.client.create_experiment(EXPERIMENT)


def purge_trial(page: Page) -> None:
    page.purge(page.trial(1))


def purge_parent(page: Page) -> None:
    page.purge(page.parent())


def purge_experiment(page: Page) -> None:
    experiment, runs = page.experiment(), page.runs()
    page.client.delete_experiment(experiment)
    page.purge(*runs)
    page.purge(experiment=experiment)


ACTS = [
    (delete_experiment, "restored with its runs"),
    (delete_parent, "restored"),
    (delete_trial_that_has_ended, "restored"),
    (delete_trial_that_runs, "restored"),
    (delete_all_runs, "restored"),
    (rename_experiment, ""),
    (rename_and_make_another, ""),
    (purge_trial, "written again"),
    (purge_parent, "written again"),
    (purge_experiment, "written again"),
]


@pytest.mark.parametrize("page", KINDS, indirect=True)
@pytest.mark.parametrize(("act", "said"), ACTS, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_deleted_under_a_running_search_is_there_at_its_end(
    act: Callable[[Page], None],
    said: str,
    page: Page,
    begin: Begin,
    train: Make,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger, tracker = begin()
    train(ledger, ledger.next(), (0.1, 0.2, 0.3))
    running = ledger.next()
    sent(tracker)
    act(page)
    train(ledger, running, (0.4, 0.5, 0.6))
    finish(ledger, tracker, train)
    must_agree(page, tmp_path / "search")
    assert said in caplog.text
    assert "refuses" not in caplog.text
    assert sum("restored" in line or "written again" in line for line in caplog.messages) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("page", KINDS, indirect=True)
@pytest.mark.parametrize(("act", "said"), ACTS, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_deleted_between_two_sessions_is_there_at_the_end(
    act: Callable[[Page], None],
    said: str,
    page: Page,
    begin: Begin,
    train: Make,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger, tracker = begin()
    train(ledger, ledger.next(), (0.1, 0.2, 0.3))
    ledger.next()
    ledger.interrupt()
    tracker.end_search("KILLED", {}, {}, {})
    assert tracker.close().unsent == 0
    act(page)
    finish(*begin(), train)
    must_agree(page, tmp_path / "search")
    assert said in caplog.text
    assert "refuses" not in caplog.text


@pytest.mark.parametrize("page", ["sqlite", "server"], indirect=True)
def test_an_experiment_that_was_deleted_before_the_search_is_restored(
    page: Page, begin: Begin, train: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    artifacts = (tmp_path / "artifacts").as_uri() if page.uri.startswith("sqlite") else None
    page.client.delete_experiment(page.client.create_experiment(EXPERIMENT, artifact_location=artifacts))
    finish(*begin(), train)
    must_agree(page, tmp_path / "search")
    assert caplog.text.count("had been deleted") == 1


@pytest.mark.parametrize("page", ["sqlite"], indirect=True)
def test_a_damaged_memory_of_ids_finds_the_own_runs_and_not_those_of_a_search_of_the_same_name(
    page: Page, begin: Begin, train: Make, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Tracker(page.uri, tmp_path / "other", page.name)
    other.start_search({"space": "other"}, "x")
    other.end_search("FINISHED", {}, {}, {})
    assert other.close().unsent == 0
    page.client.delete_run(other.runs["search"])
    ledger, tracker = begin()
    train(ledger, ledger.next(), (0.1, 0.2, 0.3))
    tracker.end_search("KILLED", {}, {}, {})
    assert tracker.close().unsent == 0
    (tmp_path / "search" / RUNS_FILE).write_text('{"uri": "sqli')
    finish(*begin(), train)
    must_agree(page, tmp_path / "search")
    assert page.client.get_run(other.runs["search"]).info.lifecycle_stage == "deleted"


@pytest.mark.parametrize("page", ["sqlite"], indirect=True)
def test_an_experiment_whose_files_lie_elsewhere_gets_all_figures_and_the_files_are_kept(
    page: Page, begin: Begin, train: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.client.create_experiment(EXPERIMENT, artifact_location="mlflow-artifacts:/1")  # as a server makes it
    ledger, tracker = begin()
    train(ledger, ledger.next(), (0.1, 0.2, 0.3))
    tracker.end_search("FINISHED", {}, {}, {"trials.csv": "a"})
    outcome = tracker.close()
    assert outcome.unsent == 2
    assert "mlflow-artifacts" in str(outcome.problem)
    assert page.parent().info.status == "FINISHED"


@pytest.mark.parametrize("page", ["sqlite"], indirect=True)
def test_an_old_copy_of_a_store_gets_what_it_lacks_and_no_run_twice(
    tmp_path: Path, begin: Begin, page: Page, train: Make
) -> None:
    ledger, tracker = begin()
    train(ledger, ledger.next(), (0.1, 0.2, 0.3))
    running = ledger.next()
    sent(tracker)
    shutil.copy(page.base, tmp_path / "copy.db")
    train(ledger, running, (0.4, 0.5, 0.6))
    train(ledger, ledger.next(), (0.7, 0.8, 0.9))
    sent(tracker)
    shutil.copy(tmp_path / "copy.db", page.base)
    finish(ledger, tracker, train)
    finish(*begin(), train)
    must_agree(page, tmp_path / "search")
