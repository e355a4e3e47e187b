"""Many trials report at once: their records leave for MLflow together, and each arrives once, whatever happens."""

from __future__ import annotations

import base64
import json
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from werkzeug.serving import make_server

from hksd_search.tracking import known, sender
from hksd_search.tracking.line import AT_ONCE, Entry, Line
from hksd_search.tracking.spool import Spool
from hksd_search.tracking.store import Store
from hksd_search.tracking.tracker import EXPERIMENT, NOTES_FILE, PARENT, SPOOL_FILE, Tracker

Make = Callable[..., Any]


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of a search."""
    (tmp_path / "search").mkdir()
    return tmp_path / "search"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Calls that write to a run, by name and by run."""
    seen: Counter[tuple[str, str]] = Counter()

    def watch(name: str) -> None:
        call = getattr(MlflowClient, name)

        def counted(client: MlflowClient, run: str, *more: Any, **others: Any) -> Any:
            seen[name, run] += 1
            return call(client, run, *more, **others)

        monkeypatch.setattr(MlflowClient, name, counted)

    for name in ("log_batch", "set_terminated", "update_run", "set_tag", "get_metric_history"):
        watch(name)
    return seen


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until it is set, nothing reaches a store, as if each call took that long."""
    gate, connect = threading.Event(), Store.connect

    def wait(store: Store) -> None:
        gate.wait(60)
        connect(store)

    monkeypatch.setattr(Store, "connect", wait)
    yield gate
    gate.set()


def stored(uri: str) -> dict[str, Run]:
    """Number of the trial (or "search") -> run of everything in a store; fails on one that is there twice."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    names = [run.data.tags.get("hksd.trial", "search") for run in runs]
    assert len(set(names)) == len(names), "a run is there twice"
    return dict(zip(names, runs, strict=True))


def history(uri: str, run: Run, key: str = "val/accuracy") -> list[tuple[int, float]]:
    """Step and value of every point."""
    points = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.value) for point in points)


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


def track(tracker: Tracker, trial: Make, ended: Make, report: Make, numbers: range) -> None:
    """Whole trials of three epochs that run at the same time."""
    for number in numbers:
        tracker.start_trial(trial(number))
    for epoch in (1, 2, 3):
        for number in numbers:
            tracker.epoch(number, report(epoch, epoch / 10))
    for number in numbers:
        tracker.end_trial(ended(number))


# --- together


def test_what_waits_of_a_run_leaves_in_one_call_and_arrives_as_if_each_record_had_left_alone(
    uri: str,
    folder: Path,
    trial: Make,
    ended: Make,
    epoch_report: Make,
    gate: threading.Event,
    calls: Counter[tuple[str, str]],
) -> None:
    tracker = Tracker(uri, folder, "first")
    tracker.start_search({}, "x")
    track(tracker, trial, ended, epoch_report, range(5))
    gate.set()
    outcome = tracker.close()
    assert (outcome.sent, outcome.unsent, outcome.problem) == (2 + 5 * 5, 0, None)
    runs = stored(uri)
    assert runs.keys() == {"search", *map(str, range(5))}
    for number in range(5):
        run = runs[str(number)]
        assert {name: count for (name, of), count in calls.items() if of == run.info.run_id} == {
            "log_batch": 1,
            "set_terminated": 1,
        }
        assert history(uri, run) == [(1, 0.1), (2, 0.2), (3, 0.3)]
        assert history(uri, run, "loss/ce") == [(1, 1.25), (2, 1.25), (3, 1.25)]
        assert (run.info.status, run.data.tags["hksd.status"]) == ("FINISHED", "complete")
        assert run.data.params["student.model"] == "resnet8"
        assert run.data.metrics["params"] == trial(0).costs["params"]


def test_a_record_does_not_wait_for_others(
    uri: str, folder: Path, trial: Make, epoch_report: Make, calls: Counter[tuple[str, str]]
) -> None:
    tracker = Tracker(uri, folder, "first")
    tracker.start_search({}, "x")
    tracker.start_trial(trial(0))
    for epoch in (1, 2, 3):
        wait_for(lambda: tracker.idle)
        run = tracker.runs["0"]
        assert calls["log_batch", run] == epoch
        tracker.epoch(0, epoch_report(epoch))
    assert tracker.close().unsent == 0
    assert calls["log_batch", run] == 4


def test_a_trial_that_goes_on_costs_three_calls_and_not_one_for_each_of_its_tags(
    uri: str, folder: Path, trial: Make, ended: Make, epoch_report: Make, calls: Counter[tuple[str, str]]
) -> None:
    tracker = Tracker(uri, folder, "first")
    tracker.start_search({}, "x")
    tracker.start_trial(trial(0))
    tracker.epoch(0, epoch_report(1))
    tracker.end_trial(ended(0, "interrupted"))
    assert tracker.close().unsent == 0
    calls.clear()
    again = Tracker(uri, folder, "first")
    again.start_trial(trial(0, resumed=True))
    assert again.close().unsent == 0
    run = stored(uri)["0"]
    assert (run.info.status, run.data.tags["hksd.status"]) == ("RUNNING", "running")
    assert calls == {("update_run", run.info.run_id): 1, ("log_batch", run.info.run_id): 1}


@pytest.mark.parametrize("seed", range(20))
def test_in_a_line_no_record_overtakes_one_of_its_run_and_none_one_of_the_search(seed: int) -> None:
    chance, line = random.Random(seed), Line()
    given: list[tuple[str, int]] = []
    got: list[list[tuple[str, int]]] = []
    file = 0

    def take() -> None:
        got.append([(entry.record["run"], entry.line) for entry in line.take()])

    for number in range(300):
        run = chance.choice([*"0123456789", PARENT] if chance.random() < 0.1 else [*"0123"])
        file += (text := chance.random() < 0.02)
        line.put(Entry({"run": run, "kind": "text" if text else "metrics"}, number))
        given.append((PARENT if text else run, number))
        if chance.random() < 0.3 and not line.idle:
            take()
    line.end()
    while not line.idle:
        take()
        if not got[-1]:
            break
    assert line.rest() == []
    alone = {number for run, number in given if run == PARENT}
    order = [number for group in got for _, number in group]
    assert sorted(order) == list(range(300))
    for group in got:
        assert len({run for run, _ in group}) <= 1
        assert len(group) <= AT_ONCE
        assert len(group) == 1 or not alone & {number for _, number in group}
    by_run = defaultdict(list)
    for run, number in (pair for group in got for pair in group):
        by_run[run].append(number)
    assert all(numbers == sorted(numbers) for numbers in by_run.values())
    for place, number in enumerate(order):
        if number in alone:
            assert max(order[:place], default=-1) < number < min(order[place + 1 :], default=300)


def test_the_run_that_waits_longest_is_next_and_none_takes_all_turns() -> None:
    line = Line()
    for number in range(3 * AT_ONCE):
        line.put(Entry({"run": "0", "kind": "metrics"}, number))
    line.put(Entry({"run": "1", "kind": "metrics"}, 3 * AT_ONCE))
    turns = []
    for _ in range(4):
        taken = line.take()
        turns.append((taken[0].record["run"], len(taken)))
    assert turns == [("0", AT_ONCE), ("1", 1), ("0", AT_ONCE), ("0", AT_ONCE)]


# --- records that are not like others


def test_a_record_that_mlflow_refuses_takes_no_other_of_its_group_with_it(
    uri: str,
    folder: Path,
    trial: Make,
    ended: Make,
    epoch_report: Make,
    gate: threading.Event,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracker = Tracker(uri, folder, "first")
    tracker.start_search({}, "x")
    for number in range(3):
        tracker.start_trial(trial(number))
        for epoch in range(1, 6):
            poison = {"terms": {"ce|?": 1.0}} if (number, epoch) == (1, 3) else {}  # a name that MLflow does not take
            tracker.epoch(number, epoch_report(epoch, epoch / 10) | poison)
        tracker.end_trial(ended(number))
    gate.set()
    outcome = tracker.close()
    assert (outcome.unsent, outcome.problem) == (0, None)
    runs = stored(uri)
    for number in range(3):
        run = runs[str(number)]
        assert [step for step, _ in history(uri, run)] == ([1, 2, 4, 5] if number == 1 else [1, 2, 3, 4, 5])
        assert run.info.status == "FINISHED"
        assert run.data.params
    assert caplog.text.count("MLflow refuses what stands in a record of run 1") == 1


def test_an_epoch_that_is_repeated_is_written_once_though_the_first_of_it_still_waits(
    uri: str,
    folder: Path,
    trial: Make,
    epoch_report: Make,
    gate: threading.Event,
    calls: Counter[tuple[str, str]],
) -> None:
    gate.set()
    tracker = Tracker(uri, folder, "first")
    tracker.start_search({}, "x")
    tracker.start_trial(trial(0))
    tracker.epoch(0, epoch_report(1, 0.1))
    wait_for(lambda: tracker.idle)
    gate.clear()
    tracker.start_trial(trial(1))  # holds the sender up
    for epoch, repeated in ((2, False), (1, True), (2, True), (3, True), (3, True), (4, False)):
        time.sleep(0.005)  # another time: MLflow would pass over the same value with the same time
        tracker.epoch(0, {**epoch_report(epoch, epoch / 10), "repeated": repeated})
    gate.set()
    assert tracker.close().unsent == 0
    run = stored(uri)["0"]
    assert calls["get_metric_history", run.info.run_id] == 1
    assert history(uri, run) == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert [step for step, _ in history(uri, run, "loss/ce")] == [1, 2, 3, 4]


def test_the_node_of_a_trial_is_a_tag_that_a_later_one_replaces(
    uri: str,
    folder: Path,
    trial: Make,
    ended: Make,
    epoch_report: Make,
    gate: threading.Event,
    calls: Counter[tuple[str, str]],
) -> None:
    tracker = Tracker(uri, folder, "first")
    tracker.start_search({}, "x")
    for number in (0, 1):
        tracker.start_trial(trial(number))
        tracker.trial_node(number, "ip-10-0-0-1")
        tracker.epoch(number, epoch_report(1))
        tracker.trial_node(number, "ip-10-0-0-1, ip-10-0-0-2")
    gate.set()
    wait_for(lambda: tracker.idle)
    assert calls["log_batch", tracker.runs["0"]] == 1
    tracker.trial_node(1, "ip-10-0-0-1, ip-10-0-0-2, ip-10-0-0-3")
    for number in (0, 1):
        tracker.end_trial(ended(number))
    assert tracker.close().unsent == 0
    runs = stored(uri)
    assert runs["0"].data.tags["hksd.node"] == "ip-10-0-0-1, ip-10-0-0-2"
    assert runs["1"].data.tags["hksd.node"] == "ip-10-0-0-1, ip-10-0-0-2, ip-10-0-0-3"
    assert {run.info.status for name, run in runs.items() if name != "search"} == {"FINISHED"}


def test_a_node_that_is_told_of_a_trial_of_which_mlflow_has_no_run_makes_it(uri: str, folder: Path) -> None:
    tracker = Tracker(uri, folder, "first")
    tracker.start_search({}, "x")
    tracker.trial_node(7, "here")
    assert tracker.close().unsent == 0
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([str(tracker.experiment_id)], "tags.`hksd.kind` = 'trial'")
    assert (run.info.run_name, run.data.tags["hksd.node"]) == ("007", "here")


# --- what goes wrong meanwhile


SERVES = """
import logging, sys
from mlflow.server import app
from werkzeug.serving import make_server

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = make_server("127.0.0.1", int(sys.argv[1]), app, threaded=True)
server.serve_forever()
"""


@pytest.fixture
def serve(uri: str, tmp_path: Path, child: Make, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """serve(): MLflow's server over the store of the test, as a process of its own, always at the same port."""
    from mlflow.server import constants

    monkeypatch.setenv(constants.BACKEND_STORE_URI_ENV_VAR, uri)
    monkeypatch.setenv(constants.ARTIFACTS_DESTINATION_ENV_VAR, str(tmp_path / "artifacts"))
    monkeypatch.setenv(constants.ARTIFACT_ROOT_ENV_VAR, "mlflow-artifacts:/")
    monkeypatch.setenv(constants.SERVE_ARTIFACTS_ENV_VAR, "true")
    processes: list[subprocess.Popen[str]] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def start() -> tuple[str, subprocess.Popen[str]]:
        processes.append(child(SERVES, port))
        wait_for(answers)
        return f"http://127.0.0.1:{port}", processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_server_that_is_killed_and_started_again_gets_every_record_of_many_trials_once(
    serve: Make,
    uri: str,
    folder: Path,
    trial: Make,
    ended: Make,
    epoch_report: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender, "RETRY_S", 0.2)
    monkeypatch.setattr(sender, "FLUSH_S", 60.0)
    asked: Counter[str] = Counter()
    send = requests.Session.send

    def counted(session: requests.Session, request: requests.PreparedRequest, **others: Any) -> Any:
        asked[str(request.path_url)] += 1
        return send(session, request, **others)

    monkeypatch.setattr(requests.Session, "send", counted)
    trials, epochs = 12, 12
    address, server = serve()
    tracker = Tracker(address, folder, "first")
    tracker.start_search({"a": "1"}, "x")
    wait_for(lambda: tracker.sent == 2)
    for number in range(trials):
        tracker.start_trial(trial(number))
    for epoch in range(1, epochs + 1):
        for number in range(trials):
            tracker.epoch(number, epoch_report(epoch, epoch / 100 + number))
        if epoch == 4:
            wait_for(lambda: len(tracker.runs) > trials // 2)
            server.kill()  # while runs are made, and records wait
            assert not tracker.idle
            server.wait()
    wait_for(lambda: tracker.problem is not None)
    serve()
    for number in range(trials):
        tracker.end_trial(ended(number))
    tracker.end_search("FINISHED", {"trials/complete": 1.0}, {"hksd.status": "complete"}, {})
    outcome = tracker.close()
    records = 2 + trials * (epochs + 2) + 2
    assert (outcome.sent, outcome.unsent) == (records, 0)
    assert asked.total() < records  # some have left together
    runs = stored(uri)
    assert runs.keys() == {"search", *map(str, range(trials))}
    for number in range(trials):
        run = runs[str(number)]
        assert history(uri, run) == [(epoch, epoch / 100 + number) for epoch in range(1, epochs + 1)]
        assert [step for step, _ in history(uri, run, "loss/ce")] == list(range(1, epochs + 1))
        assert (run.info.status, run.data.tags["hksd.status"]) == ("FINISHED", "complete")
    remembered = known.read(folder)
    assert remembered is not None
    assert remembered.runs == {PARENT: runs["search"].info.run_id} | {
        name: run.info.run_id for name, run in runs.items() if name != "search"
    }


@pytest.mark.parametrize("lost", ["search", "trial"])
def test_a_run_whose_making_was_not_answered_is_not_made_again(
    lost: str,
    uri: str,
    folder: Path,
    trial: Make,
    ended: Make,
    epoch_report: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender, "RETRY_S", 0.1)
    create, failed = MlflowClient.create_run, []

    def unanswered(client: MlflowClient, *given: Any, **named: Any) -> Run:
        made: Run = create(client, *given, **named)
        if made.data.tags["hksd.kind"] == lost and not failed:
            failed.append(made.info.run_id)
            raise ConnectionError("the server dies before it answers")
        return made

    monkeypatch.setattr(MlflowClient, "create_run", unanswered)
    tracker = Tracker(uri, folder, "first")
    tracker.start_search({"a": "1"}, "x")
    track(tracker, trial, ended, epoch_report, range(2))
    tracker.end_search("FINISHED", {}, {}, {})
    assert tracker.close().unsent == 0
    runs = stored(uri)
    assert runs.keys() == {"search", "0", "1"}
    assert failed[0] in {run.info.run_id for run in runs.values()}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for name in ("0", "1"):
        assert [step for step, _ in history(uri, runs[name])] == [1, 2, 3]
        assert runs[name].data.params


REPORTS = """
import pickle, sys, time
from pathlib import Path
from hksd_search.tracking.tracker import Tracker

assignments, report = pickle.loads(Path(sys.argv[3]).read_bytes())
tracker = Tracker(sys.argv[1], Path(sys.argv[2]), "first")
tracker.start_search({}, "x")
for assignment in assignments:
    tracker.start_trial(assignment)
for epoch in range(1, 10000):
    for assignment in assignments:
        tracker.epoch(assignment.number, report | {"epoch": epoch})
    print(epoch, flush=True)
    time.sleep(0.05)
"""


@pytest.mark.parametrize("made", [2, 5])
def test_what_many_trials_reported_arrives_once_when_the_driver_is_killed_at_any_moment(
    made: int,
    uri: str,
    folder: Path,
    tmp_path: Path,
    trial: Make,
    epoch_report: Make,
    child: Make,
) -> None:
    import pickle

    (tmp_path / "what").write_bytes(pickle.dumps(([trial(number) for number in range(8)], epoch_report(1))))
    process = child(REPORTS, uri, folder, tmp_path / "what")
    notes = folder / NOTES_FILE
    wait_for(lambda: notes.exists() and len(notes.read_text().splitlines()) > made)
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate()
    told = int(out.split()[-1]) if out.split() else 0
    kept = [json.loads(line) for line in (folder / SPOOL_FILE).read_text().splitlines()]
    last = {record["run"]: record["step"] for record in kept if record["kind"] == "metrics"}
    assert min(last.values()) >= told
    again = Tracker(uri, folder, "first")
    for number in range(8):
        again.epoch(number, epoch_report(last[str(number)] + 1))
    assert again.close().unsent == 0
    runs = stored(uri)
    assert runs.keys() == {"search", *map(str, range(8))}
    for number in range(8):
        whole = list(range(1, last[str(number)] + 2))
        assert [step for step, _ in history(uri, runs[str(number)])] == whole
        assert [step for step, _ in history(uri, runs[str(number)], "loss/ce")] == whole


def test_a_spool_is_acknowledged_up_to_the_first_line_that_nobody_has(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.start([{"a": 0}, {"a": 1}])
    assert [spool.add({"a": number}) for number in (2, 3, 4)] == [2, 3, 4]
    after = []
    for lines in ([3], [0], [4, 2], [1]):
        spool.done(lines)
        after.append(spool.acknowledged)
    assert after == [0, 1, 1, 5]


def test_the_user_and_password_of_the_environment_go_with_every_record(
    uri: str,
    folder: Path,
    tmp_path: Path,
    trial: Make,
    ended: Make,
    epoch_report: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow.server import app, constants, handlers

    monkeypatch.setattr(handlers, "_tracking_store", None)  # of another test in this process
    monkeypatch.setenv(constants.BACKEND_STORE_URI_ENV_VAR, uri)
    monkeypatch.setenv(constants.ARTIFACTS_DESTINATION_ENV_VAR, str(tmp_path / "artifacts"))
    monkeypatch.setenv(constants.ARTIFACT_ROOT_ENV_VAR, "mlflow-artifacts:/")
    monkeypatch.setenv(constants.SERVE_ARTIFACTS_ENV_VAR, "true")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "hksd")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "kept-secret")
    wanted = "Basic " + base64.b64encode(b"hksd:kept-secret").decode()
    refused: list[str] = []

    def guarded(environment: dict[str, Any], start: Callable[..., Any]) -> Any:
        if environment.get("HTTP_AUTHORIZATION") != wanted:
            refused.append(environment["PATH_INFO"])
            start("401 Unauthorized", [("Content-Type", "text/plain")])
            return [b"who are you"]
        return app(environment, start)

    server = make_server("127.0.0.1", 0, guarded, threaded=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        tracker = Tracker(f"http://127.0.0.1:{server.server_port}", folder, "first")
        tracker.start_search({}, "x")
        track(tracker, trial, ended, epoch_report, range(2))
        tracker.end_search("FINISHED", {}, {}, {})
        assert tracker.close().unsent == 0
    finally:
        server.shutdown()
        server.server_close()
    assert refused == []
    assert {run.info.status for run in stored(uri).values()} == {"FINISHED"}
    assert "kept-secret" not in "".join(file.read_text() for file in folder.iterdir())
