"""MLflow gets every record once, and nothing that happens to it holds a search up."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from werkzeug.serving import BaseWSGIServer, make_server

from hksd.config.run import RunConfig, config_hash, dump, flatten
from hksd.errors import UserError
from hksd_search.tracking import access, sender
from hksd_search.tracking.tracker import EXPERIMENT, PARENT, RUNS_FILE, SPOOL_FILE, Tracker

Make = Callable[..., Any]
SIZES = {"params", "mflops", "peak_memory_mb"}
PROMPT_S = 0.05  # a call that only takes note returns within that time


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of a search."""
    (tmp_path / "search").mkdir()
    return tmp_path / "search"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon."""
    monkeypatch.setattr(sender, "FLUSH_S", 0.5)
    monkeypatch.setattr(sender, "RETRY_S", 0.1)


def stored(uri: str) -> dict[str, Run]:
    """Name -> run of everything in a store; fails on a name that is there twice."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    names = [run.info.run_name for run in runs]
    assert len(set(names)) == len(names), "a run is there twice"
    return dict(zip(names, runs, strict=True))


def history(uri: str, run: Run) -> dict[str, list[tuple[int, float, int]]]:
    """Metric -> (step, value, time) of every point."""
    client = MlflowClient(tracking_uri=uri)
    return {
        key: [(point.step, point.value, point.timestamp) for point in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }


def steps(uri: str, run: Run, key: str = "val/accuracy") -> list[int]:
    return sorted(step for step, _, _ in history(uri, run).get(key, []))


def text(uri: str, run: Run, file: str, where: Path) -> str:
    where.mkdir(exist_ok=True)
    return Path(MlflowClient(tracking_uri=uri).download_artifacts(run.info.run_id, file, str(where))).read_text()


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)


def track(tracker: Tracker, trial: Make, ended: Make, report: Make, numbers: range) -> None:
    """A whole trial of three epochs for each number."""
    for number in numbers:
        tracker.start_trial(trial(number))
        for epoch in (1, 2, 3):
            tracker.epoch(number, report(epoch, epoch / 10))
        tracker.end_trial(ended(number))


def test_a_search_is_a_run_and_its_trials_are_runs_below_it(
    uri: str, folder: Path, tmp_path: Path, trial: Make, ended: Make, epoch_report: Make, small_config: RunConfig
) -> None:
    tracker = Tracker(uri, folder, "first")
    tracker.start_search({"space": "small", "range.train.lr": "uniform 0 .. 1"}, "train: {}\n")
    tracker.start_trial(trial(0, "no distillation"))
    tracker.start_trial(trial(1))
    for epoch in (1, 2, 3):
        for number in (0, 1):
            tracker.epoch(number, epoch_report(epoch, epoch / 10 + number))
    tracker.end_trial(ended(0))
    tracker.end_trial(ended(1, "failed", "NonFiniteLossError: the loss is not finite"))
    tracker.start_trial(trial(2))
    tracker.epoch(2, epoch_report(1))
    tracker.end_trial(ended(2, "pruned"))
    tracker.start_trial(trial(3))
    tracker.end_trial(ended(3, "interrupted"))
    for status in ("rejected", "duplicate"):
        tracker.end_trial(ended(4, status, "not trained"))
    tracker.end_search("FINISHED", {"trials/complete": 1.0}, {"hksd.status": "complete"}, {"trials.csv": "a,b\n"})
    outcome = tracker.close()
    assert (outcome.unsent, outcome.problem) == (0, None)
    assert not (folder / SPOOL_FILE).exists()

    runs = stored(uri)
    assert runs.keys() == {
        "first",
        "000 resnet8 w0.50 ce+kd",
        "001 resnet8 w0.50 ce+kd",
        "002 resnet8 w0.50 ce+kd",
        "003 resnet8 w0.50 ce+kd",
    }
    parent, children = runs.pop("first"), [runs[name] for name in sorted(runs)]
    assert [run.info.status for run in children] == ["FINISHED", "FAILED", "KILLED", "KILLED"]
    assert [run.data.tags["hksd.status"] for run in children] == ["complete", "failed", "pruned", "interrupted"]
    assert [run.data.tags.get("hksd.reason") for run in children] == [
        None,
        "NonFiniteLossError: the loss is not finite",
        None,
        None,
    ]
    assert [run.data.tags["hksd.arm"] for run in children] == ["no distillation", "", "", ""]
    for run in children:
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["hksd.search"] == "first"
        assert run.data.tags["hksd.config_hash"] == config_hash(small_config)
        assert run.data.params == {key: str(value) for key, value in flatten(dump(small_config)).items()}
        assert run.data.metrics["params"] == trial(0).costs["params"]
        assert run.data.metrics["mflops"] == pytest.approx(trial(0).costs["mflops"])
        assert run.info.end_time is not None

    # One batch per epoch: everything of an epoch stands at its step, noted at one time.
    points = history(uri, children[1])
    assert [(step, value) for step, value, _ in points["val/accuracy"]] == [(1, 1.1), (2, 1.2), (3, 1.3)]
    of_epochs = points.keys() - SIZES
    assert of_epochs == {
        "val/accuracy",
        "val/loss",
        "train/accuracy",
        "train/loss",
        "lr",
        "images_per_s",
        "epoch_s",
        "loss/ce",
        "adversarial/discriminator_loss",
    }
    for key in of_epochs:
        assert [(step, at) for step, _, at in points[key]] == [(s, at) for s, _, at in points["val/accuracy"]]

    assert parent.info.status == "FINISHED"
    assert parent.data.params == {"space": "small", "range.train.lr": "uniform 0 .. 1"}
    assert parent.data.tags["hksd.status"] == "complete"
    assert parent.data.metrics == {"trials/complete": 1.0}
    assert text(uri, parent, "space.yaml", tmp_path / "got") == "train: {}\n"
    assert text(uri, parent, "trials.csv", tmp_path / "got") == "a,b\n"
    noted = json.loads((folder / RUNS_FILE).read_text())
    assert noted["runs"][PARENT] == parent.info.run_id
    assert {noted["runs"][str(number)] for number in range(4)} == {run.info.run_id for run in children}


def test_a_resumed_search_continues_its_runs(
    uri: str, folder: Path, tmp_path: Path, trial: Make, ended: Make, epoch_report: Make
) -> None:
    first = Tracker(uri, folder, "first")
    first.start_search({"search.trials": "4"}, "old")
    track(first, trial, ended, epoch_report, range(1))
    first.start_trial(trial(1))
    first.epoch(1, epoch_report(1))
    first.end_trial(ended(1, "interrupted"))
    first.end_search("KILLED", {"trials/complete": 1.0}, {"hksd.status": "interrupted"}, {"trials.csv": "old"})
    first.close()
    before = stored(uri)

    second = Tracker(uri, folder, "first")
    second.start_search({"search.trials": "6"}, "new")  # more trials: MLflow forbids to change a parameter
    second.start_trial(trial(1, resumed=True))
    for epoch in (2, 3):
        second.epoch(1, epoch_report(epoch))
    second.end_trial(ended(1))
    track(second, trial, ended, epoch_report, range(2, 3))
    second.end_search("FINISHED", {"trials/complete": 3.0}, {"hksd.status": "complete"}, {"trials.csv": "new"})
    assert second.close().unsent == 0

    after = stored(uri)
    assert {name: run.info.run_id for name, run in before.items()}.items() <= {
        name: run.info.run_id for name, run in after.items()
    }.items()
    assert len(after) == 4
    for name, run in after.items():
        assert run.info.status == "FINISHED"
        assert run.data.tags["hksd.status"] == "complete"
        if name != "first":
            assert steps(uri, run) == [1, 2, 3]
            assert all(len({step for step, *_ in points}) == len(points) for points in history(uri, run).values())
    assert after["first"].data.metrics["trials/complete"] == 3.0
    assert text(uri, after["first"], "trials.csv", tmp_path / "got") == "new"


def test_two_searches_in_one_store_do_not_mix(
    uri: str, tmp_path: Path, trial: Make, ended: Make, epoch_report: Make
) -> None:
    trackers = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        trackers.append(Tracker(uri, tmp_path / name, name))
        trackers[-1].start_search({}, "x")
    for tracker in trackers:
        tracker.start_trial(trial(0))
        tracker.epoch(0, epoch_report(1))
        tracker.end_trial(ended(0))
    assert [tracker.close().unsent for tracker in trackers] == [0, 0]
    client = MlflowClient(tracking_uri=uri)
    runs = client.search_runs([trackers[0].experiment_id])
    assert Counter(run.data.tags["hksd.search"] for run in runs) == {"first": 2, "second": 2}
    assert [len(steps(uri, run)) for run in runs if run.data.tags["hksd.kind"] == "trial"] == [1, 1]


@pytest.mark.usefixtures("hasty")
def test_a_search_that_is_resumed_with_another_store_gets_runs_of_its_own_there(
    uri: str, folder: Path, tmp_path: Path, empty_store: Path, trial: Make, ended: Make, epoch_report: Make
) -> None:
    first = Tracker(uri, folder, "first")
    first.start_search({}, "x")
    first.start_trial(trial(0))
    first.epoch(0, epoch_report(1))
    first.end_trial(ended(0, "interrupted"))
    assert first.close().unsent == 0
    shutil.copy(empty_store, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    second = Tracker(other, folder, "first")
    second.start_search({}, "x")
    second.start_trial(trial(0, resumed=True))
    for epoch in (2, 3):
        second.epoch(0, epoch_report(epoch))
    second.end_trial(ended(0))
    second.end_search("FINISHED", {}, {}, {})
    outcome = second.close()
    assert (outcome.unsent, outcome.problem) == (0, None)
    runs = stored(other)
    assert {name: run.info.status for name, run in runs.items()} == {
        "first": "FINISHED",
        "000 resnet8 w0.50 ce+kd": "FINISHED",
    }
    assert steps(other, runs["000 resnet8 w0.50 ce+kd"]) == [2, 3]
    assert runs["000 resnet8 w0.50 ce+kd"].data.params


# --- stores that cannot be written


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own that has no byte left."""
    place = tmp_path / "full"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        with (place / "filler").open("wb") as file:
            try:
                file.write(bytes(1 << 20))
                file.flush()
            except OSError:
                pass
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)  # lazily: a database may still be open there


@pytest.fixture
def hung_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["below a file", "full disk", "nobody listens", "never answers"])
@pytest.mark.usefixtures("hasty")
def test_what_cannot_be_written_is_spooled_and_sent_once_by_the_next_tracker(
    kind: str,
    uri: str,
    folder: Path,
    tmp_path: Path,
    trial: Make,
    ended: Make,
    epoch_report: Make,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    bad = {
        "below a file": lambda: f"sqlite:///{tmp_path / 'file' / 'x.db'}",
        "full disk": lambda: f"sqlite:///{request.getfixturevalue('full_disk') / 'x.db'}",
        "nobody listens": lambda: f"http://127.0.0.1:{free_port()}",
        "never answers": lambda: request.getfixturevalue("hung_server"),
    }[kind]()
    first = Tracker(bad, folder, "first")
    begin = time.monotonic()
    first.start_search({"a": "1"}, "x")
    track(first, trial, ended, epoch_report, range(2))
    first.end_search("FINISHED", {"trials/complete": 2.0}, {}, {"trials.csv": "a"})
    assert time.monotonic() - begin < 10 * PROMPT_S
    outcome = first.close()
    assert time.monotonic() - begin < 10
    assert (outcome.sent, outcome.unsent) == (0, 2 + 2 * 5 + 3)
    assert outcome.problem
    assert len((folder / SPOOL_FILE).read_text().splitlines()) == outcome.unsent

    second = Tracker(uri, folder, "first")
    track(second, trial, ended, epoch_report, range(2, 3))
    again = second.close()
    assert (again.sent, again.unsent) == (outcome.unsent + 5, 0)
    assert not (folder / SPOOL_FILE).exists()
    runs = stored(uri)
    assert len(runs) == 4
    assert runs["first"].data.metrics == {"trials/complete": 2.0}
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        if name != "first":
            assert steps(uri, run) == [1, 2, 3]
            assert all(len(points) == (3 if key not in SIZES else 1) for key, points in history(uri, run).items())
    third = Tracker(uri, folder, "first")
    assert third.close().sent == 0


DIES_WITH_A_SPOOL = """
import os, sys, time
from pathlib import Path
from hksd_search.tracking import tracker as tracking

tracker = tracking.Tracker(sys.argv[1], Path(sys.argv[2]), "first")
while tracker.problem is None:
    time.sleep(0.05)
os.kill(os.getpid(), 9)
"""


@pytest.mark.usefixtures("hasty")
def test_a_spool_outlives_a_process_that_dies_before_it_was_sent(
    uri: str, folder: Path, trial: Make, ended: Make, epoch_report: Make, child: Make
) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    tracker = Tracker(away, folder, "first")
    tracker.start_search({}, "x")
    track(tracker, trial, ended, epoch_report, range(1))
    assert tracker.close().unsent == 7
    process = child(DIES_WITH_A_SPOOL, away, folder)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, complaint
    assert Tracker(uri, folder, "first").close().sent == 7
    assert steps(uri, stored(uri)["000 resnet8 w0.50 ce+kd"]) == [1, 2, 3]


DIES_AT_ONCE = """
import os, pickle, sys
from pathlib import Path
from hksd_search.tracking.tracker import Tracker

calls = pickle.loads(Path(sys.argv[3]).read_bytes())
tracker = Tracker(sys.argv[1], Path(sys.argv[2]), "first")
for name, arguments in calls:
    getattr(tracker, name)(*arguments)
os.kill(os.getpid(), 9)
"""


def test_what_a_tracker_was_told_reaches_the_store_also_when_its_process_dies_at_once(
    uri: str, folder: Path, tmp_path: Path, trial: Make, ended: Make, epoch_report: Make, child: Make
) -> None:
    calls = [
        ("start_search", ({}, "x")),
        ("start_trial", (trial(0),)),
        *(("epoch", (0, epoch_report(epoch))) for epoch in (1, 2, 3)),
        ("end_trial", (ended(0),)),
        ("start_trial", (trial(1),)),
        ("epoch", (1, epoch_report(1))),
    ]
    (tmp_path / "calls").write_bytes(pickle.dumps(calls))
    process = child(DIES_AT_ONCE, uri, folder, tmp_path / "calls")
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, complaint
    tracker = Tracker(uri, folder, "first")
    tracker.start_search({}, "x")
    tracker.start_trial(trial(1, resumed=True))
    for epoch in (2, 3):
        tracker.epoch(1, epoch_report(epoch))
    tracker.end_trial(ended(1))
    tracker.end_search("FINISHED", {}, {}, {})
    assert tracker.close().unsent == 0
    runs = stored(uri)
    assert len(runs) == 3
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        if name != "first":
            assert steps(uri, run) == [1, 2, 3]


@pytest.mark.usefixtures("hasty")
def test_a_spool_that_cannot_be_written_either_is_said_and_not_raised(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    tracker = Tracker(f"sqlite:///{tmp_path / 'file' / 'x.db'}", tmp_path / "file" / "search", "first")
    tracker.start_search({}, "x")
    outcome = tracker.close()
    assert outcome.unsent == 2
    assert "the spool cannot be written" in str(outcome.problem)


def test_every_record_is_sent_or_spooled_also_when_the_store_is_slower_than_the_search(
    uri: str, folder: Path, trial: Make, ended: Make, epoch_report: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "FLUSH_S", -14.5)  # time is up long ago, and half a second is left for a last call
    before = set(threading.enumerate())
    tracker = Tracker(uri, folder, "first")
    tracker.start_search({}, "x")
    wait_for(lambda: tracker.sent == 2)
    track(tracker, trial, ended, epoch_report, range(25))
    outcome = tracker.close()
    assert outcome.sent + outcome.unsent == 2 + 25 * 5
    for thread in set(threading.enumerate()) - before:  # other tests may have left some that wait for a server
        if thread.name == "tracking":
            thread.join(60)
    monkeypatch.setattr(sender, "FLUSH_S", 30.0)
    assert Tracker(uri, folder, "first").close().unsent == 0
    runs = stored(uri)
    assert len(runs) == 26
    assert all(steps(uri, run) == [1, 2, 3] for name, run in runs.items() if name != "first")


@pytest.mark.usefixtures("hasty")
def test_files_that_cannot_be_stored_do_not_hold_back_the_figures(
    uri: str, folder: Path, tmp_path: Path, trial: Make, ended: Make, epoch_report: Make
) -> None:
    (tmp_path / "file").write_text("no folder")
    # Such is a server whose files lie where this machine may not write.
    MlflowClient(tracking_uri=uri).create_experiment(EXPERIMENT, artifact_location=(tmp_path / "file" / "x").as_uri())
    tracker = Tracker(uri, folder, "first")
    tracker.start_search({}, "x")
    track(tracker, trial, ended, epoch_report, range(1))
    tracker.close()
    runs = stored(uri)
    assert runs.keys() == {"first", "000 resnet8 w0.50 ce+kd"}
    assert steps(uri, runs["000 resnet8 w0.50 ce+kd"]) == [1, 2, 3]


def test_tracking_can_be_off(folder: Path, trial: Make, ended: Make, epoch_report: Make) -> None:
    tracker = Tracker(None, folder, "first")
    tracker.start_search({}, "x")
    track(tracker, trial, ended, epoch_report, range(1))
    outcome = tracker.close()
    assert (outcome.sent, outcome.unsent) == (0, 0)
    assert list(folder.iterdir()) == []


# --- a real server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """MLflow's server on loopback, by a thread of this process: a process of its own needs seconds for each start."""

    def __init__(self) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.served: BaseWSGIServer | None = None

    def start(self) -> None:
        from mlflow.server import app  # takes a second to import

        self.served = make_server("127.0.0.1", self.port, app, threaded=True)
        threading.Thread(target=self.served.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """From now on nobody listens."""
        if self.served is not None:
            self.served.shutdown()
            self.served.server_close()
            self.served = None


@pytest.fixture
def server(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server over the store of the test, not started."""
    from mlflow.server import constants, handlers

    monkeypatch.setattr(handlers, "_tracking_store", None)  # that of another test
    monkeypatch.setenv(constants.BACKEND_STORE_URI_ENV_VAR, uri)
    monkeypatch.setenv(constants.ARTIFACTS_DESTINATION_ENV_VAR, str(tmp_path / "artifacts"))
    monkeypatch.setenv(constants.ARTIFACT_ROOT_ENV_VAR, "mlflow-artifacts:/")
    monkeypatch.setenv(constants.SERVE_ARTIFACTS_ENV_VAR, "true")
    server = Server()
    yield server
    server.stop()


def test_a_server_that_goes_away_and_comes_back_holds_nothing_up_and_gets_everything_once(
    server: Server,
    folder: Path,
    tmp_path: Path,
    trial: Make,
    ended: Make,
    epoch_report: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender, "RETRY_S", 0.2)
    monkeypatch.setattr(sender, "FLUSH_S", 30.0)
    server.start()
    tracker = Tracker(server.uri, folder, "first")
    tracker.start_search({"a": "1"}, "x")
    tracker.start_trial(trial(0))
    tracker.epoch(0, epoch_report(1))
    wait_for(lambda: tracker.sent == 4)
    server.stop()

    times = []
    for act in (
        lambda: tracker.epoch(0, epoch_report(2)),
        lambda: tracker.start_trial(trial(1)),
        *(lambda epoch=epoch: tracker.epoch(1, epoch_report(epoch)) for epoch in (1, 2, 3)),
        lambda: tracker.end_trial(ended(1, "failed", "a fault")),
        lambda: tracker.epoch(0, epoch_report(3)),
    ):
        begin = time.monotonic()
        act()
        times.append(time.monotonic() - begin)
        time.sleep(0.05)
    assert sorted(times)[-2] < PROMPT_S  # one may have had bad luck with the machine
    wait_for(lambda: tracker.problem is not None)
    assert tracker.sent == 4

    server.start()
    tracker.end_trial(ended(0))
    tracker.end_search("FINISHED", {"trials/complete": 1.0}, {}, {"trials.csv": "a,b"})
    outcome = tracker.close()
    assert (outcome.unsent, outcome.problem) == (0, None)
    runs = stored(server.uri)
    assert {name: run.info.status for name, run in runs.items()} == {
        "first": "FINISHED",
        "000 resnet8 w0.50 ce+kd": "FINISHED",
        "001 resnet8 w0.50 ce+kd": "FAILED",
    }
    for name, run in runs.items():
        if name != "first":
            assert steps(server.uri, run) == [1, 2, 3]
    assert text(server.uri, runs["first"], "trials.csv", tmp_path / "got") == "a,b"


# --- what is said about a store


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:kept-secret@127.0.0.1:9",
        "http://:kept-secret@127.0.0.1:9/path",
        "nonsense://user:kept-secret@host/x",
    ],
)
def test_a_password_in_the_address_of_a_store_is_never_said(
    uri: str, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, hasty: None
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="cannot be used") as caught:
        access.check(uri)
    assert "127.0.0.1" in str(caught.value) or "host" in str(caught.value)
    assert "kept-secret" not in str(caught.value)
    assert not any("kept-secret" in line for line in access.how_to_look(uri, "mlflow", "1"))
    tracker = Tracker(uri, folder, "first")
    tracker.start_search({}, "x")
    assert "kept-secret" not in str(tracker.close().problem)
    assert "kept-secret" not in caplog.text


def test_a_store_that_is_there_is_counted_and_one_that_is_not_is_named(uri: str, tmp_path: Path) -> None:
    assert access.check(uri) == f"{uri}: 1 experiment(s)"
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"file/x\.db cannot be used"):
        access.check(f"sqlite:///{tmp_path / 'file' / 'x.db'}")


def test_the_default_store_is_absolute_wherever_the_search_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert access.store_uri(None, Path("runs")) == f"sqlite:///{tmp_path.resolve()}/runs/mlflow.db"
    assert access.store_uri("sqlite:///own.db", Path("runs")) == f"sqlite:///{tmp_path.resolve()}/own.db"
    assert access.store_uri("http://127.0.0.1:5000", Path("runs")) == "http://127.0.0.1:5000"
