"""Our training step against the plain loop of `reference.py`, one improvement after the other.

Every side is a process of its own; they take turns, one epoch each, while the others sleep, and a ratio is the median
over the rounds. Same images, same teacher weights (untrained: speed does not depend on them), same batch size, same
number of threads. Sides:

    reference              the plain loop, images made in its own process
    reference, 8 workers   the same with the usual DataLoader workers
    float32, live          hksd.fit.fit, the teacher run at every step
    bfloat16, live         the same in bfloat16 where the processor has it (train.precision: auto)
    cached                 the same with the teacher's knowledge read, not computed; building it is measured by itself

One thread: look at images per CPU second, which other load hardly disturbs. More threads, or workers: wall clock.

    python benchmarks/step.py --out benchmarks/results/step.json
    python benchmarks/step.py --pairs resnet26:resnet8 --threads 1 --rounds 3 --out step.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from common import STOCK, Sample, Side, Turns

from hksd import data as datasets
from hksd import models
from hksd.config.run import RunConfig, from_tree
from hksd.data import DataSet, Split
from hksd.models.taps import TappedNet

REFERENCE = "reference"
VIEWS = 2  # epochs whose views the cached side knows; they come again and again
LADDER: dict[str, dict[str, Any]] = {
    "float32, live": {"precision": "float32", "knowledge": "live"},
    "bfloat16, live": {"precision": "auto", "knowledge": "live"},
    "cached": {"precision": "auto", "knowledge": "cached", "views": VIEWS},
}
TERMS: dict[str, dict[str, Any]] = {
    "kd": {"ce": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}},
    "kd+at": {"ce": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}, "attention_transfer": {}},
}
EPOCHS = 100_000  # more than any side is asked for
SETTLE_BATCHES = 4
VALIDATION = 40  # images; few, because our side's time includes validation and the reference's does not


def configuration(options: argparse.Namespace, pair: str, terms: str, batch: int, threads: int) -> dict[str, Any]:
    """The run that all sides of a comparison share."""
    teacher, _, student = pair.partition(":")
    total = options.images + VALIDATION
    return {
        "data": {"name": "cifar10", "root": options.root or "none", "limit": total, "validation": VALIDATION / total},
        "teacher": {"model": teacher},
        "student": {"model": student},
        "terms": TERMS[terms],
        "train": {"epochs": EPOCHS, "batch_size": batch, "lr": 0.01, "threads": threads, "device": "cpu"},
    }


def images_of(config: RunConfig, root: str | None) -> DataSet:
    """CIFAR-10 below `root`, or without one noise of its form, which costs the same."""
    if root:
        return datasets.load(config.data)
    count = config.data.limit or 0
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(count) % 10
    index = np.arange(count)
    cut = count - round(count * config.data.validation)
    parts = [Split(pixels[rows], labels[rows], index[rows]) for rows in (slice(cut), slice(cut, count))]
    return DataSet("noise", tuple("0123456789"), *parts, (0.5,) * 3, (0.29,) * 3, f"noise{count}")


def untrained(config: RunConfig, data: DataSet) -> TappedNet:
    """A teacher with random weights whose normalisation has seen images, so that its maps have a usual size."""
    from reference import shape_of

    assert config.teacher is not None
    torch.manual_seed(1)
    network = models.make(config.teacher.spec(), **shape_of(data))
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # plain average over the batches
    pixels = torch.from_numpy(data.train.images[: SETTLE_BATCHES * 64]).permute(0, 3, 1, 2) / 255  # type: ignore[union-attr]
    with torch.no_grad():
        for part in pixels.split(64):
            network((part - 0.5) / 0.29)
    return network.eval()


def plain(turns: Turns, tree: dict[str, Any], root: str | None, weights: str, workers: int) -> None:
    """The reference's side."""
    from reference import Reference, shape_of

    warnings.filterwarnings("ignore", message="This DataLoader will create")  # eight workers on few cores are usual
    config = from_tree(tree)
    torch.set_num_threads(config.train.threads)
    data = images_of(config, root)
    teacher = models.make(config.teacher.spec(), **shape_of(data))  # type: ignore[union-attr]
    teacher.load_state_dict(torch.load(weights, weights_only=True))
    run = Reference(config, data, teacher, workers=workers)
    turns.begin()
    while True:
        epoch = run.train_epoch()
        if turns(epoch.loss.count, epoch.seconds):
            break


def ours(turns: Turns, tree: dict[str, Any], root: str | None, weights: str, cache_dir: str) -> None:
    """hksd's side; what it imports stays out of the reference's process."""
    from hksd import fit as train
    from hksd.device import memory
    from hksd.run.outcome import EpochReport
    from hksd.teacher.teacher import Teacher

    config = from_tree(tree)
    data = images_of(config, root)
    network = models.make(config.teacher.spec(), **data.image_shape)  # type: ignore[union-attr]
    network.load_state_dict(torch.load(weights, weights_only=True))
    memory.lay_out(network, torch.channels_last)
    teacher = Teacher(network.eval().requires_grad_(False), None, 0.0, (), "untrained", True)

    def on_epoch(report: EpochReport) -> Any:
        return "stop" if turns(len(data.train), report.seconds) else None

    turns.begin()
    train.fit(config, data=data, teacher=teacher, cache_dir=Path(cache_dir), on_epoch=on_epoch)


def compare(options: argparse.Namespace, tree: dict[str, Any]) -> list[dict[str, Any]]:
    """One comparison: a row for every side."""
    config = from_tree(tree)
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "teacher.pt")
        torch.save(untrained(config, images_of(config, options.root)).state_dict(), weights)
        sides, warm = [], {}
        for workers in options.workers:
            name = REFERENCE + (f", {workers} workers" if workers else "")
            sides.append(Side(name, plain, tree, options.root, weights, workers, environment=STOCK))
        for name, knobs in LADDER.items():
            warm[name] = knobs.get("views", 0) + 1
            changed = {**tree, "train": {**tree["train"], **knobs}}
            sides.append(Side(name, ours, changed, options.root, weights, folder))
        found = common.interleaved(sides, options.rounds, warm)
    return rows(found, warm, options.rounds)


def rows(found: dict[str, list[Sample]], warm: dict[str, int], rounds: int) -> list[dict[str, Any]]:
    """Medians of every side, and its ratios to the first one."""
    first, lines = next(iter(found)), []
    for name, samples in found.items():
        steady = samples[-rounds:]
        line: dict[str, Any] = {"side": name, "samples": rounds}
        for key in ("images_per_cpu_s", "images_per_s"):
            line[key] = statistics.median(sample[key] for sample in steady)
            line[f"{key}_range"] = [min(s[key] for s in steady), max(s[key] for s in steady)]
            line[f"{key}_ratio"] = common.ratio(steady, found[first][-rounds:], key)
        if warm.get(name, 1) > 1:  # what the first epochs cost more is the building of their views
            usual = statistics.median(sample["cpu_s"] for sample in steady)
            line["build_cpu_s_per_view"] = (sum(s["cpu_s"] for s in samples[:VIEWS]) - VIEWS * usual) / VIEWS
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", help="CIFAR-10 in any of the three layouts; default noise of its form")
    pairs = ["resnet26:resnet8", "resnet110:resnet20", "resnet164:resnet20"]
    parser.add_argument("--pairs", nargs="+", default=pairs, metavar="TEACHER:STUDENT")
    parser.add_argument("--terms", nargs="+", choices=TERMS, default=list(TERMS))
    parser.add_argument("--batch", nargs="+", type=int, default=[64, 128], help="batch sizes")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 8], help="DataLoader workers of the references")
    parser.add_argument("--rounds", type=int, default=5, help="samples of every side after its warm-up")
    parser.add_argument("--images", type=int, default=2560, help="training images of an epoch, which is a sample")
    options = parser.parse_args()
    lines: list[dict[str, Any]] = []
    start = time.time()
    for threads in options.threads:
        for pair in options.pairs:
            for terms in options.terms:
                for batch in options.batch:
                    what = {"pair": pair, "terms": terms, "batch": batch, "threads": threads}
                    tree = configuration(options, pair, terms, batch, threads)
                    for line in compare(options, tree):
                        lines.append({**what, **line})
                        print(f"{time.time() - start:6.0f} s  {shown(lines[-1])}", flush=True)
                    common.save(options, unit="training images", rows=lines)


def shown(line: dict[str, Any]) -> str:
    """A row for the terminal."""
    built = f", a view of the cache {line['build_cpu_s_per_view']:.1f} CPU s" if "build_cpu_s_per_view" in line else ""
    return (
        f"{line['pair']} {line['terms']} batch {line['batch']}, {line['threads']} thread(s), {line['side']}: "
        f"{line['images_per_cpu_s']:,.0f} images per CPU second ({line['images_per_cpu_s_ratio']:.2f}x), "
        f"{line['images_per_s']:,.0f} per second ({line['images_per_s_ratio']:.2f}x){built}"
    )


if __name__ == "__main__":
    main()
