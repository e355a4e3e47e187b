"""Whether speed costs accuracy: the same student by the plain loop of `reference.py` and by `hksd.fit.fit`.

One trained teacher, one recipe, equal seeds. The learning rate is tuned for each side on the validation split over the
same grid (seed 0); with its best rate each side trains over seeds, and the test split judges what the last epoch left.
Rows: the reference, ours in float32 with a live teacher, ours as it comes (bfloat16 where the processor has it, cached
knowledge). Differences are those of equal seeds, with the half width of their 95 % interval (Student's t).

    python benchmarks/accuracy.py --root PATH_TO_CIFAR10 --out benchmarks/results/accuracy.json

Without a root it takes scikit-learn's digits. `--set` changes the run as in `hksd train`, for example
``--set train.epochs=20``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common
import torch
from common import STOCK

from hksd import data as datasets
from hksd.config.run import from_tree
from hksd.yaml import apply_overrides

REFERENCE = "reference"
SIDES: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "float32, live": {"precision": "float32", "knowledge": "live"},
    "as it comes": {},
}
Run = tuple[str, float, int]  # side, learning rate, seed
COMPARED = [("as it comes", REFERENCE), ("float32, live", REFERENCE), ("as it comes", "float32, live")]


def base(options: argparse.Namespace) -> dict[str, Any]:
    """The run, without learning rate and seed: of CIFAR-10 where there is a root, else of the digits.

    Attention transfer is for CIFAR: at its usual weight, small students of the digits do not learn on either side.
    """
    terms: dict[str, Any] = {"ce": {"weight": 0.1}, "kd": {"weight": 0.9}}
    if options.root:
        terms["attention_transfer"] = {}
        data: dict[str, Any] = {"name": "cifar10", "root": options.root, "limit": 5000}
        networks = {"teacher": {"model": "resnet26", "epochs": 30}, "student": {"model": "resnet8"}}
    else:
        data = {"name": "digits", "validation": 0.25}
        teacher = {"model": "resnet20", "epochs": 20, "batch_size": 64}
        networks = {"teacher": teacher, "student": {"model": "resnet8", "width": 0.5}}
    tree = {
        "data": data,
        **networks,
        "terms": terms,
        "train": {"epochs": 10, "batch_size": 64, "threads": 1, "device": "cpu"},
    }
    return apply_overrides(tree, options.set)


def prepare(tree: dict[str, Any], runs: str) -> float:
    """Train the teacher, or find it in the cache; returns its validation accuracy."""
    from hksd.teacher import prepare as teachers

    config = from_tree(tree)
    return teachers.prepare(config, datasets.load(config.data), cache_dir=Path(runs) / "teachers").accuracy


def plain(tree: dict[str, Any], runs: str, test: bool) -> dict[str, float]:
    """Train by the reference."""
    from reference import Reference

    from hksd.teacher import prepare as teachers

    config = from_tree(tree)
    torch.set_num_threads(config.train.threads)
    data = datasets.load(config.data)
    teacher = teachers.prepare(config, data, cache_dir=Path(runs) / "teachers")
    run = Reference(config, data, teacher.model)
    start, spent = time.perf_counter(), common.cpu_seconds()
    for _ in range(config.train.epochs):
        run.train_epoch()
        score = run.accuracy()
    figures = {"val_accuracy": score, "device_s": time.perf_counter() - start, "cpu_s": common.cpu_seconds() - spent}
    if test:
        figures["test_accuracy"] = run.accuracy(run.judged(datasets.load_test(config.data)))  # type: ignore[arg-type]
    return figures


def ours(tree: dict[str, Any], runs: str, test: bool) -> dict[str, float]:
    """Train by hksd."""
    from hksd import fit as train
    from hksd.data.augment import batches_of
    from hksd.run import evaluate
    from hksd.teacher import prepare as teachers

    config = from_tree(tree)
    data, cache = datasets.load(config.data), Path(runs) / "teachers"
    teacher, spent = teachers.prepare(config, data, cache_dir=cache), common.cpu_seconds()
    result = train.fit(config, data=data, teacher=teacher, cache_dir=cache)
    spent = common.cpu_seconds() - spent
    figures = {"val_accuracy": result.val_accuracy, "device_s": result.seconds, "cpu_s": spent}
    if test:
        split = datasets.load_test(config.data)
        batches = batches_of(split, data, config.data, torch.device("cpu"), augment=False)
        figures["test_accuracy"] = evaluate.accuracy(*evaluate.predict(result.student, batches.plain(512)))
    return figures


def train_all(jobs: list[Run], options: argparse.Namespace, *, test: bool) -> dict[Run, dict[str, float]]:
    """Train every (side, learning rate, seed), each in a process of its own, `options.jobs` at a time."""

    def one(job: Run) -> dict[str, float]:
        side, lr, seed = job
        tree = base(options)
        tree = {**tree, "seed": seed, "train": {**tree["train"], "lr": lr, **SIDES[side]}}
        work, environment = (plain, STOCK) if side == REFERENCE else (ours, {})
        found: dict[str, float] = common.alone(work, tree, str(options.runs), test, environment=environment)
        print(f"{side}, lr {lr}, seed {seed}: {common.rounded(found)}", flush=True)
        return found

    with ThreadPoolExecutor(options.jobs) as pool:
        return dict(zip(jobs, pool.map(one, jobs), strict=True))


def score(grid: Mapping[Run, Mapping[str, float]], side: str, lr: float) -> float:
    """Validation accuracy that a learning rate reached; one rate alone is not tried."""
    return grid[side, lr, 0]["val_accuracy"] if grid else 0.0


def judged(runs: dict[Run, dict[str, float]], best: Mapping[str, float], seeds: int) -> dict[str, Any]:
    """Test accuracy and time of every side at its learning rate, and the differences."""
    scores = {s: [runs[s, lr, seed]["test_accuracy"] for seed in range(seeds)] for s, lr in best.items()}
    table = [
        {
            "side": side,
            "lr": lr,
            "test_accuracy": common.summary(scores[side]),
            "device_s": common.summary([runs[side, lr, seed]["device_s"] for seed in range(seeds)]),
            "cpu_s": common.summary([runs[side, lr, seed]["cpu_s"] for seed in range(seeds)]),
        }
        for side, lr in best.items()
    ]
    differences = {
        f"{first} - {second}": common.paired(scores[first], scores[second])
        for first, second in COMPARED
        if {first, second} <= best.keys()
    }
    return {"table": table, "differences": differences}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", help="CIFAR-10 in any of the three layouts; default the digits")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="cache of the teacher")
    parser.add_argument(
        "--lrs", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4], help="grid of every side; one is not tuned"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES), help="default all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="change the run")
    options = parser.parse_args()
    facts = {"config": common.without_places(base(options))}
    facts["teacher_val_accuracy"] = common.alone(prepare, base(options), str(options.runs))
    candidates = [(side, lr, 0) for side in options.sides for lr in options.lrs]
    grid = train_all(candidates, options, test=False) if len(options.lrs) > 1 else {}
    tuning = [{"side": side, "lr": lr, **found} for (side, lr, _), found in grid.items()]
    best = {side: max(options.lrs, key=lambda lr: score(grid, side, lr)) for side in options.sides}
    runs = train_all([(side, best[side], seed) for seed in range(options.seeds) for side in best], options, test=True)
    lines = [{"side": side, "lr": lr, "seed": seed, **found} for (side, lr, seed), found in runs.items()]
    result = judged(runs, best, options.seeds)
    common.save(options, **facts, **result, tuning=tuning, rows=lines)
    for line in [*result["table"], result["differences"]]:
        print(common.rounded(line))


if __name__ == "__main__":
    main()
