"""Which way to search gets most from the same device time, with one objective and with two.

Searches run against the table of `curves.py` in place of trainings: the real ledger and sampler, the real rules of
early stopping, workers on a simulated clock on which an epoch takes as long as its student has FLOPs (``--time
epochs``: all alike). So nothing depends on the machine, and each way is repeated with many seeds, the same for all.

Two objectives (accuracy, parameters): the hypervolume that the trials trained at full length dominate, in accuracy
above chance and in the logarithm of the parameters below the largest, as a share of what the whole table dominates.
One objective: the best accuracy at full length. p is that of a paired t-test, repeat by repeat, against the first row.

    python benchmarks/hypervolume.py --curves benchmarks/results/curves.csv --out benchmarks/results/hypervolume.json
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import curves
from scipy.stats import ttest_rel

from hksd.config.networks import StudentConfig
from hksd.config.run import config_hash, from_tree
from hksd.data import load
from hksd.schema import build
from hksd_search.ledger import Ledger
from hksd_search.space import space as spaces
from hksd_search.space.settings import SearchConfig
from hksd_search.space.sizes import Meter
from hksd_search.space.space import Space
from hksd_search.strategy.stopping import EarlyStopping, grace_epochs, total_epochs

CHANCE = 0.1  # accuracy of a guess among ten classes


@dataclass(frozen=True)
class Curve:
    """A configuration of the table.

    Attributes:
        accuracies: validation accuracy after each epoch; fewer than all where the run failed.
        costs: costs of the student by name.
    """

    accuracies: tuple[float, ...]
    costs: Mapping[str, float]


Table = Mapping[str, Curve]  # by the hash of the configuration


@dataclass(frozen=True)
class Way:
    """A way to search.

    Attributes:
        sampler: see `hksd_search.space.settings`.
        scheduler: likewise.
        rule: what replaces the scheduler's own comparison: ``accuracy`` looks at that alone, ``neighbours`` at the
            accuracy among students of similar cost; None for nothing.
    """

    sampler: str
    scheduler: Any = "none"
    rule: str | None = None


TWO = {
    "tpe": Way("tpe"),
    "random": Way("random"),
    "tpe, asha": Way("tpe", "asha"),
    "tpe, asha, grace 1": Way("tpe", {"asha": {"grace_epochs": 1}}),
    "tpe, asha by accuracy alone": Way("tpe", "asha", "accuracy"),
    "tpe, asha by accuracy alone, grace 1": Way("tpe", {"asha": {"grace_epochs": 1}}, "accuracy"),
    "tpe, asha among neighbours in cost": Way("tpe", "asha", "neighbours"),
    "tpe, hyperband": Way("tpe", "hyperband"),
    "tpe, hyperband, grace 1": Way("tpe", {"hyperband": {"grace_epochs": 1}}),
    "tpe, median": Way("tpe", "median"),
    "random, asha": Way("random", "asha"),
}
ONE = {name: way for name, way in TWO.items() if way.rule is None}


class Neighbours:
    """Asynchronous successive halving on accuracy among the trials at a rung with the nearest costs."""

    def __init__(self, rung: int, reduction_factor: float = 3.0, size: int = 9):
        self.rung, self.reduction_factor, self.size = rung, reduction_factor, size
        self.seen: dict[int, tuple[float, float]] = {}

    def enter(self, number: int, epoch: int, accuracy: float, costs: Sequence[float]) -> None:
        """See `hksd_search.strategy.stopping.Rule`."""
        if epoch == self.rung:
            self.seen[number] = math.log(costs[0]), accuracy

    def stops(self, number: int, epoch: int) -> bool:
        """See `hksd_search.strategy.stopping.Rule`."""
        if epoch != self.rung:
            return False
        cost, accuracy = self.seen[number]
        near = sorted(self.seen.values(), key=lambda other: abs(other[0] - cost))[: self.size]
        return sum(other > accuracy for _, other in near) >= math.ceil(len(near) / self.reduction_factor)


def read(file: Path) -> tuple[Space, Table]:
    """The space of a table, and its curves by the hash of their configuration."""
    lines = [line[2:] for line in file.read_text().splitlines() if line.startswith("# ")]
    space = spaces.loads(curves.SPACE, "curves", str(file))
    if json.loads("\n".join(lines))["space"] != json.loads(json.dumps(space.tree)):
        raise SystemExit(f"{file}: recorded from another space than that in curves.py; record it again")
    table = {}
    for (_, tree), row in zip(curves.grid(space), curves.rows(file), strict=True):
        costs = {name: float(row[name]) for name in ("params", "mflops")}
        accuracies = [int(value) / curves.SCALE for key, value in row.items() if key.startswith("epoch ") and value]
        table[config_hash(from_tree(tree))] = Curve(tuple(accuracies), costs)
    return space, table


class Known(Meter):
    """A meter that measures each student once."""

    known: dict[StudentConfig, dict[str, float]] = {}  # noqa: RUF012 - shared by all searches on purpose

    def costs(self, network: Any) -> dict[str, float]:
        """See `Meter.costs`."""
        if network not in self.known:
            self.known[network] = super().costs(network)
        return self.known[network]


def search(table: Table, space: Space, way: Way, budget: float, options: argparse.Namespace) -> list[Curve]:
    """Search the table for so much device time.

    Returns:
        The curves of the trials that ran at full length.
    """
    done: list[Curve] = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        ledger = Ledger(space, Path(folder), Known(options.shape), StudentConfig(model="resnet8"))
        stopping = EarlyStopping(space)
        if way.rule == "accuracy":
            stopping.costs = ()
        if way.rule == "neighbours":
            stopping.make = lambda: Neighbours(grace_epochs(space))
        for number, epoch, curve in epochs(ledger, table, budget, options):
            if epoch > len(curve.accuracies):
                ledger.finish(number, "the loss is not finite")
                continue
            accuracy = curve.accuracies[epoch - 1]
            stop = stopping.stops(number, None, epoch, accuracy, curve.costs)
            ledger.report(number, {"epoch": epoch, "val_accuracy": accuracy, "seconds": 0.0})
            if stop or epoch == stopping.epochs:
                ledger.finish(number)
                done += [] if stop else [curve]
    return done


def epochs(
    ledger: Ledger, table: Table, budget: float, options: argparse.Namespace
) -> Iterator[tuple[int, int, Curve]]:
    """Epochs (trial, epoch, curve) in the order in which workers finish them, until the budget is spent.

    A trial that is no longer live once its epoch has been taken in leaves its worker to the next one.
    """
    spent, order = 0.0, itertools.count()
    running: list[tuple[float, int, int, int, Curve]] = []

    def begin(clock: float, number: int, epoch: int, curve: Curve) -> float:
        seconds = curve.costs["mflops"] if options.time == "flops" else 1.0
        heapq.heappush(running, (clock + seconds, next(order), number, epoch, curve))
        return seconds

    def start(clock: float) -> float:
        given = ledger.next()
        return 0.0 if given is None else begin(clock, given.number, 1, table[config_hash(given.config)])

    for _ in range(options.workers):
        spent += start(0.0)
    while running and spent <= budget:
        clock, _, number, epoch, curve = heapq.heappop(running)
        yield number, epoch, curve
        spent += begin(clock, number, epoch + 1, curve) if number in ledger.live else start(clock)


def hypervolume(found: Sequence[Curve], largest: float) -> float:
    """Area dominated in (accuracy above chance, decades of parameters below `largest`)."""
    points = sorted({(math.log10(largest / c.costs["params"]), c.accuracies[-1] - CHANCE) for c in found}, reverse=True)
    area = best = 0.0
    for place, (smaller, accuracy) in enumerate(points):  # from the smallest student to the largest
        best = max(best, accuracy)
        nearer = points[place + 1][0] if place + 1 < len(points) else 0.0
        area += best * (smaller - nearer)
    return area


def compare(
    space: Space, table: Table, ways: Mapping[str, Way], minimize: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    """Repeat each way and set it beside the first."""
    whole, largest = list(table.values()), max(curve.costs["params"] for curve in table.values())
    epoch = sum(curve.costs["mflops"] for curve in whole) / len(whole) if options.time == "flops" else 1.0
    budget = options.trials * total_epochs(space) * epoch
    reachable = hypervolume([curve for curve in whole if len(curve.accuracies) == total_epochs(space)], largest)
    scores: dict[str, list[float]] = {}
    rows: dict[str, Any] = {}
    for name, way in ways.items():
        searches = [
            search(table, settled(space, way, minimize, seed), way, budget, options) for seed in range(options.repeats)
        ]
        if minimize:
            scores[name] = [hypervolume(done, largest) / reachable for done in searches]
        else:
            scores[name] = [max((curve.accuracies[-1] for curve in done), default=CHANCE) for done in searches]
        full = common.summary([len(done) for done in searches])["mean"]
        rows[name] = {**common.summary(scores[name]), "full_length": full}
        first = next(iter(scores))
        if name != first:
            p = float(ttest_rel(scores[name], scores[first]).pvalue)
            rows[name][f"above {first}"] = {**common.paired(scores[name], scores[first]), "p": p}
        print(json.dumps({name: common.rounded(rows[name])}), flush=True)
    return rows


def settled(space: Space, way: Way, minimize: list[str], seed: int) -> Space:
    """The space with the settings of a way to search, and trials without end."""
    own = {"arms": "none", "enqueue_defaults": False}  # as when the published figures were made
    settings = own | {"sampler": way.sampler, "scheduler": way.scheduler, "minimize": minimize, "seed": seed}
    return replace(space, search=build(SearchConfig, {"trials": 100_000, **settings}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=float, default=30, help="device time, in average trials of full length")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--time", choices=["flops", "epochs"], default="flops", help="what an epoch takes")
    options = parser.parse_args()
    space, table = read(options.curves)
    options.shape = load(space.middle({}).data).image_shape
    options.scratch = "/dev/shm" if Path("/dev/shm").is_dir() else None
    found = {
        "two objectives": compare(space, table, TWO, ["params"], options),
        "one objective": compare(space, table, ONE, [], options),
    }
    del options.shape, options.scratch
    common.save(options, configurations=len(table), budget_trials=options.trials, workers=options.workers, **found)


if __name__ == "__main__":
    main()
