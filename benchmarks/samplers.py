"""Which sampler finds the best student in few trials: searches over real spaces with a made-up accuracy, no training.

The ledger, the limits, the arms and the samplers are the real ones; only the training is replaced by a function of the
configuration. Each seed makes another function over the ranges of the space: an optimum inside each range of numbers
and a bonus for each choice, some of them important and most hardly, a gain for each term that is present (less what
its knobs lose), a learning rate whose optimum moves with the width, a gain with the logarithm of the parameters, and
noise of 0.4 points, as another seed of training makes it. The same functions serve all samplers, so differences are
taken pair by pair.

The value of a search is what the drawn trial that a search takes for the best has without the noise; with `minimize`,
the hypervolume of the front over (accuracy above 0.6, decades of parameters below 1e6).

    python benchmarks/samplers.py --out benchmarks/results/samplers.json
    python benchmarks/samplers.py --cases quickstart --samplers tpe random --seeds 3 --out /tmp/samplers.json
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import paired, save, summary

from hksd.config.run import RunConfig, canonical, config_hash, flatten
from hksd_search.ledger import Ledger
from hksd_search.space import space as spaces
from hksd_search.space.ranges import Range
from hksd_search.space.sizes import Meter, check_feasible
from hksd_search.space.space import Space

NOISE = 0.004  # standard deviation over seeds of training, about what the digits and CIFAR-10 show
SHAPES = {
    "quickstart": {"in_channels": 1, "classes": 10, "image_size": 8},
    "cifar10": {"in_channels": 3, "classes": 10, "image_size": 32},
    "arena": {"in_channels": 3, "classes": 10, "image_size": 32},
}
PLAIN = ("terms.kd.weight.off=0", "terms.logits.weight=0.1", "terms.squeeze.weight=1", "terms.squeeze.depth=1")
PLAIN += ("terms.adversarial.weight=0", "terms.adversarial.hidden=64", "student.model=resnet8", "student.width=0.5")


@dataclass(frozen=True)
class Case:
    """A space, how many trials it is searched with, and how many of them run at once."""

    space: str
    trials: int
    concurrent: int
    overrides: tuple[str, ...] = ()
    minimize: bool = False


CASES = {
    "quickstart, 4 at once": Case("quickstart", 30, 4),
    "front": Case("quickstart", 30, 4, minimize=True),
    "four numbers": Case("quickstart", 30, 1, PLAIN),
    "quickstart": Case("quickstart", 30, 1),
    "cifar10, 4 at once": Case("cifar10", 60, 4),
    "arena, 4 at once": Case("arena", 60, 4),
    "quickstart, long": Case("quickstart", 200, 4),
    "front, long": Case("quickstart", 200, 4, minimize=True),
}
SLOW = {"gp": ("cifar10, 4 at once", "arena, 4 at once", "quickstart, long", "front, long")}  # hours: left out


class Surface:
    """A made-up accuracy over a space.

    Args:
        space: the space.
        seed: which of many.
    """

    def __init__(self, space: Space, seed: int):
        self._random = np.random.default_rng(seed)
        plain = list(space.alternatives.values()) or [space]
        self._ranges = {".".join(map(str, path)): spread for one in plain for path, spread in one.ranges.items()}
        weights = 0.08 * 0.6 ** self._random.permutation(len(self._ranges))
        self._effects = dict(zip(self._ranges, weights, strict=True))
        self._optima = {name: self._random.uniform(0.1, 0.9) for name in self._ranges}
        self._bonus = {name: self._random.permutation(len(one.values)) for name, one in self._ranges.items()}
        terms = sorted({name for one in plain for name in one.tree["terms"]})
        self._gains = {name: self._random.uniform(0.0, 0.06) for name in terms}
        self._seed = seed

    def __call__(self, config: RunConfig, params: float, noise: float = 0.0) -> float:
        """Accuracy of a configuration whose student has `params` parameters."""
        flat, active = flatten(canonical(config)), config.terms.active()
        value = 0.75 + 0.03 * math.log10(params / 3e4) + sum(self._gains.get(name, 0.0) for name in active)
        for name, spread in self._ranges.items():
            if name not in flat or (name.startswith("terms.") and name.split(".")[1] not in active):
                continue
            value -= self._effects[name] * self._loss(name, spread, flat[name], config.student.width)
        random = np.random.default_rng([self._seed, int(config_hash(config), 16) % 2**32])
        return float(np.clip(value + noise * random.standard_normal(), 0.0, 1.0))

    def _loss(self, name: str, spread: Range, value: Any, width: float) -> float:
        """From 0, at the optimum, to about 1."""
        if spread.kind == "choice":
            place = spread.values.index(value) if value in spread.values else 0
            return float(self._bonus[name][place] / max(1, len(spread.values) - 1)) * 0.3
        low, high = spread.values
        share = math.log(value / low) / math.log(high / low) if spread.kind == "log_uniform" else None
        share = (value - low) / (high - low) if share is None else share
        moved = 0.3 * (width - 0.5) if name == "train.lr" else 0.0
        return float(min(1.5, (share - self._optima[name] - moved) ** 2 / 0.25))


def search(case: Case, sampler: str, seed: int) -> dict[int, float]:
    """What a search has found after a half and after all of its trials."""
    settings = [f"search.sampler={sampler}", f"search.seed={seed}", f"search.trials={case.trials}"]
    settings += ["search.minimize=[params]"] if case.minimize else []
    space = spaces.load(case.space, [*settings, "search.enqueue_defaults=false", *case.overrides])
    surface, meter, epochs = Surface(space, seed), Meter(SHAPES[case.space]), int(space.tree["train"]["epochs"])
    running: deque[Any] = deque()
    trained: list[tuple[float, float, float]] = []  # accuracy as measured, without the noise, parameters
    found, ended = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(space, Path(folder), meter, check_feasible(space, meter))
        while True:
            while len(running) < case.concurrent and (assignment := ledger.next()) is not None:
                running.append(assignment)
            if not running:
                return found | {case.trials: worth(trained, case.minimize)}
            done = running.popleft()
            params = done.costs["params"]
            measured = surface(done.config, params, NOISE)
            ledger.report(done.number, {"epoch": epochs, "val_accuracy": measured, "seconds": 1.0})
            ledger.finish(done.number)
            ended += 1
            if done.arm is None:
                trained.append((measured, surface(done.config, params), params))
            if ended == case.trials // 2:
                found[ended] = worth(trained, case.minimize)


def worth(trained: Sequence[tuple[float, float, float]], minimize: bool) -> float:
    """Accuracy of the trial that is measured best, or hypervolume of the front."""
    if not minimize:
        return max(trained)[1]
    volume, best = 0.0, 0.6
    for _, accuracy, params in sorted(trained, key=lambda row: row[2]):  # from the smallest on, each adds a step
        if accuracy > best:
            volume += (accuracy - best) * max(0.0, 6 - math.log10(params))
            best = accuracy
    return volume


def table(values: Mapping[tuple[str, str, int], Sequence[float]]) -> list[dict[str, Any]]:
    """A line for each case, number of trials and sampler; differences are to tpe, pair by pair."""
    return [
        {
            "case": case,
            "after": after,
            "sampler": sampler,
            **summary(found),
            "above_tpe": paired(found, values[(case, "tpe", after)]) if (case, "tpe", after) in values else None,
        }
        for (case, sampler, after), found in values.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--samplers", nargs="+", default=["tpe", "gp", "nsga2", "nsga3", "random"])
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    values: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    seconds: dict[str, float] = {}
    for name in options.cases:
        case = CASES[name]
        for sampler in options.samplers:
            if name in SLOW.get(sampler, ()) or (sampler == "nsga3" and not case.minimize):
                continue
            start = time.process_time()
            for seed in range(options.seeds):
                for after, found in search(case, sampler, seed).items():
                    values[(name, sampler, after)].append(found)
            seconds[f"{name}: {sampler}"] = (time.process_time() - start) / options.seeds / case.trials
        lines = table(values)
        save(options, seeds=options.seeds, cpu_s_per_trial=seconds, table=lines)
        for line in lines:
            if line["case"] == name:
                gap = line["above_tpe"] or {"mean": math.nan, "half_95": None}
                print(
                    f"{name:22} after {line['after']:3} {line['sampler']:7} {line['mean']:.4f} "
                    f"{gap['mean']:+.4f} +- {gap['half_95'] or math.nan:.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
