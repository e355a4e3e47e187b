"""A killed driver, Ctrl-C once, Ctrl-C twice: nothing is lost, nothing is trained twice, nothing keeps running.

One search is killed, resumed, interrupted, and resumed to its end: each of that is a fixture.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hksd.config.run import config_hash, from_tree
from hksd.errors import UserError
from hksd_search.study.records import Record, read_records

Make = Callable[..., Any]
EPOCHS = 20  # long enough to be caught in the middle


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, write_space: Make) -> Path:
    """Working directory with space.yaml; its searches share the cache of teachers below `my runs`."""
    folder = tmp_path_factory.mktemp("interrupted")
    write_space(
        folder / "space.yaml",
        train={"epochs": EPOCHS},
        search={"trials": 4, "scheduler": "none", "concurrent": 2},
        terms={"squeeze": {"weight": {"log_uniform": [0.1, 1]}, "depth": 1}},
    )
    return folder


@dataclass(frozen=True)
class Killed:
    """What a killed driver leaves.

    Attributes:
        left: names of what still runs.
        records: of its trials.
        written: times of the files of finished trials.
    """

    left: list[str]
    records: list[Record]
    written: dict[Path, int]


def records(folder: Path) -> list[Record]:
    """The records of a search that may not have begun."""
    with contextlib.suppress(UserError, KeyError):
        return read_records(folder)
    return []


def search(start: Make, place: Path, name: str, *words: str) -> Any:
    return start("search", "space.yaml", "--name", name, "--runs", "my runs", *words, cwd=place)


def resume_command(said: str) -> list[str]:
    """The words of the command that a stopped search says continues it, without the name of the program."""
    line = said.split("Resume with:\n")[1].splitlines()[0]
    program, *words = shlex.split(line)
    assert program == "hksd"
    return words


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    """Folder of the search that is killed, then resumed and interrupted, then resumed to its end."""
    return place / "my runs" / "stopped"


def complete(found: list[Record]) -> list[Record]:
    return [record for record in found if record.status == "complete"]


@pytest.fixture(scope="module")
def killed(place: Path, folder: Path, start: Make) -> Killed:
    """A search whose driver is killed while one trial is complete and another one runs."""
    program = search(start, place, folder.name)
    program.wait_until(
        lambda: (
            {"complete", "running"} <= {r.status for r in records(folder)}
            and any(r.status == "running" and r.epoch >= 2 for r in records(folder))
        )
    )
    program.process.send_signal(signal.SIGKILL)
    program.wait()
    # Whatever trains ends with its driver. Two agents of Ray stay (they hold nothing); the fixture ends them.
    left, before = program.left(ignoring="Agent"), records(folder)
    trials = [folder / "trials" / f"{record.number:03d}" for record in complete(before)]
    return Killed(left, before, {path: path.stat().st_mtime_ns for trial in trials for path in trial.iterdir()})


@pytest.fixture(scope="module")
def interrupted(killed: Killed, place: Path, folder: Path, start: Make, facts: Make) -> tuple[Any, Any]:
    """The command that resumes it, stopped by one Ctrl-C in the middle of a trial, and what the books say then."""
    begun = {record.number: record.epoch for record in killed.records}
    program = search(start, place, folder.name, "--resume")
    program.wait_until(
        lambda: any(r.status == "running" and r.epoch >= begun.get(r.number, 0) + 2 for r in records(folder))
    )
    program.press_ctrl_c()
    program.wait()
    assert program.left() == [], "processes are left"
    return program, facts(place / "my runs", folder.name)


@pytest.fixture(scope="module")
def finished(interrupted: tuple[Any, Any], place: Path, folder: Path, start: Make, facts: Make) -> tuple[Any, Any]:
    """The command that the interrupted one printed, run to its end, and what the books say then."""
    program = start(*resume_command(interrupted[0].err), "--json", cwd=place)
    program.wait()
    return program, facts(place / "my runs", folder.name)


def test_whatever_trains_ends_with_a_driver_that_is_killed(killed: Killed) -> None:
    assert killed.left == []
    assert complete(killed.records)


def test_ctrl_c_once_saves_everything(interrupted: tuple[Any, Any]) -> None:
    program, stopped = interrupted
    assert program.process.returncode == 130, program.err
    assert "Traceback" not in program.err
    assert "stopping: each trial finishes its epoch" in program.out
    stopped.must_agree()
    assert stopped.parent.info.status == "KILLED"
    waiting = [record for record in stopped.records if record.status == "interrupted"]
    assert waiting
    assert all(0 < record.epoch < EPOCHS for record in waiting)
    assert {record.status for record in stopped.records} <= {"interrupted", "complete"}


def test_the_command_that_it_printed_finishes_the_search(finished: tuple[Any, Any]) -> None:
    program, found = finished
    assert program.process.returncode == 0, program.err
    found.must_agree()
    assert found.parent.info.status == "FINISHED"
    assert [record.status for record in found.records] == ["complete"] * 4
    assert program.json()["trials"]["complete"] == 4
    assert len({config_hash(from_tree(record.config)) for record in found.records}) == 4


def test_trials_that_were_stopped_go_on_from_their_epoch_with_their_configuration_in_their_run(
    killed: Killed, interrupted: tuple[Any, Any], finished: tuple[Any, Any], folder: Path
) -> None:
    stopped, found = interrupted[1], finished[1]
    waiting = {record.number: record for record in stopped.records if record.status == "interrupted"}
    through = {record.number for record in complete(stopped.records)}  # when Ctrl-C was pressed
    running = {record.number: record for record in killed.records if record.status == "running"}
    for record in found.records:
        result = json.loads((folder / "trials" / f"{record.number:03d}" / "result.json").read_text())
        if record.number in waiting:
            before = waiting[record.number]
            assert result["resumed_at"] == before.epoch
            assert record.config == before.config
            assert found.children[record.number].info.run_id == stopped.children[record.number].info.run_id
        elif record.number in through & running.keys():  # a killed driver may not have heard of the last epoch
            assert running[record.number].epoch <= result["resumed_at"] <= EPOCHS
        else:
            assert result["resumed_at"] == 0
        assert found.epochs(record.number) == list(range(1, EPOCHS + 1))
        assert record.seconds == pytest.approx(result["seconds"])


def test_a_killed_driver_loses_no_finished_trial_and_none_is_trained_twice(
    killed: Killed, finished: tuple[Any, Any]
) -> None:
    after, done = finished[1], complete(killed.records)
    assert [record for record in after.records if record.number in {old.number for old in done}] == done
    assert {path: path.stat().st_mtime_ns for path in killed.written} == killed.written
    for record in killed.records:
        assert after.records[record.number].config == record.config


def test_ctrl_c_twice_stops_at_once_and_still_leaves_nothing_running(place: Path, start: Make, facts: Make) -> None:
    folder = place / "my runs" / "twice"
    # Epochs are so long that the first Ctrl-C alone would be waited for.
    slow = ("student.model=resnet26", "train.batch_size=1", "train.epochs=2", "search.concurrent=1")
    program = search(start, place, "twice", *(word for change in slow for word in ("--set", change)))
    program.wait_until(lambda: Counter(record.status for record in records(folder))["running"] >= 1)
    program.press_ctrl_c()
    with contextlib.suppress(Exception):
        program.process.wait(1.0)
    assert program.process.poll() is None, "the first Ctrl-C did not wait for the epoch"
    begun = program.seconds
    program.press_ctrl_c()
    assert program.wait() == 130, program.err
    assert program.seconds - begun < 20
    assert "Traceback" not in program.err
    assert "--resume" in program.err
    assert program.left() == [], "processes are left"
    assert {record.status for record in records(folder)} == {"interrupted"}
    assert "RUNNING" not in facts(place / "my runs", "twice").states.values()
