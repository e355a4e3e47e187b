"""A confirmation as people run it: killed and continued, interrupted and resumed; the test split opens at the end.

The folder has files in it that are called like modules; they must hide none, with and without a path of Python's there.
"""

from __future__ import annotations

import csv
import json
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mlflow.tracking import MlflowClient

from hksd.config.run import config_hash
from hksd_search.confirm.contenders import FAILED_FILE, arms, runs_of
from hksd_search.space.arms import ARMS
from hksd_search.study.openings import OPENINGS_FILE
from hksd_search.study.reading import open_search

Make = Callable[..., Any]
EPOCHS = 8
RUNS = 10  # a student and four arms, two seeds


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, write_space: Make, lay_traps: Make, hksd: Make) -> Path:
    """Working directory full of traps with the search `first`: four arms and two drawn trials."""
    folder = tmp_path_factory.mktemp("confirmed")
    lay_traps(folder)
    write_space(
        folder / "space.yaml",
        train={"epochs": EPOCHS},
        search={"trials": 6, "arms": "fixed", "scheduler": "none", "concurrent": 2},
    )
    found = hksd("search", "space.yaml", "--name", "first", cwd=folder)
    assert found.process.returncode == 0, found.err
    return folder


def results(place: Path) -> dict[str, int]:
    """Time of writing of every finished run."""
    folder = place / "runs" / "first" / "confirm"
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.glob("*/*/result.json")}


def opened(place: Path) -> list[dict[str, Any]]:
    file = place / "runs" / "first" / OPENINGS_FILE
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_files_of_the_user_that_are_called_like_modules_hide_none_from_a_search_and_a_run(
    place: Path, hksd: Make
) -> None:
    best = place / "runs" / "first" / "export" / "best.yaml"
    assert best.exists()
    done = hksd("train", best.relative_to(place), cwd=place)
    assert done.process.returncode == 0, done.err


def test_a_killed_confirmation_continues_and_the_test_split_is_opened_once_and_no_file_of_the_user_hides_a_module(
    place: Path, start: Make, hksd: Make, inside: Make, lay_traps: Make
) -> None:
    words = ("confirm", "first", "--top", "1", "--seeds", "2")
    program = start(*words, cwd=place)
    program.wait_until(lambda: len(results(place)) >= 2)
    program.process.send_signal(signal.SIGKILL)
    program.wait()
    assert program.left(ignoring="Agent") == []
    before = results(place)
    assert 2 <= len(before) < RUNS
    assert opened(place) == [], "the test split was opened before everything was trained"

    lay_traps(place, python_path=True)
    again = hksd(*words, "--json", cwd=place, PYTHONPATH=".")
    assert again.process.returncode == 0, again.err
    found = again.json()
    assert found["trained_now"] == RUNS - len(before)
    after = results(place)
    assert len(after) == RUNS
    assert {name: after[name] for name in before} == before, "a run was trained twice"
    (opening,) = opened(place)
    assert opening["by"] == "hksd confirm"
    assert len(opening["scored"]) == RUNS + 1  # with the teacher
    check_figures(place, found)

    # Nothing is missing: nothing is trained, nothing is opened, the figures stay.
    code, out, err = inside(*words, "--json", cwd=place)
    assert code == 0, err
    repeated = json.loads(out)
    assert (repeated["trained_now"], repeated["opened_now"]) == (0, False)
    assert repeated["students"] == found["students"]
    assert results(place) == after
    assert len(opened(place)) == 1


def check_figures(place: Path, found: dict[str, Any]) -> None:
    """The same seeds for all, none of them the search's; figures, files and the store agree."""
    assert found["seeds"] == [1000, 1001]
    assert [arm["name"] for arm in found["arms"]] == list(ARMS)
    folder = place / "runs" / "first" / "confirm"
    assert json.loads((folder / "confirm.json").read_text())["students"] == found["students"]
    rows = list(csv.DictReader((folder / "confirm.csv").open()))
    assert len(rows) == RUNS
    for one in (*found["students"], *found["arms"]):
        mine = {row["seed"]: row for row in rows if row["run"].startswith(one["folder"])}
        assert list(mine) == ["1000", "1001"]
        assert len({row["config_hash"] for row in mine.values()}) == 2
        for split in ("val", "test"):
            values = [float(row[f"{split}_accuracy"]) for row in mine.values()]
            assert one[f"{split}_accuracy"]["mean"] == pytest.approx(sum(values) / 2)
    text = (folder / "confirm.md").read_text()
    assert "The test split of this search was opened once." in text
    assert all(sentence in text for sentence in found["sentences"])
    client = MlflowClient(f"sqlite:///{place / 'runs' / 'mlflow.db'}")
    (run,) = client.search_runs(["1"], "tags.`hksd.kind` = 'confirm'")
    (parent,) = client.search_runs(["1"], "tags.`hksd.kind` = 'search'")
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.metrics["teacher/test_accuracy"] == pytest.approx(found["teacher"]["test_accuracy"])


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_more_seeds_add_only_what_is_missing(place: Path, start: Make, hksd: Make) -> None:
    if not opened(place):  # where the test above is not run
        assert hksd("confirm", "first", "--top", "1", "--seeds", "2", cwd=place).process.returncode == 0
    before = results(place)
    assert len(before) == RUNS
    program = start("confirm", "first", "--top", "1", "--seeds", "4", cwd=place)
    program.wait_until(lambda: len(results(place)) > RUNS)
    program.press_ctrl_c()
    assert program.wait() == 130, program.err
    assert "Traceback" not in program.err
    assert "stopping: each run finishes its step" in program.out
    assert program.left() == [], "processes are left"
    assert len(opened(place)) == 1
    line = program.err.split("Resume with:\n")[1].splitlines()[0]
    words = shlex.split(line)
    assert words == ["hksd", "confirm", "first", "--seeds", "4", "--top", "1"]

    # A run that failed for good is not tried again: it is named, and its seed is missing from its contender alone.
    found = open_search(place / "runs", "first")
    last = arms(found)[-1]
    lost = runs_of(last, [1003], found.folder / "confirm")[0]
    lost.folder.mkdir(parents=True, exist_ok=True)
    failure = {"config_hash": config_hash(lost.config), "reason": "the loss is not finite"}
    (lost.folder / FAILED_FILE).write_text(json.dumps(failure))
    again = hksd(*words[1:], cwd=place)
    assert again.process.returncode == 0, again.err
    after = results(place)
    assert len(after) == 2 * RUNS - 1
    assert {name: after[name] for name in before} == before
    assert [len(opening["scored"]) for opening in opened(place)] == [RUNS + 1, RUNS - 1]
    assert "Warning: the test split of this search was opened 2 times" in again.out
    assert "Paper preset, seed 1003 failed and is left out: the loss is not finite" in again.out
    facts = json.loads((found.folder / "confirm" / "confirm.json").read_text())
    assert [one["test_accuracy"]["n"] for one in (*facts["students"], *facts["arms"])] == [4, 4, 4, 4, 3]


def test_a_second_confirmation_at_the_same_time_is_refused(place: Path, inside: Make) -> None:
    folder = place / "runs" / "first" / "confirm"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / ".lock"):
        code, _, err = inside("confirm", "first", cwd=place)
    assert code == 2
    assert "another process is confirming this search" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nosuch",), "no such search (there are: first)"),
        (("first", "--seeds", "0"), "--seeds"),
        (("first", "--top", "0"), "--top"),
        (("first", "--trials", "99"), "has no trial 99 (0 to 5)"),
        (("first", "--trials", "0"), 'is the arm "no distillation"'),
        (("first", "--trials", "3,x"), "expected numbers of trials"),
        (("first", "--trials", "-3"), "expected numbers of trials"),
    ],
)
def test_wrong_input_is_told_before_anything_is_trained(
    place: Path, inside: Make, words: tuple[str, ...], message: str
) -> None:
    before = results(place)
    code, _, err = inside("confirm", *words, cwd=place)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert results(place) == before
