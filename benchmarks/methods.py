"""Every method on one pair of networks at equal budget: accuracy over seeds, time per step, peak memory.

The terms and their weights are those of `spaces/paper/*.yaml` (published, where a publication has them); data, pair,
optimiser and number of epochs are the same for all, and schedules of terms that are counted in epochs shrink with the
run. Nothing is tuned and no epoch is chosen, so the test split may judge: the score is the test accuracy after the last
epoch.

    python benchmarks/methods.py --root PATH_TO_CIFAR10 --out benchmarks/results/methods.json

is for a CPU and takes a subset; on a GPU add

    --limit 0 --epochs 240 --teacher-epochs 200 --device cuda --jobs 4

Runs that the file already has are kept, so an interrupted benchmark goes on, and `--seeds` and `--methods` can grow.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t

from hksd import data as datasets
from hksd import fit as train
from hksd import models
from hksd.attention import HierarchicalAttention
from hksd.config.run import RunConfig, dump, from_tree, load
from hksd.data.augment import batches_of
from hksd.device.device import resolve_device
from hksd.modes import MODES
from hksd.provenance import provenance
from hksd.run import evaluate
from hksd.run.evaluate import EVALUATION_BATCH
from hksd.run.objective import Objective
from hksd.teacher import prepare as teachers
from hksd.teacher.teacher import Teacher
from hksd.terms.base import Setting

PAPER = Path(__file__).resolve().parent.parent / "spaces" / "paper"
PAPER_EPOCHS = 240
PLAIN_NAME = "no distillation"
# What has no file of its own there.
PLAIN: dict[str, dict[str, Any]] = {
    PLAIN_NAME: {"ce": {}},
    "logits": {"ce": {}, "logits": {}},
    "squeeze depth 1": {"ce": {}, "squeeze": {"depth": 1}},
    "squeeze depth 2": {"ce": {}, "squeeze": {"depth": 2}},
    "squeeze depth 3": {"ce": {}, "squeeze": {"depth": 3, "levels": "all"}},
    "kd + squeeze depth 2": {"ce": {"weight": 0.1}, "kd": {"weight": 0.9}, "squeeze": {"depth": 2}},
}
COST_STEPS, COST_ROUNDS = 4, 5


def methods() -> dict[str, dict[str, Any]]:
    """Terms by name of the method."""
    runs = {file.stem: load(file) for file in sorted(PAPER.glob("*.yaml"))}
    plain = {name: run for name, run in runs.items() if not any(getattr(run, mode) for mode in MODES)}
    return PLAIN | {name: dump(run.terms) for name, run in plain.items()}


def configuration(options: argparse.Namespace, terms: dict[str, Any], seed: int) -> RunConfig:
    """The run of one method."""
    shrink = options.epochs / PAPER_EPOCHS
    scaled = {
        name: {k: v * shrink if k in ("delay_epochs", "warmup_epochs") else v for k, v in knobs.items()}
        for name, knobs in terms.items()
    }
    squeeze = "squeeze" in terms
    teacher = {"model": options.teacher, "epochs": options.teacher_epochs, "lr": 0.1, "threads": 1}
    return from_tree(
        {
            "data": {"name": "cifar10", "root": options.root, "limit": options.limit or None},
            "teacher": {**teacher, **({"attention": {"epochs": 5}} if squeeze else {})},
            "student": {"model": options.student},
            "terms": scaled,
            "train": {"epochs": options.epochs, "lr": options.lr, "clip_norm": 5, "device": options.device},
            "seed": seed,
        }
    )


def accuracy(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Train once and judge on the test split."""
    config = configuration(options, methods()[name], seed)
    device = resolve_device(options.device)
    result = train.fit(config, cache_dir=options.runs / "teachers")
    data = datasets.load(config.data)
    test = batches_of(datasets.load_test(config.data), data, config.data, device, augment=False)
    torch.set_num_threads(1)
    logits, labels = evaluate.predict(result.student.to(device), test.plain(EVALUATION_BATCH))
    return {
        "method": name,
        "seed": seed,
        "test_accuracy": evaluate.accuracy(logits, labels),
        "val_accuracy": result.val_accuracy,
        "seconds": result.seconds,
    }


def stepper(options: argparse.Namespace, name: str) -> Callable[[], None]:
    """One training step of a method, as the loop does it, on one fixed batch; the teacher is live and untrained."""
    config = configuration(options, methods()[name], 0)
    device = resolve_device(options.device)
    data = datasets.load(config.data)
    shape = data.image_shape
    torch.manual_seed(0)
    student = models.build(options.student, **shape).to(device).train()
    network = models.build(options.teacher, **shape)
    attention = None
    squeeze = config.terms.get("squeeze")
    if squeeze is not None:
        spec = squeeze.attention()  # type: ignore[attr-defined]
        attention = HierarchicalAttention(network.shapes, network.shapes.stages, spec).to(device).eval()
    teacher = Teacher(network.to(device).eval().requires_grad_(False), attention, 0.0, (), "", False)
    objective = Objective(config.terms, student.shapes, network.shapes, config.train.epochs)
    objective.meet(Setting(torch.from_numpy(data.train.labels.copy()), network))
    objective.to(device)
    parameters = [*student.parameters(), *objective.joint_parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)
    batches = batches_of(data.train, data, config.data, device, augment=True)
    batch = next(iter(batches.augmented(0, config.train.batch_size, 0)))
    middle = config.train.epochs / 2

    def step() -> None:
        out = dataclasses.replace(student.taps(batch.images), images=batch.images, index=batch.index)
        known = teacher(batch.images, objective.teacher_needs) if objective.teacher_needs else None
        objective.own_steps(out, known, batch.labels, middle)
        total, _ = objective(out, known, batch.labels, middle)
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 5)
        optimizer.step()

    return step


def memory(options: argparse.Namespace, name: str) -> float:
    """Peak memory in MiB that training steps add: of the process on a CPU, of torch's allocator on a GPU."""
    torch.set_num_threads(1)
    step = stepper(options, name)
    device = resolve_device(options.device)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # lets the peak begin anew
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(3):
        step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return _resident("VmHWM") - before


def _resident(key: str) -> float:
    """Memory of this process in MiB: VmRSS now, VmHWM at its peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def costs(options: argparse.Namespace, names: list[str]) -> dict[str, dict[str, float]]:
    """Median time per step in ms, interleaved over all methods in one process; memory in a process each."""
    context = multiprocessing.get_context("spawn")
    torch.set_num_threads(1)
    device = resolve_device(options.device)
    steps = {name: stepper(options, name) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(COST_ROUNDS + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(COST_STEPS):
                step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # the first turn warms up
                times[name].append((time.perf_counter() - start) / COST_STEPS * 1000)
    result = {}
    for name in names:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            peak = pool.submit(memory, options, name).result()
        result[name] = {"ms_per_step": round(statistics.median(times[name]), 2), "memory_mib": round(peak, 1)}
    return result


def table(rows: list[dict[str, Any]], costs: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Mean, standard deviation and n of every method, the best first.

    The gain over no distillation is that of equal seeds, with half the width of its 95 % interval (Student's t).
    """
    lines, plain = [], {row["seed"]: row["test_accuracy"] for row in rows if row["method"] == PLAIN_NAME}
    for name in dict.fromkeys([*(row["method"] for row in rows), *costs]):
        by_seed = {row["seed"]: row["test_accuracy"] for row in rows if row["method"] == name}
        scores = list(by_seed.values())
        line: dict[str, Any] = {"method": name, "n": len(scores), **costs.get(name, {})}
        if scores:
            line["mean"] = statistics.mean(scores)
            line["std"] = statistics.stdev(scores) if len(scores) > 1 else None
        gains = [score - plain[seed] for seed, score in by_seed.items() if seed in plain]
        if name != PLAIN_NAME and len(gains) > 1:
            line["gain"] = statistics.mean(gains)
            line["gain_95"] = t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / math.sqrt(len(gains))
        lines.append(line)
    return sorted(lines, key=lambda line: -line.get("mean", 0))


def markdown(lines: list[dict[str, Any]]) -> str:
    """The table for docs/methods.md."""
    plain = next((line for line in lines if line["method"] == PLAIN_NAME), None)
    unit = plain.get("ms_per_step") if plain else None
    heads = ["method", "test accuracy, %", "n", "gain, points (95 % interval)", "time per step", "peak memory"]
    text = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for line in lines:
        spread = f" +- {line['std'] * 100:.2f}" if line.get("std") is not None else ""
        score = f"{line['mean'] * 100:.2f}{spread}" if "mean" in line else "-"
        gain = f"{line['gain'] * 100:+.2f} +- {line['gain_95'] * 100:.2f}" if "gain" in line else "-"
        cost = f"{line['ms_per_step']:.0f} ms" if "ms_per_step" in line else "-"
        cost += f" ({line['ms_per_step'] / unit:.2f}x)" if unit and "ms_per_step" in line else ""
        peak = f"{line['memory_mib']:.0f} MiB" if "memory_mib" in line else "-"
        text.append(f"| {line['method']} | {score} | {line['n']} | {gain} | {cost} | {peak} |")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="CIFAR-10 in any of the three layouts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="cache of the teacher")
    parser.add_argument("--limit", type=int, default=5000, help="training images; 0 for all")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--teacher", default="resnet26")
    parser.add_argument("--teacher-epochs", type=int, default=30)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--methods", nargs="+", help="default: all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--no-costs", action="store_true", help="leave time and memory out (a machine with other load)")
    options = parser.parse_args()
    names = options.methods or list(methods())
    known = json.loads(options.out.read_text()) if options.out.exists() else {"rows": [], "costs": {}}
    rows, cost, start = known["rows"], known["costs"], time.time()
    settings = {k: v for k, v in vars(options).items() if k in SETTINGS}
    if {k: v for k, v in known.get("settings", settings).items() if k in SETTINGS} != settings:
        raise SystemExit(f"{options.out}: holds figures of other settings: {known['settings']}; now {settings}")
    versions = provenance()

    def save() -> None:
        lines = table(rows, cost)
        content = {"settings": settings, "provenance": versions, "table": lines, "rows": rows, "costs": cost}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1) + "\n")

    if not options.no_costs:
        cost.update(costs(options, [name for name in names if name not in cost]))
        save()
    first = configuration(options, PLAIN["logits"], 0)
    found = teachers.prepare(first, datasets.load(first.data), cache_dir=options.runs / "teachers")
    settings["teacher_val_accuracy"] = found.accuracy
    done = {(row["method"], row["seed"]) for row in rows}
    # Seeds outermost, so that every method meets the same hours of the machine.
    wanted = [(name, seed) for seed in range(options.seeds) for name in names if (name, seed) not in done]
    with concurrent.futures.ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(accuracy, options, name, seed): (name, seed) for name, seed in wanted}
        for future in concurrent.futures.as_completed(futures):
            name, seed = futures[future]
            try:
                row = future.result()
            except Exception as error:  # a method that diverges is a result too
                print(f"{time.time() - start:6.0f} s  {name}, seed {seed}: failed: {error}", flush=True)
                continue
            rows.append(row)
            print(f"{time.time() - start:6.0f} s  {name}, seed {seed}: {row['test_accuracy']:.4f}", flush=True)
            save()
    print(markdown(table(rows, cost)))


SETTINGS = ("limit", "epochs", "lr", "teacher", "teacher_epochs", "student", "device")

if __name__ == "__main__":
    sys.exit(main())
