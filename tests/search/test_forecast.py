"""The arithmetic of an estimate: halving against a simulation, the fit, totals, what people read."""

from __future__ import annotations

import bisect
import random

import numpy as np
import pytest

from search.commands.estimate import between, duration
from search.forecast import (
    Plan,
    Span,
    Work,
    around,
    asha_epochs,
    expected_epochs,
    fitted,
    passed,
    rungs,
    totals,
)
from search.settings import Scheduler, SearchConfig


def quantile(ordered: list[float], share: float) -> float:
    """Linear between the order statistics, as numpy's default."""
    at = (len(ordered) - 1) * share
    low = int(at)
    return ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def simulated(trials: int, grace: int, reduction: float, epochs: int, correlation: float, seed: int) -> float:
    """Mean epochs of a trial when trials with made-up accuracies are halved as they come.

    Args:
        trials: number of trials.
        grace: first epoch at which one is stopped.
        reduction: one in that many goes on.
        epochs: of a trial that is not stopped.
        correlation: of the accuracies of a trial at two rungs.
        seed: of the accuracies.
    """
    draw = random.Random(seed)
    known: dict[int, list[float]] = {rung: [] for rung in rungs(grace, reduction, epochs)}
    spent = 0
    for _ in range(trials):
        talent, end = draw.gauss(0, 1), epochs
        for rung, values in known.items():
            accuracy = correlation**0.5 * talent + (1 - correlation) ** 0.5 * draw.gauss(0, 1)
            stopped = bool(values) and accuracy < quantile(values, 1 - 1 / reduction)
            bisect.insort(values, accuracy)
            if stopped:
                end = rung
                break
        spent += end
    return spent / trials


CASES = [(22, 3, 3.0, 6), (40, 1, 2.0, 16), (100, 2, 3.0, 20), (6, 1, 4.0, 5), (30, 6, 3.0, 16)]


# The derivation takes the accuracies at two rungs as independent; where they are not, the first trials at a later rung
# are weaker than the next ones, more of which go on.
@pytest.mark.parametrize(("correlation", "tolerance"), [(0.0, 0.03), (0.7, 0.2)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_expected_epochs_of_halving_are_those_of_a_simulation(
    case: tuple[int, int, float, int], correlation: float, tolerance: float
) -> None:
    mean = float(np.mean([simulated(*case, correlation, seed) for seed in range(400)]))
    assert asha_epochs(*case) == pytest.approx(mean, rel=tolerance)


def test_the_first_at_a_rung_goes_on_and_of_many_one_in_the_reduction_factor() -> None:
    assert passed(1, 3) == 1
    assert passed(2, 3) == 1.5, "the second goes on in half of all cases"
    assert passed(10_000, 3) / 10_000 == pytest.approx(1 / 3, abs=0.002)


def test_rungs_lie_at_powers_of_the_factor_and_never_at_the_last_epoch() -> None:
    assert rungs(2, 3, 20) == [2, 6, 18]
    assert rungs(3, 3, 9) == [3]
    assert rungs(2, 2.5, 20) == [2, 5, 13]
    assert rungs(6, 3, 6) == []


def test_without_early_stopping_every_epoch_is_trained() -> None:
    assert expected_epochs(SearchConfig(trials=9, scheduler=Scheduler(asha=None)), 7, 12) == 12
    assert expected_epochs(SearchConfig(trials=9), 0, 12) == 12
    assert 4 < expected_epochs(SearchConfig(trials=9), 7, 12) < 12


def made_up(count: int, noise: float) -> tuple[list[Work], list[float]]:
    draw = np.random.default_rng(0)
    works = [
        Work(64, float(draw.uniform(1, 20)), float(draw.choice([0.0, 50.0])), int(draw.integers(0, 4)), 10)
        for _ in range(count)
    ]
    exact = [0.003 + 1e-6 * 64 * w.student + 4e-7 * 64 * w.teacher + 0.0005 * w.terms for w in works]
    return works, [value * float(np.exp(noise * draw.standard_normal())) for value in exact]


def test_the_fit_finds_the_time_of_steps_that_follow_its_formula() -> None:
    works, seconds = made_up(12, noise=0.0)
    fit = fitted(works, seconds)
    assert fit.error < 1e-9
    other = Work(64, 7.0, 50.0, 2, steps=100)
    assert fit.epoch_seconds(other) == pytest.approx(100 * (0.003 + 64 * 7e-6 + 64 * 2e-5 + 0.001))


def test_the_fit_says_how_far_single_runs_are_from_it() -> None:
    assert 0.05 < fitted(*made_up(60, noise=0.1)).error < 0.15


def test_no_coefficient_is_negative_so_that_no_time_is() -> None:
    works = [Work(64, size, 0.0, 1, 10) for size in (1.0, 2.0, 4.0, 8.0)]
    fit = fitted(works, [0.04, 0.03, 0.02, 0.01])
    assert (fit.coefficients >= 0).all()
    assert fit.epoch_seconds(Work(64, 100.0, 0.0, 0, 10)) >= 0


def plan(**changes: float) -> Plan:
    facts = {"drawn": 20, "arms": (2.0, 2.0), "epochs": 10, "first_rung": 4, "expected": 6.0, "at_once": 2}
    return Plan(**{**facts, "knowledge_seconds": 5.0, "first_seconds": 1.0, **changes})  # type: ignore[arg-type]


def test_training_is_that_of_draws_and_arms_with_what_is_done_once() -> None:
    found = totals(plan(), [1.0] * 50, 0.0, 0.0)
    assert found.training.likely == pytest.approx(20 * 6 + 2 * 2 * 10 + 5 + 2 * 1)
    assert found.training.low < found.training.likely < found.training.high
    assert (found.trial.low, found.trial.likely, found.trial.high) == pytest.approx((4, 6, 10))


def test_trials_at_once_share_the_wall_but_no_more_of_them_than_there_are() -> None:
    alone, two, many = (totals(plan(at_once=count), [1.0] * 50, 0.0, 0.0).wall.likely for count in (1, 2, 1000))
    assert alone / 2 < two < alone
    assert many >= 10, "the longest trial"


def test_noise_of_any_kind_widens_the_span() -> None:
    quiet = totals(plan(), [1.0] * 50, 0.0, 0.0).training
    for noisy in (
        totals(plan(), [1.0] * 50, 0.2, 0.0).training,
        totals(plan(), [1.0] * 50, 0.0, 0.2).training,
        totals(plan(), [0.2] * 25 + [1.8] * 25, 0.0, 0.0).training,
    ):
        assert noisy.low < quiet.low < quiet.high < noisy.high


def test_a_span_is_even_in_ratios() -> None:
    span = around(10.0, 0.1)
    assert span.low * span.high == pytest.approx(span.likely**2)
    assert span.times(2).likely == 20
    assert span.plus(1).low == span.low + 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.2 s"), (42, "42 s"), (119, "119 s"), (180, "3.0 min"), (9000, "2.5 h"), (400_000, "4.6 days")],
)
def test_times_are_written_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_span_is_written_with_its_likely_value_first() -> None:
    assert between(Span(1, 2, 3), str) == "2  (1 to 3)"
