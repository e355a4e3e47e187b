"""`hksd logs`: all that is known of one trial, however it stands and whatever is left of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hksd_search import cli
from hksd_search.commands import logs as command
from hksd_search.ledger import Ledger
from hksd_search.session import SPACE_FILE
from hksd_search.space.space import Space
from hksd_search.study import trial_log
from hksd_search.study.records import STUDY_FILE, Assignment, trial_folder
from hksd_search.tracking import known

Say = Callable[..., tuple[int, str, str]]
TRACE = "Traceback (most recent call last):\n  ...\nValueError: as it always does"


@pytest.fixture
def search(
    tmp_path: Path,
    make_space: Callable[..., Space],
    open_ledger: Callable[..., Ledger],
    train: Callable[..., None],
    epoch_report: Callable[..., dict[str, Any]],
) -> Path:
    """Folder of a search: trial 0 is complete, 1 has failed after two strikes, 2 runs, nobody holds the lock."""
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / SPACE_FILE).write_text("# as it is\n")
    space = make_space(search={"trials": 6, "sampler": "random", "arms": "none"})
    ledger = open_ledger(space, folder=folder)

    def draw() -> Assignment:
        found = ledger.next()
        assert found is not None
        return found

    train(ledger, draw(), (0.3, 0.4, 0.5))
    number = draw().number
    for strike in ("its machine is gone", "the worker process died"):
        ledger.lost(number, strike)
        assert draw().number == number
    ledger.report(number, {**epoch_report(1, 0.25), "hostname": "h2"})
    ledger.finish(number, "ValueError: as it always does")
    running = draw().number
    ledger.report(running, epoch_report(1, 0.125))
    trial = trial_folder(folder, number)
    trial_log.note(trial, "begins in process 7")
    trial_log.note(trial, "warning: the data\nis odd")
    (trial / trial_log.FAULT_FILE).write_text(TRACE)
    known.write(folder, known.Known("http://head:5000", experiment="4", runs={str(number): "abc"}))
    return folder


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """say(..): exit code and outputs of `hksd logs`."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        line = ["hksd", "logs", *map(str, words), "--runs", "."]
        monkeypatch.setattr("sys.argv", line)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_a_trial_that_failed_tells_its_reason_its_strikes_its_machine_its_trace_and_its_run(
    search: Path, say: Say
) -> None:
    code, out, _ = say("first", 1)
    assert code == 0
    assert "failed at epoch 1 of 3, validation 25.00%" in out
    for line in (
        "reason: ValueError: as it always does",
        "trained on: h2",
        "strike 1: its machine is gone",
        "strike 2: the worker process died",
        "run in MLflow: http://head:5000/#/experiments/4/runs/abc",
        "stack trace of its last fault:",
    ):
        assert line in out.splitlines(), line
    assert "  ValueError: as it always does" in out.splitlines()
    assert "fault.txt" in out
    noted = [line for line in out.splitlines() if "warning: the data is odd" in line]
    assert len(noted) == 1, "a note is one line"
    _, out, _ = say("first", 1, "--json")
    told = json.loads(out)
    assert (told["name"], told["trial"], told["status"], told["nodes"]) == ("first", 1, "failed", ["h2"])
    assert told["strikes"] == ["its machine is gone", "the worker process died"]
    assert told["fault"] == TRACE
    assert told["mlflow"]["run"] == "abc"
    assert len(told["log"]) == 2


def test_a_complete_trial_tells_its_accuracy_and_no_fault(search: Path, say: Say) -> None:
    code, out, _ = say("first", 0)
    assert code == 0
    assert "complete at epoch 3 of 3, validation 50.00%" in out
    assert "strike" not in out
    assert "stack trace" not in out
    assert "no run in MLflow yet; `hksd sync first` sends what waits" in out


def test_a_trace_that_a_trial_has_outlived_is_said_to_be_of_an_earlier_try(search: Path, say: Say) -> None:
    trial = trial_folder(search, 0)
    trial.mkdir(parents=True)
    (trial / trial_log.FAULT_FILE).write_text(TRACE)
    assert "stack trace of its last fault (of an earlier try):" in say("first", 0)[1]


def test_a_trial_that_runs_is_told_as_such_only_while_a_process_runs_the_search(
    search: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "interrupted at epoch 1" in say("first", 2)[1]
    monkeypatch.setattr("hksd_search.session.holder", lambda folder: "process 7 on h1")
    (trial := trial_folder(search, 2)).mkdir()
    (trial / trial_log.LAST_WORDS).write_text("Timeout (0:01:00)!\n")
    out = say("first", 2)[1]
    assert "running at epoch 1" in out
    assert "last words of its process:\n  Timeout (0:01:00)!" in out


def test_what_is_known_of_a_trial_is_told_where_only_the_study_is(search: Path, say: Say) -> None:
    for file in search.iterdir():
        if file.name != STUDY_FILE:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    code, out, _ = say("first", 1)
    assert code == 0
    assert "reason: ValueError: as it always does" in out
    assert "no files: first/trials/001 is not here, or empty" in out
    assert "no run in MLflow yet" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("first", 3), "first: no trial 3 (there are 0 to 2)"),
        (("frist", 0), "frist: no such search"),
        (("first", "x"), "must be a whole number from 0"),
        (("first/trials", 0), "first/trials is a path; give the name, trials"),
    ],
)
def test_a_search_or_a_trial_that_is_not_there_is_told_with_those_that_are(
    words: tuple[object, ...], message: str, search: Path, say: Say
) -> None:
    code, _, err = say(*words)
    assert code == 2
    assert message in err


def test_a_search_without_a_trial_says_so(search: Path, say: Say) -> None:
    (search / STUDY_FILE).unlink()
    code, _, err = say("first", 0)
    assert (code, "no trial yet" in err) == (2, True)


def test_a_store_that_is_a_file_is_told_with_what_shows_it(search: Path, say: Say) -> None:
    known.write(search, known.Known("sqlite:////data/x.db", experiment="4", runs={"1": "abc"}))
    out = say("first", 1)[1]
    assert "ui --backend-store-uri sqlite:////data/x.db" in out
    assert "then open http://127.0.0.1:5000/#/experiments/4/runs/abc" in out


def test_the_store_below_the_runs_folder_is_told_where_that_is_now(search: Path) -> None:
    known.write(search, known.Known("sqlite:////elsewhere/mlflow.db", True, experiment="4", runs={"1": "abc"}))
    found = command.place_of(search, 1)
    assert found is not None
    assert found.store == f"sqlite:///{search.parent / 'mlflow.db'}"


def test_a_note_makes_no_folder_of_a_search_that_is_gone_and_a_full_disk_is_none_of_its_business(
    tmp_path: Path, full_disk: Callable[[int], Any]
) -> None:
    trial_log.note(trial_folder(tmp_path / "gone", 1), "begins")
    assert not (tmp_path / "gone").exists()
    with full_disk(0):
        trial_log.note(trial_folder(tmp_path, 1), "begins")
    assert (trial_folder(tmp_path, 1) / trial_log.LOG_FILE).read_text() == ""
