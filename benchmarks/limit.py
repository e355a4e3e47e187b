"""How near a training step comes to what the processor can do: FLOPs per second against its fastest convolution.

A step is a student's forward pass, cross-entropy, backward pass and SGD, on images of CIFAR's shape. It climbs a ladder
from torch's defaults to what hksd runs. The ceiling is the best rate of one large 3x3 convolution of 128 channels, its
forward pass and all of it; every share below is of the forward one, the higher of the two.

    python benchmarks/limit.py --out benchmarks/results/limit.json

All rungs and the ceiling are taken in turns and in one process, so load on the machine meets them alike; figures are
medians (ceilings: the best). One thread is timed in CPU seconds of the process, more in seconds on the wall. Memory
that is freed is kept for all of them (`hksd.device.memory`), torch's defaults included.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from hksd import models
from hksd.config.networks import StudentConfig
from hksd.device import memory
from hksd.kernels import native
from hksd.models.size import size_of
from hksd.provenance import provenance

SHAPE = {"in_channels": 3, "classes": 10, "image_size": 32}
BATCH = 128
NETWORKS = ("resnet8", "resnet14", "resnet20", "resnet8 0.5")
CEILING_BATCH, CEILING_CHANNELS = 32, 128
# Modules that call kernels in such a step.
USERS = [importlib.import_module(f"hksd.kernels.{name}") for name in ("norm", "conv", "branch")]
# First name that is part of the operation's name, and the group that it belongs to.
GROUPS = (
    ("convolution_backward", "convolution backward"),
    ("_ConvolveBackward", "convolution backward"),
    ("_Convolve", "convolution forward"),
    ("mkldnn_convolution", "convolution forward"),
    ("slow_conv", "convolution forward"),
    ("_NormAct", "normalisation"),
    ("batch_norm", "normalisation"),
    ("Optimizer", "optimiser"),
    ("aten::threshold_backward", "elementwise"),
    ("aten::clamp", "elementwise"),
    ("aten::relu", "elementwise"),
    ("aten::add", "elementwise and optimiser"),
    ("aten::mul", "elementwise and optimiser"),
    ("aten::copy_", "copies and casts"),
)


@dataclass(frozen=True)
class Rung:
    """One way to run the same step."""

    name: str
    layout: torch.memory_format
    half: bool = False
    fused: bool = False


LADDER = (
    Rung("torch's defaults (float32)", torch.contiguous_format),
    Rung("+ channels_last", torch.channels_last),
    Rung("+ bfloat16", torch.channels_last, half=True),
    Rung("+ kernels (hksd)", torch.channels_last, half=True, fused=True),
)


def student_of(name: str) -> StudentConfig:
    """The student called "name" or "name width"."""
    kind, _, width = name.partition(" ")
    return StudentConfig(model=kind, width=float(width or 1))


def step(name: str, rung: Rung, batch: int) -> Callable[[], None]:
    """A training step of the network `name`."""
    torch.manual_seed(0)
    student = models.make(student_of(name).spec(), **SHAPE)
    memory.lay_out(student, rung.layout)
    images = torch.randn(batch, 3, 32, 32).contiguous(memory_format=rung.layout)
    labels = torch.randint(10, (batch,))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    library = native.library() if rung.fused else None

    def run() -> None:
        with contextlib.ExitStack() as stack:
            for module in USERS:
                stack.enter_context(mock.patch.object(module, "library", lambda: library))
            with torch.autocast("cpu", torch.bfloat16, enabled=rung.half):
                logits = student(images)
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return run


def ceiling(half: bool, backward: bool) -> tuple[Callable[[], None], float]:
    """The convolution that sets the ceiling, and its FLOPs."""
    dtype, channels = torch.bfloat16 if half else torch.float32, CEILING_CHANNELS
    maps = torch.randn(CEILING_BATCH, channels, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    slope = torch.randn_like(maps)
    flops = 2 * CEILING_BATCH * 32 * 32 * channels * channels * 9
    if not backward:
        return lambda: void(F.conv2d(maps, weight, padding=1)), float(flops)
    maps.requires_grad_(), weight.requires_grad_()
    return lambda: void(torch.autograd.grad(F.conv2d(maps, weight, padding=1), (maps, weight), slope)), 3.0 * flops


def void(_: Any) -> None:
    """Let a result go."""


def rounds(runs: dict[str, Callable[[], None]], count: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every run, taken in turns; the first rounds do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(count + 2):
        for name, run in runs.items():
            start = clock()
            run()
            if turn >= 2:
                seconds[name].append(clock() - start)
    return seconds


def measure(names: list[str], threads: int, count: int, batch: int) -> dict[str, Any]:
    """Ceilings in GFLOP/s, and for every network and rung the images per second and the share of its ceiling."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    ceilings = {
        f"{kind} {passes}": ceiling(kind == "bfloat16", passes != "forward")
        for kind in ("float32", "bfloat16")
        for passes in ("forward", "forward and backward")
    }
    runs = {key: run for key, (run, _) in ceilings.items()}
    runs |= {f"{name}|{rung.name}": step(name, rung, batch) for name in names for rung in LADDER}
    seconds = rounds(runs, count, clock)
    best = {key: flops / min(seconds[key]) / 1e9 for key, (_, flops) in ceilings.items()}
    rows = []
    for name in names:
        flops = 3 * size_of(student_of(name).spec(), **SHAPE).flops
        for rung in LADDER:
            each = statistics.median(seconds[f"{name}|{rung.name}"]) / batch
            top = best["bfloat16 forward" if rung.half else "float32 forward"]
            rows.append(
                {
                    "network": name,
                    "rung": rung.name,
                    "images_per_s": round(1 / each, 1),
                    "gflops_per_s": round(flops / each / 1e9, 1),
                    "share_of_ceiling": round(flops / each / 1e9 / top, 3),
                }
            )
    clock_name = "CPU seconds" if threads == 1 else "seconds on the wall"
    return {"threads": threads, "clock": clock_name, "ceilings_gflops_per_s": best, "rows": rows}


def split(name: str, rung: Rung, batch: int, count: int) -> dict[str, float]:
    """Where the time of a step goes: group of operations -> share."""
    torch.set_num_threads(1)
    run = step(name, rung, batch)
    run(), run()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(count):
            run()
    shares: dict[str, float] = {}
    events = seen.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    for event in events:
        group = next((group for part, group in GROUPS if part in event.key), "other")
        shares[group] = shares.get(group, 0.0) + event.self_cpu_time_total / total
    return {group: round(share, 3) for group, share in sorted(shares.items(), key=lambda pair: -pair[1])}


def markdown(part: dict[str, Any]) -> str:
    """One part of the results as a table."""
    tops = ", ".join(f"{name} {value:.0f}" for name, value in part["ceilings_gflops_per_s"].items())
    lines = [
        f"{part['threads']} thread(s), {part['clock']}; ceilings in GFLOP/s: {tops}",
        "",
        "| network | step | images/s | GFLOP/s | of the ceiling |",
        "|---|---|---|---|---|",
    ]
    for row in part["rows"]:
        share = f"{row['share_of_ceiling']:.0%}"
        figures = f"{row['images_per_s']:.0f} | {row['gflops_per_s']:.0f} | {share}"
        lines.append(f"| {row['network']} | {row['rung']} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help='a name, or "name width"')
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=25, help="samples of every figure")
    parser.add_argument("--batch", type=int, default=BATCH)
    options = parser.parse_args()
    memory.keep_freed_memory()
    if native.library() is None:
        raise SystemExit("the kernels cannot be compiled here, so the last rung is missing: install a C compiler")
    parts = [measure(options.networks, threads, options.rounds, options.batch) for threads in options.threads]
    splits = {
        name: {rung.name: split(name, rung, options.batch, 5) for rung in LADDER[-2:]} for name in options.networks
    }
    content = {
        "command": ["python", *sys.argv],
        "provenance": provenance(),
        "batch": options.batch,
        "parts": parts,
        "split": splits,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    print("\n\n".join(markdown(part) for part in parts))
    for name, ways in splits.items():
        print(f"\n{name}: {json.dumps(ways[LADDER[-1].name])}")


if __name__ == "__main__":
    main()
