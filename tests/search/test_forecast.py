"""The arithmetic of an estimate: halving against a simulation, the fit, totals, what people read."""

from __future__ import annotations

import random

import numpy as np
import pytest

from hksd_search.commands.estimate import between, duration
from hksd_search.estimate.forecast import Plan, Span, Work, around, expected_epochs, fitted, passed, totals
from hksd_search.space.settings import Asha, HyperBand, Median, Scheduler
from hksd_search.strategy.stopping import maker


def simulated(scheduler: Scheduler, trials: int, grace: int, epochs: int, correlation: float, seed: int) -> float:
    """Mean epochs of a trial when trials with made-up accuracies run in turn under the rule of a search.

    Args:
        scheduler: the settings.
        trials: number of trials.
        grace: first epoch at which one is stopped.
        epochs: of a trial that is not stopped.
        correlation: of the accuracies of a trial at two epochs.
        seed: of the accuracies.
    """
    draw = random.Random(seed)
    make = maker(scheduler, grace, epochs)
    assert make is not None
    rule, spent = make(), 0
    for number in range(trials):
        talent = draw.gauss(0, 1)
        for epoch in range(1, epochs + 1):
            spent += 1
            accuracy = 10 + correlation**0.5 * talent + (1 - correlation) ** 0.5 * draw.gauss(0, 1)
            rule.enter(number, epoch, accuracy, ())
            if epoch < epochs and rule.stops(number, epoch):
                break
    return spent / trials


CASES = [
    (Asha(reduction_factor=3.0), 22, 3, 6),
    (Asha(reduction_factor=2.0), 40, 1, 16),
    (Asha(reduction_factor=3.0), 60, 2, 20),
    (Asha(reduction_factor=4.0), 6, 1, 5),
    (HyperBand(reduction_factor=3.0), 40, 1, 16),
]


# The derivation takes the accuracies at two rungs as independent; where they are not, the first trials at a later rung
# are weaker than the next ones, more of which go on.
@pytest.mark.parametrize(("correlation", "tolerance"), [(0.0, 0.04), (0.7, 0.25)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_expected_epochs_of_halving_are_those_of_a_simulation(
    case: tuple[Asha | HyperBand, int, int, int], correlation: float, tolerance: float
) -> None:
    settings, trials, grace, epochs = case
    scheduler = Scheduler(**{type(settings).__name__.lower(): settings})  # type: ignore[arg-type]
    runs = [simulated(scheduler, trials, grace, epochs, correlation, seed) for seed in range(60)]
    assert expected_epochs(scheduler, grace, trials, epochs) == pytest.approx(float(np.mean(runs)), rel=tolerance)


def test_the_first_at_a_rung_goes_on_and_of_many_one_in_the_reduction_factor() -> None:
    assert passed(1, 3) == 1
    assert passed(2, 3) == 1.5, "the second goes on in half of all cases"
    assert passed(1.5, 3) == 1.25
    assert passed(10_000, 3) / 10_000 == pytest.approx(1 / 3, abs=0.002)


def test_the_median_rule_lies_between_the_grace_epochs_and_all() -> None:
    assert 4 < expected_epochs(Scheduler(median=Median()), 4, 30, 12) < 12


def test_without_early_stopping_every_epoch_is_trained() -> None:
    assert expected_epochs(Scheduler(), 12, 7, 12) == 12
    assert expected_epochs(Scheduler(asha=Asha()), 4, 0, 12) == 12
    assert expected_epochs(Scheduler(asha=Asha()), 12, 7, 12) == 12


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
    assert found.training == pytest.approx(20 * 6 + 2 * 2 * 10 + 5 + 2 * 1)
    assert (found.trial.low, found.trial.likely, found.trial.high) == pytest.approx((4, 6, 10))


def test_trials_at_once_share_the_wall_but_no_more_of_them_than_there_are() -> None:
    alone, two, many = (totals(plan(at_once=count), [1.0] * 50, 0.0, 0.0).wall for count in (1, 2, 1000))
    assert alone / 2 < two < alone
    assert many >= 10, "the longest trial"


def test_noise_of_any_kind_adds_to_the_error() -> None:
    quiet = totals(plan(), [1.0] * 50, 0.0, 0.0).error
    assert quiet > 0, "what no dry run knows"
    assert totals(plan(), [1.0] * 50, 0.2, 0.0).error > quiet
    assert totals(plan(), [1.0] * 50, 0.0, 0.2).error > quiet
    assert totals(plan(), [0.2] * 25 + [1.8] * 25, 0.0, 0.0).error > quiet


def test_a_span_is_even_in_ratios() -> None:
    span = around(10.0, 0.1)
    assert span.low * span.high == pytest.approx(span.likely**2)
    assert span.times(2).likely == 20


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.2 s"), (42, "42 s"), (119, "119 s"), (180, "3.0 min"), (9000, "2.5 h"), (400_000, "4.6 days")],
)
def test_times_are_written_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_span_is_written_with_its_likely_value_first() -> None:
    assert between(Span(1, 2, 3), str) == "2  (1 to 3)"
