"""A range is read as it is written, everything wrong with it is told, and what it gives lies inside."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hksd.errors import Problem
from hksd.yaml import parse_yaml
from hksd_search.space.ranges import KINDS, Range, parse

PATH = ("train", "lr")


def read(text: str) -> tuple[Range | None, list[Problem]]:
    """Parse a range as it stands in a file."""
    return parse(parse_yaml(f"x: {text}", "x.yaml").tree["x"], PATH)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{choice: [a, b]}", Range("choice", ("a", "b"))),
        ("{choice: [1]}", Range("choice", (1,))),
        ("{choice: [true, false]}", Range("choice", (True, False))),
        ("{choice: [null, 64]}", Range("choice", (None, 64))),
        ("{choice: [all, 1, 2.5]}", Range("choice", ("all", 1, 2.5))),
        ("{choice: [1, true]}", Range("choice", (1, True))),
        ("{uniform: [0, 1]}", Range("uniform", (0.0, 1.0))),
        ("{uniform: [-1.5, 1], step: 0.5}", Range("uniform", (-1.5, 1.0), 0.5)),
        ("{log_uniform: [1e-4, 1]}", Range("log_uniform", (0.0001, 1.0))),
        ("{log_uniform: [1e-4, 1]}", Range("log_uniform", (0.0001, 1.0))),
        ("{int: [1, 8]}", Range("int", (1, 8))),
        ("{int: [-4, 8], step: 3}", Range("int", (-4, 8), 3)),
        ("{int: [1e1, 2e1]}", Range("int", (10, 20))),
        ("{int: [1e1, 20.0]}", Range("int", (10, 20))),
        ("{choice: [1, 2], off: 0.25}", Range("choice", (1, 2), None, 0.25)),
        ("{uniform: [1, 2], off: 0}", Range("uniform", (1.0, 2.0), None, 0.0)),
        ("{uniform: [0, 1], step: 0.25, off: 0.999}", Range("uniform", (0.0, 1.0), 0.25, 0.999)),
    ],
)
def test_every_distribution_is_read_as_it_is_written(text: str, expected: Range) -> None:
    spread, faults = read(text)
    assert faults == []
    assert spread == expected
    assert [type(value) for value in spread.values] == [type(value) for value in expected.values]
    assert type(spread.step) is type(expected.step)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[1e-3, 1E2, -2e+1, .5e1]", (0.001, 100.0, -20.0, 5.0)),
        ("[0.001, 1]", (0.001, 1)),
        ("[off, on]", ("off", "on")),
    ],
)
def test_numbers_in_a_choice_are_numbers_with_and_without_a_dot(text: str, values: tuple[Any, ...]) -> None:
    spread, _ = read(f"{{choice: {text}}}")
    assert spread is not None
    assert spread.values == values
    assert [type(value) for value in spread.values] == [type(value) for value in values]


# What is wrong, where it is said to be wrong (below the key), and what the message has to say.
MALFORMED = [
    ("{choice: []}", ("choice",), "empty range"),
    ("{choice: 3}", ("choice",), "must be a list of values (got 3)"),
    ("{choice: null}", ("choice",), "must be a list of values (got nothing)"),
    ("{choice: {a: 1}}", ("choice",), "must be a list of values"),
    ("{choice: [1, 2, 1]}", ("choice", 2), "the value 1 stands twice"),
    ("{choice: [a, b, a]}", ("choice", 2), "the value 'a' stands twice"),
    ("{choice: [1, {a: 2}]}", ("choice", 1), "a choice is a single value"),
    ("{choice: [[1, 2], 3]}", ("choice", 0), "a choice is a single value"),
    ("{uniform: [1, 1]}", ("uniform",), "low must be below high (got 1 and 1)"),
    ("{uniform: [2, 1]}", ("uniform",), "low must be below high (got 2 and 1)"),
    ("{int: [5, 4]}", ("int",), "low must be below high"),
    ("{log_uniform: [3, 2]}", ("log_uniform",), "low must be below high"),
    ("{uniform: [1]}", ("uniform",), "must be [low, high]"),
    ("{uniform: [1, 2, 3]}", ("uniform",), "must be [low, high]"),
    ("{uniform: []}", ("uniform",), "must be [low, high]"),
    ("{uniform: 1}", ("uniform",), "must be [low, high]"),
    ("{uniform: [a, 2]}", ("uniform", 0), "must be a number (got 'a')"),
    ("{uniform: [1, null]}", ("uniform", 1), "must be a number (got nothing)"),
    ("{uniform: [0, true]}", ("uniform", 1), "must be a number (got true)"),
    ("{uniform: [0, .inf]}", ("uniform", 1), "must be a number (got inf)"),
    ("{uniform: [.nan, 1]}", ("uniform", 0), "must be a number (got nan)"),
    ("{uniform: [[1], 2]}", ("uniform", 0), "must be a number"),
    ("{int: [1.5, 3]}", ("int",), "must be two whole numbers"),
    ("{int: [1, 3.5]}", ("int",), "must be two whole numbers"),
    ("{log_uniform: [0, 1]}", ("log_uniform", 0), "above 0 in a log_uniform range (got 0)"),
    ("{log_uniform: [-1, 1]}", ("log_uniform", 0), "above 0 in a log_uniform range (got -1)"),
    ("{log_uniform: [1, 10], step: 1}", ("step",), "in a uniform or int range"),
    ("{choice: [1, 2], step: 1}", ("step",), "in a uniform or int range"),
    ("{uniform: [0, 1], step: 0}", ("step",), "a number above 0"),
    ("{uniform: [0, 1], step: -0.5}", ("step",), "a number above 0"),
    ("{uniform: [0, 1], step: a}", ("step",), "a number above 0"),
    ("{int: [1, 9], step: 0.5}", ("step",), "whole"),
    ("{int: [1, 9], step: 2.5}", ("step",), "whole"),
    ("{uniform: [0, 1], off: 1}", ("off",), "a probability from 0 to below 1 (got 1)"),
    ("{uniform: [0, 1], off: -0.1}", ("off",), "a probability from 0 to below 1"),
    ("{uniform: [0, 1], off: often}", ("off",), "a probability from 0 to below 1 (got 'often')"),
    ("{uniform: [0, 1], off: true}", ("off",), "a probability from 0 to below 1"),
    ("{uniform: [0, 1], off: null}", ("off",), "a probability from 0 to below 1"),
    ("{uniform: [0, 1], choice: [1]}", (), "exactly one of choice, uniform, log_uniform, int (got uniform and choice)"),
    ("{off: 0.5}", (), "exactly one of"),
    ("{}", (), "exactly one of"),
    ("{log_unifrom: [1, 2]}", ("log_unifrom",), "did you mean 'log_uniform'?"),
    ("{choise: [1, 2]}", ("choise",), "did you mean 'choice'?"),
    ("{zzzz: 1}", ("zzzz",), "known: choice, uniform, log_uniform, int, step, off"),
    ("{uniform: [0, 1], stepp: 1}", ("stepp",), "did you mean 'step'?"),
]


@pytest.mark.parametrize(("text", "below", "message"), MALFORMED)
def test_a_malformed_range_is_refused_with_the_key_and_the_reason(text: str, below: tuple, message: str) -> None:
    spread, faults = read(text)
    assert spread is None
    assert [fault.path for fault in faults] == [(*PATH, *below)]
    assert message in faults[0].message


def test_all_faults_of_one_range_are_told_at_once() -> None:
    spread, faults = read("{choice: [1, 1, [2]], off: 2, step: 3, stp: 1}")
    assert spread is None
    assert {fault.path[2:] for fault in faults} == {("stp",), ("off",), ("step",), ("choice", 1), ("choice", 2)}


scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text("0123456789.e-x", max_size=4)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=2), scalars, max_size=2)


@given(st.dictionaries(st.sampled_from([*KINDS, "step", "off", "x"]), values, max_size=3))
@example({"int": ["2.0", 8]})
@example({"uniform": ["1e1", "2e1"], "step": "0.5"})
def test_whatever_stands_there_gives_either_a_range_or_faults(node: dict[str, Any]) -> None:
    spread, faults = parse(node, PATH)
    assert (spread is None) == bool(faults)
    if spread is not None:
        assert spread.kind in node
        spread.middle(), spread.samples(), str(spread)
    for fault in faults:
        assert fault.path[:2] == PATH
        assert fault.message


@st.composite
def spreads(draw: st.DrawFn) -> Range:
    """Well-formed ranges of the sizes that people write."""
    kind = draw(st.sampled_from(KINDS))
    if kind == "choice":
        return Range(kind, tuple(draw(st.lists(st.integers() | st.text(max_size=3), min_size=1, unique=True))))
    if kind == "int":
        low = draw(st.integers(-1000, 1000))
        high = draw(st.integers(low + 1, low + 2000))
        return Range(kind, (low, high), draw(st.none() | st.integers(1, high - low)))
    low = draw(st.floats(1e-9, 1e6) if kind == "log_uniform" else st.floats(-1e6, 1e6))
    high = draw(st.floats(1.001, 1e6)) * low if kind == "log_uniform" else low + draw(st.floats(0.01, 1e6))
    steps = [None, *[(high - low) / n for n in (1, 2, 3.5, 7, 10.1)]]
    return Range(kind, (low, high), draw(st.sampled_from(steps)) if kind == "uniform" else None)


def inside(spread: Range, value: Any) -> bool:
    """Whether a value may come of a range; bounds of floats with room for rounding."""
    if spread.kind == "choice":
        return value in spread.values
    low, high = spread.values
    room = 0 if spread.kind == "int" else 1e-9 * max(abs(low), abs(high), high - low)
    on_grid = True
    if spread.step:
        away = (value - low) / spread.step
        on_grid = math.isclose(away, round(away), abs_tol=1e-6, rel_tol=1e-9)
    return low - room <= value <= high + room and on_grid and (spread.kind != "int" or isinstance(value, int))


@given(spreads())
def test_the_middle_lies_inside_and_on_the_steps(spread: Range) -> None:
    assert inside(spread, spread.middle())


@pytest.mark.parametrize(
    ("text", "middle"),
    [
        ("{choice: [b, a, c]}", "b"),
        ("{uniform: [1, 8]}", 4.5),
        ("{log_uniform: [0.01, 100]}", 1.0),
        ("{int: [2, 6]}", 4),
        ("{int: [0, 10], step: 5}", 5),
        ("{uniform: [0, 1], step: 0.25}", 0.5),
        ("{uniform: [1, 4], step: 3}", 1.0),
    ],
)
def test_the_middle_is_the_first_choice_the_mean_or_the_geometric_mean(text: str, middle: Any) -> None:
    spread, _ = read(text)
    assert spread is not None
    assert spread.middle() == pytest.approx(middle) if isinstance(middle, float) else spread.middle() == middle
    assert type(spread.middle()) is type(middle)


@given(spreads().filter(lambda spread: spread.kind != "choice"), st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_shares_of_a_range_of_numbers_lie_inside_and_rise_from_its_low_end(spread: Range, shares: list[float]) -> None:
    found = [spread.at(share) for share in sorted(shares)]
    assert all(inside(spread, value) for value in found)
    assert sorted(found) == found
    low, high = spread.values
    assert spread.at(0.0) == low
    assert high - spread.at(1.0) < (spread.step or 1e-9 * max(abs(low), abs(high)))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("{int: [1, 4]}", (1, 1, 2, 3, 4)),
        ("{int: [1, 10], step: 4}", (1, 1, 5, 5, 9)),
        ("{uniform: [0, 1]}", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("{uniform: [0, 1], step: 0.5}", (0.0, 0.0, 0.5, 0.5, 1.0)),
        ("{log_uniform: [1, 16]}", (1.0, 2.0, 4.0, 8.0, 16.0)),
    ],
)
def test_quarters_of_a_range_are_its_steps_or_evenly_spread(text: str, values: tuple[Any, ...]) -> None:
    spread, _ = read(text)
    assert spread is not None
    assert [spread.at(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(values)


@given(spreads(), st.integers(0, 1000))
@pytest.mark.filterwarnings("ignore:The distribution is specified by")  # Optuna lowers `high` to the last step
def test_a_draw_of_a_real_sampler_lies_inside(spread: Range, seed: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(5):
        trial = study.ask()
        value = spread.draw(trial, "a.b")
        assert inside(spread, value)
        assert trial.params == {"a.b": value}


def draws_of(text: str, count: int) -> list[Any]:
    spread, _ = read(text)
    assert spread is not None
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    return [spread.draw(study.ask(), "x") for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "middle", "share"),
    [
        # The share of draws below `middle`, and its expected value.
        ("{uniform: [1, 100]}", 50.5, 0.5),
        ("{log_uniform: [1, 100]}", 10.0, 0.5),
        ("{uniform: [1, 100]}", 10.0, 9 / 99),
        ("{int: [1, 4]}", 2.5, 0.5),
        ("{choice: [1, 2, 3, 4]}", 1.5, 0.25),
    ],
)
def test_draws_follow_their_distribution(text: str, middle: float, share: float) -> None:
    count = 1000
    found = sum(value < middle for value in draws_of(text, count))
    assert abs(found - share * count) < 5 * math.sqrt(count * share * (1 - share))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{int: [1, 7], step: 3}", {1, 4, 7}),
        ("{choice: [a, b]}", {"a", "b"}),
        ("{int: [3, 5]}", {3, 4, 5}),
    ],
)
def test_every_value_of_a_finite_range_is_drawn(text: str, expected: set[Any]) -> None:
    assert set(draws_of(text, 200)) == expected


@given(spreads())
def test_what_is_validated_holds_every_choice_or_both_ends_with_their_path_and_nothing_outside(spread: Range) -> None:
    samples = spread.samples()
    ends = [((spread.kind, i), value) for i, value in enumerate(spread.values)]
    assert samples[: len(ends)] == ends
    assert all(path[0] == spread.kind and inside(spread, value) for path, value in samples[len(ends) :])


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("{uniform: [1, 3]}", False),
        ("{log_uniform: [1, 64]}", False),
        ("{uniform: [1, 9], step: 0.5}", False),
        ("{uniform: [1, 3], step: 1}", True),
        ("{int: [1, 30]}", True),
    ],
)
def test_a_range_that_only_starts_and_ends_on_whole_numbers_is_not_validated_as_whole(text: str, whole: bool) -> None:
    spread, _ = read(text)
    assert spread is not None
    assert all(float(value).is_integer() for _, value in spread.samples()) == whole


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{choice: [a, 2, null]}", "a | 2 | None"),
        ("{uniform: [0, 1], step: 0.5}", "uniform 0 .. 1 step 0.5"),
        ("{int: [1, 9]}", "int 1 .. 9"),
        ("{log_uniform: [1e-3, 10], off: 0.3}", "log_uniform 0.001 .. 10  (block absent with probability 0.3)"),
    ],
)
def test_a_range_is_shown_as_people_write_it(text: str, shown: str) -> None:
    spread, _ = read(text)
    assert str(spread) == shown
