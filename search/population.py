"""Population based training of schedule knobs (Jaderberg et al. 2017, arXiv 1711.09846), asynchronous.

At every boundary a trial is compared with the population: the latest trials that got there, at equal epochs, whether
they still run or not. In the bottom quantile it is stopped, and a fork of a member of the top quantile takes its place:
a trial that shares the member's epochs up to there and goes on with other values of the schedule knobs that the space
gives a range. What changes is written into its configuration (`hksd.changes`), so a fork can be repeated from scratch.

Three things differ from the paper. Nobody waits, so one device is enough: what has ended stays in the population until
enough others have come. What is copied is the member's checkpoint of that very epoch, not its newest. And best is meant
by domination where there are several objectives: a trial that no other dominates is never replaced, and its place is
taken by one that dominates it. Arms take no part.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hksd import changes, checkpoint
from hksd.changes import Change, Values
from hksd.config import RunConfig, config_hash, dump, from_tree
from search.alternatives import PARAMETER
from search.ranges import Range
from search.records import ACCURACY, Fork, Record, record, trial_folder
from search.settings import Pbt
from search.space import Space
from search.stopping import EPSILON, grace_epochs, total_epochs

if TYPE_CHECKING:
    from search.searcher import Ledger

TRIES = 32  # forks that are drawn before a trial goes on because each was a configuration that there is already


@dataclass(frozen=True)
class Offspring:
    """A fork that takes the place of a trial.

    Attributes:
        fork: where it goes on from.
        replaces: number of the trial.
        config: its parent's configuration with one change more.
    """

    fork: Fork
    replaces: int
    config: RunConfig

    @property
    def hash(self) -> str:
        """Hash of its configuration."""
        return config_hash(self.config)

    def waiting(self, parent: FrozenTrial, objectives: int) -> FrozenTrial:
        """The fork as a trial that waits: with the parameters of its parent and the epochs that they share.

        Args:
            parent: its parent, as the study has it.
            objectives: of the study; Optuna keeps accuracies itself where there is one.
        """
        shared = {e: value for e, value in record(parent).accuracies.items() if e <= self.fork.epoch}
        facts = {
            **{key: parent.user_attrs["facts"][key] for key in ("arm", "costs")},
            "origin": "fork",
            "hash": self.hash,
            "config": dump(self.config),
            "parent": self.fork.parent,
            "forked_at": self.fork.epoch,
            "replaces": self.replaces,
        }
        progress = {"epoch": self.fork.epoch, "val_accuracy": shared[self.fork.epoch], "seconds": 0.0}
        own = {} if objectives == 1 else {f"{ACCURACY}{e}": value for e, value in shared.items()}
        return optuna.trial.create_trial(
            state=TrialState.WAITING,
            params=parent.params,
            distributions=parent.distributions,
            user_attrs={"facts": facts, "progress": progress, "status": "waiting", **own},
            intermediate_values=shared if objectives == 1 else {},
        )


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
        """Take in a trial at an epoch; see `search.stopping.Rule.enter`."""
        self.points[epoch].setdefault(number, (-accuracy, *costs))

    def members(self, epoch: int) -> list[int]:
        """The population at an epoch."""
        return sorted(self.points[epoch])[-self.size :]

    def better(self, number: int, epoch: int) -> list[int]:
        """The members of the top quantile that may take the place of a trial; empty where it goes on."""
        points = self.points[epoch]
        rivals = sorted([n for n in points if n != number])[1 - self.size :]
        group = [*rivals, number]
        beaten = {one: sum(_dominates(points[other], points[one]) for other in group) for one in group}

        def ahead(one: int) -> int:
            return sum(beaten[other] < beaten[one] for other in group)

        count = int(self.quantile * len(group) + EPSILON)
        if ahead(number) < len(group) - count:
            return []
        return [one for one in rivals if ahead(one) < count and _dominates(points[one], points[number])]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


class Evolution:
    """The population of a search: decides after every epoch, and tells the ledger of forks.

    Args:
        ledger: of the search; its trials so far are the population to start with.
        settings: how.
    """

    def __init__(self, ledger: Ledger, settings: Pbt):
        self.ledger, self.settings = ledger, settings
        self.boundaries = boundaries(ledger.space)
        self.population = Population(settings.population, settings.quantile)
        for known in ledger.records():
            for epoch, accuracy in known.accuracies.items():
                self._enter(known, epoch, accuracy)

    def _enter(self, known: Record, epoch: int, accuracy: float) -> None:
        begun = known.fork.epoch if known.fork else 0  # what it shares with its parent is in the population already
        if epoch in self.boundaries and epoch > begun and known.arm is None and known.status != "failed":
            costs = [known.costs[name] for name in self.ledger.space.search.minimize]
            self.population.enter(known.number, epoch, accuracy, costs)

    def stops(self, number: int, epoch: int, accuracy: float) -> bool:
        """Take in an epoch of a live trial; whether it stops, for a fork that the ledger now knows.

        It goes on, whatever its rank, while the search has no trial left to give.
        """
        known = record(self.ledger.trial(number))
        self._enter(known, epoch, accuracy)
        if number not in self.population.points.get(epoch, ()):
            return False
        self._forget(epoch)
        parents = self.population.better(number, epoch)
        if not parents or not self.ledger.room():
            return False
        seen = {*self.ledger.hashes, *(pending.hash for pending in self.ledger.offspring.values())}
        for offspring in self._offspring(number, epoch, parents):
            if offspring.hash not in seen:
                self.ledger.replace(number, offspring)
                return True
        return False

    def _offspring(self, number: int, epoch: int, parents: Sequence[int]) -> Iterator[Offspring]:
        """Forks that may take the place of a trial: the same for a seed, a trial and an epoch, and the same parents."""
        space = self.ledger.space
        draws = random.Random(f"{space.search.seed} {number} {epoch}")
        for _ in range(TRIES):
            parent = self.ledger.trial(draws.choice(parents))
            config = from_tree(parent.user_attrs["facts"]["config"])
            values = explored(config.at(epoch), knobs(space, parent.params), self.settings.factor, draws)
            if values:
                changed = replace(config, changes=(*_until(config, epoch), Change(epoch=epoch, set=Values(values))))
                yield Offspring(Fork(parent.number, epoch), number, changed)

    def _forget(self, epoch: int) -> None:
        """Remove the checkpoints of members that are no longer in the population at an epoch."""
        staying = set(self.population.members(epoch))
        for number in self.population.points[epoch].keys() - staying:
            checkpoint.kept(trial_folder(self.ledger.folder, number), epoch).unlink(missing_ok=True)


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


def _until(config: RunConfig, epoch: int) -> tuple[Change, ...]:
    return tuple(change for change in config.changes if change.epoch < epoch)


def remove_checkpoints(folder: Path) -> None:
    """Remove what the trials of the search in `folder` have kept for forks."""
    for path in folder.glob(f"trials/*/{checkpoint.KEPT.format('*')}"):
        path.unlink(missing_ok=True)
