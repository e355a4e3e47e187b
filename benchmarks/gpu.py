"""What a GPU gives: images per second and the share of its roofline, trials per hour when packed, time to an accuracy.

Three parts, each through the real `hksd.fit.fit` with the terms ce + kd + attention_transfer:

    steps      training images per second of one student at several batch sizes, in bfloat16, the teacher's knowledge
               cached; beside it the roofline: images per second at the given peak of arithmetic or of memory, whichever
               binds. FLOPs of a step: 3 x forward (2 x MACs); bytes: outputs of convolutions x 2 bytes x ACCESSES.
    packing    trials per hour with 1, 2, 4, ... of them on the GPU, each a process of its own
    accuracy   seconds until a student of whole CIFAR-10 reaches `--level` on the validation split, over seeds; the
               teacher is trained before, and its time is stated by itself

    python benchmarks/gpu.py --root PATH_TO_CIFAR10 --tflops 790 --gbs 4300 --out benchmarks/results/gpu.json

Without a GPU it says so and ends with exit code 2.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import common
import torch
from torch import nn

from hksd import data as datasets
from hksd import fit as train
from hksd import models
from hksd.config.run import RunConfig, from_tree
from hksd.data import DataSet
from hksd.models.size import size_of
from hksd.run.outcome import EpochReport
from hksd.teacher import prepare as teachers

PARTS = ("steps", "packing", "accuracy")
ACCESSES = 11  # reads and writes of every convolution's output in a training step whose elementwise parts are fused
TERMS: dict[str, Any] = {"ce": {"weight": 0.1}, "kd": {"weight": 0.9}, "attention_transfer": {}}
TIMEOUT = 3600  # seconds that a process waits for the others to have started


def configuration(options: argparse.Namespace, student: str, seed: int = 0, **knobs: Any) -> RunConfig:
    """A run on whole CIFAR-10."""
    return from_tree(
        {
            "data": {"name": "cifar10", "root": options.root},
            "teacher": {"model": options.teacher, "epochs": options.teacher_epochs, "lr": 0.2},
            "student": {"model": student},
            "terms": TERMS,
            "train": {"precision": "auto", "knowledge": "cached", "device": "cuda", "lr": options.lr, **knobs},
            "seed": seed,
        }
    )


def work_of(student: str, data: DataSet, config: RunConfig) -> tuple[float, float]:
    """FLOPs and bytes of a training step per image: the counts behind the roofline."""
    size = size_of(config.student.spec(), **data.image_shape)
    network = models.sketch(config.student.spec(), **data.image_shape)
    outputs: list[int] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output.numel()))
    with torch.no_grad():
        network(torch.zeros(1, data.channels, data.image_size, data.image_size, device="meta"))
    return 3.0 * size.flops, 2.0 * ACCESSES * sum(outputs)


def roofline(flops: float, traffic: float, tflops: float, gbs: float) -> dict[str, Any]:
    """Images per second that the GPU could reach, and what binds."""
    limits = {"arithmetic": tflops * 1e12 / flops, "memory": gbs * 1e9 / traffic}
    bound = min(limits, key=lambda name: limits[name])
    return {"roofline_images_per_s": limits[bound], "bound_by": bound}


def steps(options: argparse.Namespace, data: DataSet) -> list[dict[str, Any]]:
    """One row for every student and batch size."""
    lines = []
    for student in options.students:
        for batch in options.batch:
            reports: list[EpochReport] = []
            config = configuration(options, student, epochs=options.rounds + 1, views=1, batch_size=batch)
            torch.cuda.reset_peak_memory_stats()
            train.fit(config, data=data, cache_dir=options.runs / "teachers", on_epoch=reports.append)
            speed = statistics.median(report.images_per_s for report in reports[1:])  # the first one warms up
            line = {"student": student, "batch": batch, "images_per_s": speed}
            line["memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
            if options.tflops and options.gbs:
                line |= roofline(*work_of(student, data, config), options.tflops, options.gbs)
                line["share_of_roofline"] = speed / line["roofline_images_per_s"]
            lines.append(line)
            print(common.rounded(line), flush=True)
    return lines


def one_of_many(options: argparse.Namespace, together: Barrier, seconds: Any) -> None:
    """One of several trials on a GPU: warms up, waits for the others, then trains; gives its time."""
    start = 0.0

    def on_epoch(report: EpochReport) -> None:
        nonlocal start
        if report.epoch == 1:
            together.wait(TIMEOUT)
            start = time.perf_counter()

    config = configuration(options, options.students[0], epochs=options.rounds + 1, views=1, batch_size=128)
    try:
        train.fit(config, cache_dir=options.runs / "teachers", on_epoch=on_epoch)
    except BaseException:
        together.abort()  # or the others would wait for this one
        raise
    seconds.put(time.perf_counter() - start)


def packing(options: argparse.Namespace, data: DataSet) -> list[dict[str, Any]]:
    """Trials per hour by their number on the GPU; starting them is not counted."""
    lines, context = [], multiprocessing.get_context("spawn")
    for count in options.together:
        together, seconds = context.Barrier(count), context.Queue()
        arguments = (options, together, seconds)
        trials = [context.Process(target=one_of_many, args=arguments, daemon=True) for _ in range(count)]
        for trial in trials:
            trial.start()
        for trial in trials:
            trial.join()
        if any(trial.exitcode for trial in trials):
            lines.append({"together": count, "failed": "a trial ended with an error; see above"})
            print(lines[-1], flush=True)
            continue
        epoch_s = max(seconds.get() for _ in trials) / options.rounds  # until the last one is through
        line = {"student": options.students[0], "together": count, "batch": 128, "epoch_s": epoch_s}
        line["trials_per_hour"] = count * 3600 / (epoch_s * options.epochs)
        line["images_per_s"] = count * len(data.train) / epoch_s
        lines.append(line)
        print(common.rounded(lines[-1]), flush=True)
    return lines


def accuracy(options: argparse.Namespace, data: DataSet) -> list[dict[str, Any]]:
    """Seconds of training until the level is reached, for every student over seeds."""
    lines = []
    for student in options.students:
        rows: list[dict[str, Any]] = []
        for seed in range(options.seeds):
            reports: list[EpochReport] = []
            start = time.perf_counter()
            config = configuration(options, student, seed, epochs=options.epochs, batch_size=options.batch[0])
            train.fit(config, data=data, cache_dir=options.runs / "teachers", on_epoch=reports.append)
            row = {"seed": seed, "total_s": time.perf_counter() - start, "val_accuracy": reports[-1].val_accuracy}
            rows.append({**row, "device_s": until(reports, options.level)})
        reached = [row["device_s"] for row in rows if row["device_s"] is not None]
        line = {"student": student, "level": options.level, "epochs": options.epochs, "rows": rows}
        line |= {"reached": len(reached), "device_s": common.summary(reached) if reached else None}
        line["val_accuracy"] = common.summary([row["val_accuracy"] for row in rows])
        lines.append(line)
        print(common.rounded(line), flush=True)
    return lines


def until(reports: list[EpochReport], level: float) -> float | None:
    """Seconds of the epochs up to the first one that reached the level; None if none did."""
    for count, report in enumerate(reports, 1):
        if report.val_accuracy >= level:
            return sum(earlier.seconds for earlier in reports[:count])
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="CIFAR-10 in any of the three layouts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, help="cache of the teacher; default a temporary folder")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tflops", type=float, help="peak of the GPU in bfloat16, TFLOP/s")
    parser.add_argument("--gbs", type=float, help="peak of its memory, GB/s")
    parser.add_argument("--students", nargs="+", default=["resnet8", "resnet20"])
    parser.add_argument("--batch", nargs="+", type=int, default=[128, 512, 1024, 4096], help="first: part accuracy")
    parser.add_argument("--together", nargs="+", type=int, default=[1, 2, 4, 8, 16], help="trials per GPU")
    parser.add_argument("--rounds", type=int, default=5, help="measured epochs of steps and packing")
    parser.add_argument("--epochs", type=int, default=40, help="epochs of a trial (packing and accuracy)")
    parser.add_argument("--level", type=float, default=0.85, help="validation accuracy to reach")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--teacher", default="resnet26")
    parser.add_argument("--teacher-epochs", type=int, default=40)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "benchmarks/gpu.py needs a CUDA GPU, and torch sees none here; `make bench` runs the others",
            file=sys.stderr,
        )
        return 2
    parts: dict[str, Callable[..., list[dict[str, Any]]]] = {"steps": steps, "packing": packing, "accuracy": accuracy}
    with tempfile.TemporaryDirectory() as scratch:
        options.runs = options.runs or Path(scratch)
        config = configuration(options, options.students[0], epochs=1)
        data, start = datasets.load(config.data), time.perf_counter()
        teacher = teachers.prepare(config, data, cache_dir=options.runs / "teachers")
        facts = {"teacher_val_accuracy": teacher.accuracy, "teacher_cached": teacher.cached}
        facts["teacher_s"] = time.perf_counter() - start
        found: dict[str, Any] = {}
        for part in options.parts:
            found[part] = parts[part](options, data)
            common.save(options, **facts, **found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
