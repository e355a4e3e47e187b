"""Who is confirmed: the best drawn trials by the search's own ranking, and its arms, on seeds that nobody has seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hksd.bounds import LAST_SEED
from hksd.config.run import config_hash, dump, from_tree
from hksd.errors import UserError
from hksd_search.confirm.contenders import Run, arms, new_seeds, runs_of, students, unfinished_arms
from hksd_search.space.arms import ARMS, NO_DISTILLATION, STANDARD_KD
from hksd_search.study.reading import SearchFolder
from hksd_search.study.records import Record, Status

Make = Callable[..., Any]


@pytest.fixture
def search(make_tree: Make) -> Callable[..., SearchFolder]:
    """search((accuracy, params, arm, status), ..): a search with these trials."""
    tree = dump(from_tree(make_tree()))

    def make(*rows: tuple[float, int, str | None, Status], **facts: Any) -> SearchFolder:
        records = [
            Record(number, status, arm, tree, {"params": params, "mflops": 1.0}, 3, accuracy, 1.0, None)
            for number, (accuracy, params, arm, status) in enumerate(rows)
        ]
        return SearchFolder("first", Path("runs/first"), records, facts)

    return make


def numbers(chosen: list[Any]) -> list[int]:
    return [contender.record.number for contender in chosen]


def test_the_best_drawn_trials_are_confirmed_best_first_and_arms_do_not_count(search: Make) -> None:
    found = search(
        (0.99, 10, NO_DISTILLATION, "complete"),
        (0.5, 10, None, "complete"),
        (0.7, 20, None, "complete"),
        (0.7, 10, None, "complete"),
        (0.9, 10, None, "pruned"),
    )
    assert numbers(students(found, 2)) == [3, 2]
    assert numbers(students(found, 9)) == [3, 2, 1]


def test_of_a_front_its_most_accurate_trials_are_confirmed(search: Make) -> None:
    rows = [(0.9, 100, None, "complete"), (0.89, 200, None, "complete"), (0.7, 10, None, "complete")]
    assert numbers(students(search(*rows, minimize=["params"]), 2)) == [0, 2]
    assert numbers(students(search(*rows), 2)) == [0, 1]


def test_named_trials_are_confirmed_in_place_of_the_best(search: Make) -> None:
    found = search(*[(0.5 + n / 10, 10, None, "complete") for n in range(4)])
    assert numbers(students(found, 3, [2, 0, 2])) == [2, 0]


@pytest.mark.parametrize(
    ("trial", "message"),
    [(9, r"no trial 9 \(0 to 2\)"), (0, 'is the arm "no distillation"'), (1, "trial 1 is pruned")],
)
def test_trials_that_cannot_be_confirmed_are_refused(search: Make, trial: int, message: str) -> None:
    found = search((0.5, 1, NO_DISTILLATION, "complete"), (0.5, 1, None, "pruned"), (0.5, 1, None, "complete"))
    with pytest.raises(UserError, match=message):
        students(found, 3, [trial])


def test_without_a_complete_drawn_trial_there_is_nothing_to_confirm(search: Make) -> None:
    with pytest.raises(UserError, match="nothing to confirm"):
        students(search((0.5, 1, NO_DISTILLATION, "complete"), (0.6, 1, None, "running")), 3)


def test_of_an_arm_with_several_trials_the_best_that_ended_stands_for_it(search: Make) -> None:
    found = search(
        (0.5, 1, STANDARD_KD, "complete"),
        (0.7, 1, STANDARD_KD, "complete"),
        (0.9, 1, STANDARD_KD, "running"),
        (0.9, 1, NO_DISTILLATION, "failed"),
        (0.4, 1, None, "complete"),
    )
    assert numbers(arms(found)) == [1]
    assert unfinished_arms(found) == [name for name in ARMS if name != STANDARD_KD]
    assert [contender.who for contender in (*arms(found), *students(found, 1))] == ["arm-standard-kd-001", "trial-004"]


@given(seed=st.integers(0, LAST_SEED), few=st.integers(1, 9), more=st.integers(0, 9))
def test_seeds_are_new_different_and_more_of_them_begin_with_fewer(seed: int, few: int, more: int) -> None:
    seeds = new_seeds(seed, few + more)
    assert seed not in seeds
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= one <= LAST_SEED for one in seeds)
    assert seeds[:few] == new_seeds(seed, few)


def test_runs_differ_from_their_trial_by_the_seed_alone_and_all_contenders_have_the_same(
    search: Make, tmp_path: Path
) -> None:
    found = search((0.5, 1, NO_DISTILLATION, "complete"), (0.6, 1, None, "complete"))
    student, arm = students(found, 1)[0], arms(found)[0]
    one, other = (runs_of(contender, [1000, 1001], tmp_path) for contender in (student, arm))
    assert [run.config.seed for run in one] == [run.config.seed for run in other] == [1000, 1001]
    for run in one:
        assert {**dump(run.config), "seed": 0} == {**dump(student.config), "seed": 0}
    assert len({run.folder for run in (*one, *other)}) == 4


def test_a_result_counts_for_its_configuration_and_its_data_alone(search: Make, tmp_path: Path) -> None:
    run: Run = runs_of(students(search((0.6, 1, None, "complete")), 1)[0], [1000], tmp_path)[0]
    assert run.result("data") is None
    run.folder.mkdir(parents=True)
    result = {"config_hash": config_hash(run.config), "data_fingerprint": "data"}
    (run.folder / "result.json").write_text(json.dumps(result))
    assert run.result("data") == result
    assert run.result("other") is None
    (run.folder / "result.json").write_text(json.dumps(result | {"config_hash": "other"}))
    assert run.result("data") is None
    (run.folder / "result.json").write_text("{")
    assert run.result("data") is None
