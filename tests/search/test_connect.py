"""The way into Ray: a start that fails is tried once more, and what is set for a search is gone after it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hksd.errors import RunError, UserError
from hksd_search.backend import connect


def failing(times: int, error: Exception) -> Any:
    """A stand-in for `ray.init` that fails so many times, and notes how it was called."""

    def init(**how: Any) -> None:
        init.calls.append(how)  # type: ignore[attr-defined]
        if len(init.calls) <= times:  # type: ignore[attr-defined]
            raise error

    init.calls = []  # type: ignore[attr-defined]
    return init


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "_quiet", lambda: None)


def test_a_start_that_fails_once_is_repeated_in_the_same_way(
    quiet: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    init = failing(1, Exception("The current node timed out during startup."))
    monkeypatch.setattr(connect, "_init", init)
    connect.start_ray()
    assert len(init.calls) == 2
    assert init.calls[0] == init.calls[1]
    assert [record.message for record in caplog.records] == [
        "Ray did not start (The current node timed out during startup.); it is tried once more"
    ]


def test_one_that_fails_twice_is_told_with_its_cause_and_what_to_do(
    quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "_init", failing(2, RuntimeError("\nLast lines:\n  no memory\n")))
    with pytest.raises(RunError, match=r"twice \(no memory\): wait until less else runs here.* try again$") as told:
        connect.start_ray()
    assert "\n" not in str(told.value)


def test_processes_that_a_failed_start_leaves_are_ended_and_no_others(
    quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    before = subprocess.Popen(sleep)
    started: list[subprocess.Popen[bytes]] = []

    def init(**_: Any) -> None:
        started.append(subprocess.Popen(sleep))
        raise TimeoutError("too slow")

    monkeypatch.setattr(connect, "_init", init)
    try:
        with pytest.raises(RunError):
            connect.start_ray()
        assert len(started) == 2
        assert all(process.wait(10) < 0 for process in started)
        assert before.poll() is None
    finally:
        before.kill()
        before.wait()


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ConnectionError("nobody"), UserError, "--address there: no Ray cluster answers there"),
        (RuntimeError("Version mismatch:\n  other Python"), RunError, "Ray cannot be used there: other Python"),
    ],
)
def test_a_cluster_is_asked_once(
    error: Exception, kind: type[Exception], text: str, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = failing(2, error)
    monkeypatch.setattr(connect, "_init", init)
    with pytest.raises(kind, match=text):
        connect.start_ray("there")
    assert init.calls == [{"address": "there"}]


def test_each_search_says_itself_how_many_workers_start_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNE_MAX_PENDING_TRIALS_PG", raising=False)
    for count in (2, 5):
        with connect.pending_trials(count):
            assert os.environ["TUNE_MAX_PENDING_TRIALS_PG"] == str(count)
        assert "TUNE_MAX_PENDING_TRIALS_PG" not in os.environ
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "7")  # the user's own
    with connect.pending_trials(2):
        assert os.environ["TUNE_MAX_PENDING_TRIALS_PG"] == "7"
    assert os.environ["TUNE_MAX_PENDING_TRIALS_PG"] == "7"


def test_what_a_worker_does_outside_of_trials_happens_where_the_user_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert connect.at_home(str(tmp_path), lambda name: (Path.cwd(), name), "x") == (tmp_path, "x")
    assert connect.at_home(str(tmp_path / "of another machine"), Path.cwd) == tmp_path


def gone(number: int) -> bool:
    state = Path(f"/proc/{number}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TimeoutError("too slow")])
def test_a_start_that_comes_to_nothing_leaves_nothing_though_the_parent_of_an_agent_is_gone(
    error: BaseException, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    raylet = f"import os, subprocess, sys\nos.setsid()\nsubprocess.run([sys.executable, '-c', {agent!r}])"
    raylets: list[subprocess.Popen[bytes]] = []
    agents: list[int] = []

    def init(**_: Any) -> None:
        raylets.append(subprocess.Popen([sys.executable, "-c", raylet], stdout=subprocess.PIPE))
        assert raylets[-1].stdout is not None
        agents.append(int(raylets[-1].stdout.readline()))
        raise error

    def stop_ray() -> None:
        raylets[-1].kill()  # as Ray does, which knows nothing of the agent
        raylets[-1].wait()

    monkeypatch.setattr(connect, "_init", init)
    monkeypatch.setattr(connect, "stop_ray", stop_ray)
    with pytest.raises((KeyboardInterrupt, RunError)):
        connect.start_ray()
    deadline = time.monotonic() + 10
    while not all(gone(number) for number in agents):
        assert time.monotonic() < deadline, "an agent is left"
        time.sleep(0.01)


def test_a_private_ray_is_started_though_the_environment_names_a_cluster_and_that_is_said(
    quiet: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    import ray

    init = failing(0, Exception())
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(connect.private, "Home", lambda: SimpleNamespace(path=tmp_path, close=lambda: None))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    connect.start_ray()
    assert [how["address"] for how in init.calls] == ["local"]
    assert "RAY_ADDRESS (10.0.0.1:6379) is not looked at" in caplog.text
