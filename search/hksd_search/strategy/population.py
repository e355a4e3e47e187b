"""Population based training of schedule knobs (Jaderberg et al. 2017, arXiv 1711.09846), asynchronous.

At every boundary a trial is compared with the population: the latest trials that got there, at equal epochs, whether
they still run or not. In the bottom quantile it is stopped, and a fork of a member of the top quantile takes its place:
a trial that shares the member's epochs up to there and goes on with other values of the schedule knobs that the space
gives a range. What changes is written into its configuration (`config.changes`), so a fork can be repeated from
scratch.

Three things differ from the paper. Nobody waits, so one device is enough: what has ended stays in the population until
enough others have come. What is copied is the member's checkpoint of that very epoch, not its newest. And best is meant
by domination where there are several objectives: a trial that no other dominates is never replaced, and its place is
taken by one that dominates it. Arms take no part.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from hksd.config import changes
from hksd.config.run import RunConfig
from hksd_search.space.alternatives import PARAMETER
from hksd_search.space.ranges import Range
from hksd_search.space.space import Space
from hksd_search.strategy.stopping import EPSILON, grace_epochs, total_epochs
from hksd_search.study import pareto


class Population:
    """Who is replaced and by whom, over plain numbers; depends on the members that have entered, not on their order.

    Args:
        size: the population at an epoch is that many trials, the latest (of the highest numbers) that reached it.
        quantile: share of it that is replaced, and share that replaces.
    """

    def __init__(self, size: int, quantile: float):
        self.size, self.quantile = size, quantile
        self.points: dict[int, dict[int, tuple[float, ...]]] = defaultdict(dict)  # epoch -> trial -> to be minimised

    def enter(self, number: int, epoch: int, accuracy: float, costs: Sequence[float]) -> None:
        """Take in a trial at an epoch; see `hksd_search.strategy.stopping.Rule.enter`."""
        self.points[epoch].setdefault(number, (-accuracy, *costs))

    def members(self, epoch: int) -> list[int]:
        """The population at an epoch."""
        return sorted(self.points[epoch])[-self.size :]

    def better(self, number: int, epoch: int) -> list[int]:
        """The members of the top quantile that may take the place of a trial; empty where it goes on."""
        points = self.points[epoch]
        rivals = sorted([n for n in points if n != number])[1 - self.size :]
        group = [*rivals, number]
        beaten = dict(zip(group, pareto.beaten([points[one] for one in group]), strict=True))

        def ahead(one: int) -> int:
            return sum(beaten[other] < beaten[one] for other in group)

        count = int(self.quantile * len(group) + EPSILON)
        if ahead(number) < len(group) - count:
            return []
        better = pareto.dominating([points[one] for one in rivals], points[number])
        return [one for one, wins in zip(rivals, better, strict=True) if wins and ahead(one) < count]


def boundaries(space: Space) -> range:
    """The epochs after which trials of a space are compared; empty where it has another scheduler."""
    settings, epochs = space.search.scheduler.pbt, total_epochs(space)
    return settings.boundaries(epochs, grace_epochs(space)) if settings else range(0)


def knobs(space: Space, params: Mapping[str, Any]) -> dict[str, Range]:
    """The schedule knobs that have a range, by key path, for a trial that drew `params`."""
    plain = space.alternatives[params[PARAMETER]] if space.alternatives else space
    found = {path: plain.ranges.get(tuple(path.split("."))) for path in changes.knobs()}
    return {path: spread for path, spread in found.items() if spread is not None}


def explored(config: RunConfig, spreads: Mapping[str, Range], factor: float, draws: random.Random) -> dict[str, float]:
    """New values for the schedule knobs of a run, each a step up or down; those that stay where they are left out.

    Args:
        config: the run as it is now.
        spreads: the ranges of its knobs by key path; terms that it has not are left alone.
        factor: what a step multiplies or divides by.
        draws: says which.
    """
    values = {}
    for path, spread in spreads.items():
        section, name, *_ = path.split(".")
        term = config.terms.active().get(name)
        now = getattr(config.train, name) if section == "train" else term and term.weight
        new = now and step(spread, now, draws.choice((factor, 1 / factor)))
        if new and new != now:
            values[path] = new
    return values


def step(spread: Range, value: float, factor: float) -> float:
    """A value, times a factor, on the grid and within the ends of its range; of choices, the next one above or below.

    Never 0 or below, which would take a term away for good.
    """
    if spread.kind == "choice":
        beyond = [v for v in spread.values if v > 0 and (v > value if factor > 1 else v < value)]
        return float(min(beyond, key=lambda v: abs(v - value), default=value))
    low, high = spread.values
    grid = spread.step or (1 if spread.kind == "int" else None)
    new = float(f"{value * factor:.6g}")
    if grid:
        places = round((value - low) / grid), round((new - low) / grid)
        up = 1 if factor > 1 else -1
        new = low + grid * (places[1] if places[0] != places[1] else places[0] + up)
        high = low + grid * int((high - low) / grid + EPSILON)
    new = min(max(new, low), high)
    return float(new) if new > 0 else value
