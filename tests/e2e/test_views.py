"""The teacher's knowledge as commands show it: its cost before it is built, and a disk that does not take it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, write_space: Make) -> Path:
    folder = tmp_path_factory.mktemp("knowledge")
    write_space(folder / "space.yaml", search={"trials": 3})
    return folder


def views(runs: Path) -> set[str]:
    """Numbers of the views that are kept."""
    return {path.name.split(".")[0] for path in (runs / "teachers").rglob("*/views/*/*.safetensors")}


def scores(runs: Path, name: str) -> list[Any]:
    lines = (runs / name / "trials.csv").read_text().splitlines()
    at = lines[0].split(",").index("val_accuracy")
    return sorted(line.split(",")[at] for line in lines[1:])


def test_the_cost_of_views_is_told_before_they_are_built_and_views_builds_so_many(place: Path, inside: Make) -> None:
    runs = place / "first"
    code, out, _ = inside("teacher", "space.yaml", "--runs", runs, "--views", 2, cwd=place)
    assert code == 0
    assert views(runs) == {"0000", "0001"}
    assert "knowledge of the teacher: 3 views of" in out
    assert out.index("3 views of") < out.index("view 2/2")
    assert "arithmetic: " in out
    code, out, _ = inside("teacher", "space.yaml", "--runs", runs, "--json", cwd=place)
    found = json.loads(out)
    assert (found["knowledge"], found["views"], found["built"]) == ("cached", 3, 3)
    assert views(runs) == {"0000", "0001", "0002"}


def test_hksd_space_says_which_terms_keep_the_teacher_at_work(place: Path, inside: Make) -> None:
    assert "no draw needs the teacher at work" in inside("space", "space.yaml", cwd=place)[1]
    words = ("space", "space.yaml", "--set", "terms.fitnet.weight=1", "--json")
    found = json.loads(inside(*words, cwd=place)[1])["knowledge"]
    assert found["live_share"] == 1
    assert found["live_because"] == {"terms.fitnet reads whole maps of the teacher": 1}
    assert found["live_cost"] > 1


def test_views_that_cannot_be_what_terms_need_are_refused_with_2(place: Path, inside: Make) -> None:
    words = ("--set", "terms.fitnet.weight=1", "--set", "train.knowledge=cached", "--runs", place / "first")
    code, _, complaint = inside("teacher", "space.yaml", *words, cwd=place)
    assert code == 2
    assert "train.knowledge=cached, but terms.fitnet reads whole maps of the teacher" in complaint


@pytest.mark.parametrize("command", ["space", "search"])
def test_a_space_is_refused_with_2_where_some_draws_need_more_than_the_views(
    command: str, place: Path, inside: Make
) -> None:
    words = ("--set", "terms.fitnet.weight.uniform=[1,2]", "--set", "terms.fitnet.weight.off=0.5")
    runs = () if command == "space" else ("--runs", place / "first", "--name", "refused")
    code, _, complaint = inside(command, "space.yaml", *words, "--set", "train.knowledge=cached", *runs, cwd=place)
    assert code == 2
    assert "train.knowledge: cached is not enough for every draw" in complaint
    assert re.search(r"terms.fitnet reads whole maps of the teacher \((4|5)\d% of random draws\)", complaint)
    assert "set it to auto" in complaint
    assert not (place / "first/refused").exists()


@pytest.mark.slow
def test_a_search_that_cannot_keep_views_says_so_once_and_finds_the_same(place: Path, inside: Make, hksd: Make) -> None:
    good, bad = place / "good", place / "bad"
    assert inside("teacher", "space.yaml", "--runs", bad, "--views", 0, cwd=place)[0] == 0
    (teacher,) = (bad / "teachers").iterdir()
    (teacher / "views").write_text("a file where the folder should be")
    for runs in (good, bad):
        program = hksd("search", "space.yaml", "--name", "one", "--runs", runs, cwd=place)
        assert program.process.returncode == 0, program.err
        warned = (program.out + program.err).count("the teacher's knowledge cannot be kept")
        assert warned == (runs == bad)
    assert len(views(good)) == 3
    assert scores(good, "one") == scores(bad, "one")
