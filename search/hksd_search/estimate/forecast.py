"""From measured epochs to the cost of a search: pure functions of numbers.

Time of a step of a run, fitted to the measured ones by least squares of relative errors with coefficients of at least 0
(Lawson & Hanson 1974, as in scipy):

    seconds = a + b * images * MFLOPs of the student + c * images * MFLOPs of a teacher at work + d * teacher's terms

averaged over random draws of the space. The fit has few coefficients; what it misses of single draws shows as the error
that goes into the span of the totals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from hksd_search.space.settings import Asha, HyperBand, Median, Pbt, Scheduler
from hksd_search.strategy import stopping

HOUR = 3600.0
NORMAL_95 = 1.645  # a value that is not exceeded with a probability of 95 %, in standard deviations
UNKNOWN = 0.12  # relative error of what no dry run shows: where the sampler goes, which sizes survive, load
TRIAL_OVERHEAD = 0.16  # seconds on the wall that a search adds to a trial (docs/speed.md)
# Of the epochs behind the grace epochs, under the median rule: half of the trials stop early, half go on. Not measured.
MEDIAN_SHARE = 0.5


@dataclass(frozen=True)
class Span:
    """A likely value between a low and a high one."""

    low: float
    likely: float
    high: float

    def times(self, factor: float) -> Span:
        """The span in another unit."""
        return Span(self.low * factor, self.likely * factor, self.high * factor)


def around(likely: float, error: float) -> Span:
    """The span that a relative standard error leaves, 90 % of a log-normal distribution."""
    factor = math.exp(NORMAL_95 * error)
    return Span(likely / factor, likely, likely * factor)


def passed(arriving: float, reduction: float) -> float:
    """How many of the trials that arrive at a rung one after the other are expected to go on.

    The m-th goes on if fewer than m / reduction of the m so far rank before it (see `strategy.stopping.Rung`). Its
    rank among them is uniform where accuracies are independent of the order of the trials, so it does with probability
    ceil(m / reduction) / m: the first always, of many trials one in `reduction`.
    """
    return sum(math.ceil(m / reduction - 1e-9) / m * min(1.0, arriving - m + 1) for m in range(1, _up(arriving) + 1))


def _up(value: float) -> int:
    return math.ceil(value - 1e-9)


def halving_epochs(trials: float, rungs: Iterable[int], reduction: float, epochs: int) -> float:
    """Expected epochs of a trial under asynchronous successive halving with one objective.

    Args:
        trials: how many compete.
        rungs: epochs at which trials are compared, rising.
        reduction: one in that many goes on.
        epochs: of a trial that is not stopped.
    """
    if not trials:
        return float(epochs)
    arriving, before, total = float(trials), 0, 0.0
    for rung in rungs:
        total += arriving * (rung - before)
        arriving, before = passed(arriving, reduction), rung
    return (total + arriving * (epochs - before)) / trials


def expected_epochs(scheduler: Scheduler, grace: int, trials: int, epochs: int) -> float:
    """Expected epochs of a drawn trial under a scheduler.

    Args:
        scheduler: the settings.
        grace: epochs before which no trial is stopped.
        trials: how many compete with each other.
        epochs: of a trial that is not stopped.
    """
    settings = scheduler.chosen
    if isinstance(settings, Asha):
        factor = settings.reduction_factor
        return halving_epochs(trials, stopping.rungs(grace, factor, epochs), factor, epochs)
    if isinstance(settings, HyperBand):
        factor = settings.reduction_factor
        brackets = stopping.Brackets(stopping.rungs(grace, factor, epochs), factor, settings.brackets)
        return sum(
            share * halving_epochs(share * trials, bracket.rungs, factor, epochs)
            for share, bracket in zip(brackets.shares, brackets.brackets, strict=True)
        )
    if isinstance(settings, Median):
        return grace + MEDIAN_SHARE * (epochs - grace)
    if isinstance(settings, Pbt):
        # A trial and the forks that follow it train its epochs once; at each boundary a quantile is replaced.
        return epochs / (1 + settings.quantile * len(settings.boundaries(epochs, grace)))
    return float(epochs)


@dataclass(frozen=True)
class Work:
    """What makes a step of a run long.

    Attributes:
        images: images of a step.
        student: MFLOPs of the student for one image.
        teacher: MFLOPs of the teacher for one image where it works in every step, else 0.
        terms: terms that read of the teacher.
        steps: steps of an epoch.
    """

    images: int
    student: float
    teacher: float
    terms: int
    steps: int

    def features(self) -> list[float]:
        """What the coefficients of the fit stand before."""
        return [1.0, self.images * self.student, self.images * self.teacher, float(self.terms)]


@dataclass(frozen=True)
class Fit:
    """Time of a step by its work.

    Attributes:
        coefficients: of `Work.features`, seconds.
        error: relative standard error of a single run, from the residuals.
    """

    coefficients: NDArray[np.float64]
    error: float

    def epoch_seconds(self, work: Work) -> float:
        """Predicted time of an epoch, validation included."""
        return float(self.coefficients @ np.array(work.features())) * work.steps


def fitted(works: Sequence[Work], step_seconds: Sequence[float]) -> Fit:
    """Fit the time of a step to measured ones; least squares of relative errors."""
    seconds = np.array(step_seconds)
    rows = np.array([work.features() for work in works]) / seconds[:, None]
    coefficients, residual = nnls(rows, np.ones(len(seconds)))
    used = int((coefficients > 0).sum())
    return Fit(coefficients, float(residual) / math.sqrt(max(1, len(seconds) - used)))


@dataclass(frozen=True)
class Plan:
    """What a search is going to train.

    Attributes:
        drawn: drawn trials.
        arms: predicted epoch time of each arm, seconds.
        epochs: epochs of a trial that is not stopped.
        first_rung: epochs before which none is stopped.
        expected: expected epochs of a drawn trial.
        at_once: trials at once.
        knowledge_seconds: what the teacher computes once for all trials.
        first_seconds: what each worker does once.
    """

    drawn: int
    arms: tuple[float, ...]
    epochs: int
    first_rung: int
    expected: float
    at_once: int
    knowledge_seconds: float
    first_seconds: float


@dataclass(frozen=True)
class Totals:
    """What a search costs, in seconds.

    Attributes:
        trial: training of a drawn trial. Low: a cheap draw (10 % of them are cheaper) that is stopped at the first
            rung. Likely: the mean. High: a dear one (10 % are dearer) that is trained to its end.
        training: of all trials, summed over them.
        wall: of the trials, from the first to the last.
        error: relative standard error of both.
    """

    trial: Span
    training: float
    wall: float
    error: float


def totals(plan: Plan, epoch_seconds: Sequence[float], fit_error: float, noise: float) -> Totals:
    """Sum up a search.

    Args:
        plan: what it trains.
        epoch_seconds: predicted epoch time of random draws.
        fit_error: relative standard error of their mean, from the fit.
        noise: relative standard error of the measurement as a whole.
    """
    values = np.array(epoch_seconds)
    mean, low, high = float(values.mean()), *(float(v) for v in np.quantile(values, [0.1, 0.9]))
    trial = Span(low * plan.first_rung, mean * plan.expected, high * plan.epochs)
    count = plan.drawn + len(plan.arms)
    workers = min(plan.at_once, max(count, 1))
    training = plan.drawn * trial.likely + sum(plan.arms) * plan.epochs
    training += plan.knowledge_seconds + workers * plan.first_seconds
    luck = float(values.std()) / mean / math.sqrt(plan.drawn) if plan.drawn else 0.0
    error = math.sqrt(fit_error**2 + noise**2 + luck**2 + UNKNOWN**2)
    # At the end workers wait for the last trial, half of one on average.
    tail = (1 - 1 / workers) * (training / max(count, 1)) / 2
    wall = (training + count * TRIAL_OVERHEAD) / workers + tail
    return Totals(trial, training, wall, error)
