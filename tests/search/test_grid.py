"""The grid: every configuration of a conditional space, once, in one order, from wherever a walk goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hksd.config.run import config_hash
from hksd.errors import ConfigError
from hksd_search.ending import End, Why
from hksd_search.space import grid
from hksd_search.space.space import Space

Make = Callable[..., Any]
DISCRETE = {
    "student": {"model": "resnet8", "width": {"choice": [0.25, 0.5]}},
    "terms": {
        "ce": {"weight": 1.0},
        "kd": {"weight": {"choice": [0.5, 1.0], "off": 0.3}, "temperature": {"int": [2, 6], "step": 2}},
        "squeeze": {"weight": 1.0, "depth": {"choice": [1, 2]}, "levels": {"choice": ["top", "all"]}},
    },
    "train": {"epochs": 3, "lr": 0.1},
}
COUNT = 2 * (1 + 2 * 3) * (1 + 2)  # widths; kd absent or with its knobs; levels only at depth 2
KNOBS = {
    "temperature": st.sampled_from([4.0, {"choice": [1, 4]}, {"int": [1, 5], "step": 2}]),
    "standardize": st.sampled_from([False, {"choice": [True, False]}]),
}


def points(space: Space) -> list[tuple[dict[str, Any], list[int]]]:
    return [(odometer.answers, odometer.wheels) for odometer in grid.walk(space)]


def grids(make_space: Make, **sections: Any) -> Space:
    space: Space = make_space(**{**DISCRETE, **sections}, search={"sampler": "grid", "trials": 200, "arms": "none"})
    return space


def test_a_block_that_is_absent_and_a_dead_knob_are_not_counted(make_space: Make) -> None:
    space = grids(make_space)
    assert len(points(space)) == COUNT
    assert (grid.count(space, COUNT), grid.count(space, COUNT - 1)) == (COUNT, COUNT)


@settings(max_examples=25, deadline=None)
@given(
    off=st.sampled_from([0.0, 0.4]),
    knobs=st.fixed_dictionaries(KNOBS),
    depth=st.sampled_from([1, {"choice": [1, 2, 3]}]),
    levels=st.sampled_from(["top", {"choice": ["top", "all"]}]),
    start=st.integers(0, 200),
)
def test_a_walk_meets_every_configuration_once_and_goes_on_from_any_point(
    off: float, knobs: dict[str, Any], depth: Any, levels: Any, start: int, make_space: Make
) -> None:
    kd = {"weight": {"choice": [0.5, 1.0], "off": off}, **knobs}
    terms = {"ce": {"weight": 1.0}, "kd": kd, "squeeze": {"weight": 1.0, "depth": depth, "levels": levels}}
    space = grids(make_space, terms=terms)
    walked = points(space)
    hashes = [config_hash(space.draw(grid.draw(space, wheels).__class__(wheels))) for _, wheels in walked]
    assert len(set(hashes)) == len(hashes)
    temperatures = {float: 1, dict: 2}[type(knobs["temperature"])]
    if isinstance(knobs["temperature"], dict) and "int" in knobs["temperature"]:
        temperatures = 3
    present = 2 * temperatures * (2 if isinstance(knobs["standardize"], dict) else 1)
    depths = [1] if depth == 1 else [1, 2, 3]
    squeezes = sum(2 if isinstance(levels, dict) and d > 1 else 1 for d in depths)
    assert len(hashes) == 2 * (present + (off > 0)) * squeezes
    again = start % len(walked)
    assert [(o.answers, o.wheels) for o in grid.walk(space, walked[again][1])] == walked[again:]


def test_continuous_ranges_have_the_middles_of_equal_parts(make_space: Make) -> None:
    terms = {"ce": {"weight": 1.0}, "kd": {"weight": {"log_uniform": [1, 100]}, "temperature": {"uniform": [0.5, 8.5]}}}
    search = {"sampler": "grid", "grid_points": 2, "trials": 9}
    space = make_space(student={"model": "resnet8", "width": 0.25}, terms=terms, train={"lr": 0.1}, search=search)
    found = [tuple(answers.values()) for answers, _ in points(space)]
    expected = itertools.product([10**0.5, 10**1.5], [2.5, 6.5])
    assert [pytest.approx(pair) for pair in expected] == found


def test_a_grid_over_continuous_ranges_without_points_is_an_error_with_the_way_out(make_space: Make) -> None:
    with pytest.raises(ConfigError) as caught:
        make_space(search={"sampler": "grid"})
    paths = [".".join(map(str, problem.path)) for problem in caught.value.problems]
    assert paths == ["terms.kd.weight", "terms.kd.temperature", "train.lr"]
    assert all("grid_points" in problem.message for problem in caught.value.problems)


@pytest.mark.parametrize("stop", [1, 10, COUNT - 1])
def test_a_search_by_grid_trains_every_configuration_once_also_when_it_is_interrupted(
    stop: int, make_space: Make, open_ledger: Make, train: Make, tmp_path: Path
) -> None:
    space = grids(make_space)
    ledger, hashes = open_ledger(space), []
    for _ in range(stop):
        assignment = ledger.next()
        hashes.append(config_hash(assignment.config))
        train(ledger, assignment, (0.1, 0.2, 0.3))
    going = ledger.next()
    ledger.interrupt()
    again = open_ledger(space)
    while (assignment := again.next()) is not None:
        assert assignment.resumed == (assignment.number == going.number)
        hashes.append(config_hash(assignment.config))
        train(again, assignment, (0.1, 0.2, 0.3))
    assert len(hashes) == len(set(hashes)) == COUNT
    assert again.end == End(Why.EXHAUSTED)
    assert {record.status for record in again.records()} == {"complete"}
    assert "student.width" in again.study.trials[3].params
    assert open_ledger(space).next() is None


def test_a_grid_is_walked_to_its_end_however_many_points_are_refused_in_a_row(
    make_space: Make, open_ledger: Make, train: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hksd_search.space.arms.PATIENCE", 3)
    search = {"sampler": "grid", "trials": 200, "arms": "none", "limits": {"params": 12_000}}
    space = make_space(**{**DISCRETE, "student": {"model": "resnet8", "width": {"choice": [0.5, 0.25]}}}, search=search)
    ledger, trained = open_ledger(space), 0
    while (assignment := ledger.next()) is not None:
        train(ledger, assignment, (0.1, 0.2, 0.3))
        trained += 1
    assert trained == COUNT // 2
    assert ledger.end == End(Why.EXHAUSTED)
