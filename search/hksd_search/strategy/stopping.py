"""When a trial is stopped early: rules over plain numbers, which know neither Ray nor the clock.

A rule sees the trials that compete with each other and compares them at equal epochs only. What it decides depends on
the accuracies that it has seen and on nothing else, so a resumed search shows it those of the study, in any order, and
goes on where it stood. With several objectives the costs of a student, known before training, count as much as its
accuracy: a trial that no other beats in everything is never stopped by a rung.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Protocol

import numpy as np

from hksd.terms.adversarial import AdversarialConfig
from hksd_search.space.ranges import Range
from hksd_search.space.settings import Asha, HyperBand, Median, Pbt, Scheduler
from hksd_search.space.space import Space
from hksd_search.study import pareto
from hksd_search.study.records import Record

GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, lie as evenly as any: so do those of every nth number
EPSILON = 1e-9  # powers of a reduction factor, and means of equal accuracies, are not exact


class Rule(Protocol):
    """Decides about the trials of one group."""

    def enter(self, number: int, epoch: int, accuracy: float, costs: Sequence[float]) -> None:
        """Take in an epoch of a trial.

        Args:
            number: number of the trial. Its epochs come in their order; a repeated one changes nothing.
            epoch: finished epochs, from 1.
            accuracy: validation accuracy after that epoch, 0 to 1.
            costs: what the student costs in each objective that is minimised; empty with one objective.
        """

    def stops(self, number: int, epoch: int) -> bool:
        """Whether a trial stops after an epoch, which has been taken in."""


class Rung:
    """The trials that have reached an epoch, ranked by how many others dominate each (Fonseca & Fleming 1993).

    With one objective the ranks are those of the accuracy. Entering takes time proportional to the trials at the rung.
    """

    def __init__(self) -> None:
        self.places: dict[int, int] = {}
        self.points = np.empty((0, 0))  # (n, objectives), all to be minimised
        self.beaten = np.empty(0, dtype=int)  # (n,): how many others dominate each

    def enter(self, number: int, point: Sequence[float]) -> None:
        """Take in a trial, once."""
        if number in self.places:
            return
        others = self.points.reshape(-1, len(point))
        self.beaten = np.append(self.beaten + pareto.dominated(others, point), pareto.dominating(others, point).sum())
        self.places[number] = len(others)
        self.points = np.concatenate([others, np.array([point])])

    def keeps(self, number: int, reduction_factor: float) -> bool:
        """Whether fewer than one in `reduction_factor` of the trials here rank before this one."""
        ahead = int((self.beaten < self.beaten[self.places[number]]).sum())
        return ahead < math.ceil(len(self.places) / reduction_factor - EPSILON)


class SuccessiveHalving:
    """Asynchronous successive halving in the form that stops (Li et al. 2020, arXiv 1810.05934).

    At each rung a trial goes on if it is among the best of those that came there so far, itself included; nobody waits
    for others. With several objectives best is meant by domination, as in MO-ASHA (Schmucker et al. 2021, arXiv
    2106.12639), with the count of dominating trials in place of fronts, and no trial stopped that none dominates.
    """

    def __init__(self, rungs: Iterable[int], reduction_factor: float):
        self.rungs = {epoch: Rung() for epoch in rungs}
        self.reduction_factor = reduction_factor

    def enter(self, number: int, epoch: int, accuracy: float, costs: Sequence[float]) -> None:
        """See `Rule.enter`."""
        if epoch in self.rungs:
            self.rungs[epoch].enter(number, (-accuracy, *costs))

    def stops(self, number: int, epoch: int) -> bool:
        """See `Rule.stops`."""
        return epoch in self.rungs and not self.rungs[epoch].keeps(number, self.reduction_factor)


class Brackets:
    """HyperBand (Li et al. 2018, arXiv 1603.06560) with brackets of asynchronous successive halving (Li et al. 2020).

    Bracket s leaves out the first s rungs; the last one has none and hedges against accuracies that mislead early. A
    bracket of m rungs gets a share of the trials proportional to HyperBand's number of starts,
    ceil(brackets / (m + 1) x reduction_factor^m), so that all cost about the same. A trial's bracket depends on its
    number alone.

    Args:
        rungs: epochs of the rungs of the first bracket, rising.
        reduction_factor: one in that many goes on at each rung.
        count: how many brackets, the first ones of all; None for all, one more than there are rungs.
    """

    def __init__(self, rungs: Sequence[int], reduction_factor: float, count: int | None = None):
        number = min(count or len(rungs) + 1, len(rungs) + 1)
        self.brackets = [SuccessiveHalving(rungs[start:], reduction_factor) for start in range(number)]
        halvings = [len(bracket.rungs) for bracket in self.brackets]
        starts = [math.ceil((len(rungs) + 1) / (m + 1) * reduction_factor**m - EPSILON) for m in halvings]
        self.shares = [start / sum(starts) for start in starts]

    def of(self, number: int) -> SuccessiveHalving:
        """The bracket of a trial."""
        place = bisect.bisect(list(itertools.accumulate(self.shares)), (number * GOLDEN) % 1.0)
        return self.brackets[min(place, len(self.brackets) - 1)]

    def enter(self, number: int, epoch: int, accuracy: float, costs: Sequence[float]) -> None:
        """See `Rule.enter`."""
        self.of(number).enter(number, epoch, accuracy, costs)

    def stops(self, number: int, epoch: int) -> bool:
        """See `Rule.stops`."""
        return self.of(number).stops(number, epoch)


class MedianRule:
    """Median stopping rule (Golovin et al. 2017, Google Vizier, section 3.2.2), with three changes.

    A trial stops when its best accuracy so far is below the median, over the others that reached this epoch, of their
    mean accuracy since the grace epochs. The best, not the mean, of the trial itself: one bad epoch shall not end it.
    In Vizier means begin at the first epoch, which on rising curves stops next to nothing, and are those of trials that
    ran to the end: of survivors, whose median rises and rises. With several objectives the others are those whose
    student costs at most as much in every one.

    Args:
        grace: no trial is stopped before this epoch.
        min_trials: nor while fewer others can be compared with.
    """

    def __init__(self, grace: int, min_trials: int):
        self.grace, self.min_trials = grace, min_trials
        self.best: dict[int, float] = defaultdict(float)
        self.sums: dict[int, float] = defaultdict(float)  # since the grace epochs
        self.rows: dict[int, dict[int, tuple[float, ...]]] = defaultdict(dict)  # epoch -> trial -> mean, costs

    def enter(self, number: int, epoch: int, accuracy: float, costs: Sequence[float]) -> None:
        """See `Rule.enter`."""
        self.best[number] = max(self.best[number], accuracy)
        rows = self.rows[epoch]
        if epoch >= self.grace and number not in rows:
            self.sums[number] += accuracy
            rows[number] = (self.sums[number] / (epoch - self.grace + 1), *costs)

    def stops(self, number: int, epoch: int) -> bool:
        """See `Rule.stops`."""
        if epoch < self.grace:
            return False
        _, *mine = self.rows[epoch][number]
        means = [
            mean
            for other, (mean, *costs) in self.rows[epoch].items()
            if other != number and all(a <= b for a, b in zip(costs, mine, strict=True))
        ]
        return len(means) >= self.min_trials and self.best[number] < median(means) - EPSILON


def rungs(grace: int, reduction_factor: float, epochs: int) -> list[int]:
    """The epochs before the last at which trials are compared: `grace` times powers of `reduction_factor`."""
    places = (int(grace * reduction_factor**power + EPSILON) for power in itertools.count())
    return list(dict.fromkeys(itertools.takewhile(lambda epoch: epoch < epochs, places)))


def maker(scheduler: Scheduler, grace: int, epochs: int) -> Callable[[], Rule] | None:
    """What makes the rule of a group of trials; None where no trial can be stopped."""
    settings = scheduler.chosen
    if grace >= epochs:
        return None
    if isinstance(settings, Asha):
        return lambda: SuccessiveHalving(rungs(grace, settings.reduction_factor, epochs), settings.reduction_factor)
    if isinstance(settings, HyperBand):
        factor = settings.reduction_factor
        return lambda: Brackets(rungs(grace, factor, epochs), factor, settings.brackets)
    if isinstance(settings, Median):
        return lambda: MedianRule(grace, settings.min_trials)
    return None


class EarlyStopping:
    """Early stopping of a search: who competes with whom, and the state of each competition.

    Drawn trials compete with each other, and so do the tuned draws of an arm, within the arm. Fixed arms and the last
    epoch of a trial take no part.

    Args:
        space: the space.
        records: the trials of the study so far.
    """

    def __init__(self, space: Space, records: Iterable[Record] = ()):
        self.epochs, self.costs = total_epochs(space), space.search.minimize
        self.tuned = space.search.arms == "tuned"
        self.make = maker(space.search.scheduler, grace_epochs(space), self.epochs)
        self.groups: dict[str, Rule] = {}
        for record in records:
            for epoch, accuracy in sorted(record.accuracies.items()):
                self._enter(record.number, record.arm, epoch, accuracy, record.costs)

    def stops(self, number: int, arm: str | None, epoch: int, accuracy: float, costs: Mapping[str, float]) -> bool:
        """Take in an epoch of a trial and say whether the trial stops; see `Rule` and `Record`."""
        rule = self._enter(number, arm, epoch, accuracy, costs)
        return rule is not None and rule.stops(number, epoch)

    def _enter(
        self, number: int, arm: str | None, epoch: int, accuracy: float, costs: Mapping[str, float]
    ) -> Rule | None:
        """Take in an epoch; returns the rule that may stop the trial after it."""
        if self.make is None or epoch >= self.epochs or (arm and not self.tuned):
            return None
        group = arm or ""
        if group not in self.groups:
            self.groups[group] = self.make()
        self.groups[group].enter(number, epoch, accuracy, [costs[name] for name in self.costs])
        return self.groups[group]


def total_epochs(space: Space) -> int:
    """Epochs of every trial of a space."""
    return int(space.tree["train"]["epochs"])


def grace_epochs(space: Space) -> int:
    """Epochs before which no trial of a space is stopped; all of them where none ever is."""
    return space.search.grace_epochs(total_epochs(space), adversarial_start(space))


def adversarial_start(space: Space) -> float:
    """The latest epoch at which the adversarial term of a draw has its full weight; 0 without that term."""
    plain = list(space.alternatives.values()) or [space]
    return max((_adversarial_start(one.tree, one.ranges) for one in plain), default=0.0)


def _adversarial_start(tree: Mapping[str, Any], ranges: Mapping[tuple[str | int, ...], Range]) -> float:
    node = tree["terms"].get("adversarial")
    if node is None or node.get("weight") == 0:
        return 0.0

    def largest(key: str) -> float:
        spread = ranges.get(("terms", "adversarial", key))
        return float(max(spread.values) if spread else node.get(key, getattr(AdversarialConfig(), key)))

    return largest("delay_epochs") + largest("warmup_epochs")


def description(space: Space) -> str:
    """How a search stops trials early, in a line for people."""
    settings, grace, epochs = space.search.scheduler.chosen, grace_epochs(space), total_epochs(space)
    if settings is None:
        return "no trial is stopped early"
    name = space.search.scheduler.name
    if isinstance(settings, Pbt) and settings.boundaries(epochs, grace):
        at = ", ".join(map(str, settings.boundaries(epochs, grace)))
        return f"pbt: the worst of {settings.population} trials are replaced after epochs {at} of {epochs}"
    if grace < epochs:
        return f"{name}: no trial is stopped before epoch {grace} of {epochs}"
    late = settings.grace_epochs is None and adversarial_start(space) >= epochs
    why = " (until the adversarial term of every draw has its full weight)" if late else ""
    return (
        f"no trial is stopped early: the grace epochs{why} cover all {epochs}; "
        f"search.scheduler.{name}.grace_epochs sets them"
    )
