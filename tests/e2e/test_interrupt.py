"""Ctrl-C once, Ctrl-C twice, and a killed driver: nothing is lost, nothing is trained twice, nothing keeps running."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
from collections import Counter
from collections.abc import Callable
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
        search={"trials": 4, "scheduler": "none"},
        terms={"squeeze": {"weight": {"log_uniform": [0.1, 1]}, "depth": 1}},
    )
    return folder


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


def test_ctrl_c_once_saves_everything_and_the_printed_command_finishes_the_search(
    place: Path, start: Make, facts: Make
) -> None:
    folder = place / "my runs" / "once"
    program = search(start, place, "once")
    program.wait_until(lambda: sum(record.epoch >= 2 for record in records(folder)) >= 1)
    program.press_ctrl_c()
    assert program.wait() == 130, program.err
    assert "Traceback" not in program.err
    assert "stopping: each trial finishes its epoch" in program.out
    assert program.left() == [], "processes are left"

    stopped = facts(place / "my runs", "once")
    stopped.must_agree()
    assert stopped.parent.info.status == "KILLED"
    waiting = [record for record in stopped.records if record.status == "interrupted"]
    assert waiting
    assert all(0 < record.epoch < EPOCHS for record in waiting)
    assert {record.status for record in stopped.records} <= {"interrupted", "complete"}

    again = start(*resume_command(program.err), "--json", cwd=place)
    assert again.wait() == 0, again.err
    finished = facts(place / "my runs", "once")
    finished.must_agree()
    assert finished.parent.info.status == "FINISHED"
    assert [record.status for record in finished.records] == ["complete"] * 4
    assert again.json()["trials"]["complete"] == 4
    for record in finished.records:
        # Trials that were interrupted went on from their epoch, with their configuration, in their run.
        result = json.loads((folder / "trials" / f"{record.number:03d}" / "result.json").read_text())
        before = next((old for old in waiting if old.number == record.number), None)
        assert result["resumed_at"] == (before.epoch if before else 0)
        if before:
            assert record.config == before.config
            assert finished.children[record.number].info.run_id == stopped.children[record.number].info.run_id
        assert finished.epochs(record.number) == list(range(1, EPOCHS + 1))
        assert record.seconds == pytest.approx(result["seconds"])


def test_ctrl_c_twice_stops_at_once_and_still_leaves_nothing_running(place: Path, start: Make, facts: Make) -> None:
    folder = place / "my runs" / "twice"
    # Epochs are so long that the first Ctrl-C alone would be waited for.
    slow = ("student.model=resnet26", "train.batch_size=1", "train.epochs=2")
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


def test_a_killed_driver_loses_no_finished_trial_and_the_search_continues(
    place: Path, start: Make, facts: Make
) -> None:
    folder = place / "my runs" / "killed"
    program = search(start, place, "killed")
    program.wait_until(
        lambda: (
            {"complete", "running"} <= {r.status for r in records(folder)}
            and any(r.status == "running" and r.epoch >= 2 for r in records(folder))
        )
    )
    program.process.send_signal(signal.SIGKILL)
    program.wait()
    # Whatever trains ends with its driver. Two agents of Ray stay (they hold nothing); the fixture ends them.
    assert program.left(ignoring="Agent") == []
    before = records(folder)
    done = [record for record in before if record.status == "complete"]
    assert done
    written = {
        path: path.stat().st_mtime_ns
        for record in done
        for path in (folder / "trials" / f"{record.number:03d}").iterdir()
    }

    again = search(start, place, "killed", "--resume")
    assert again.wait() == 0, again.err
    after = facts(place / "my runs", "killed")
    after.must_agree()
    assert [record.status for record in after.records] == ["complete"] * 4
    assert len({config_hash(from_tree(record.config)) for record in after.records}) == 4
    assert [record for record in after.records if record.number in {old.number for old in done}] == done
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert after.parent.info.status == "FINISHED"
    for record in before:
        assert after.records[record.number].config == record.config
