"""How many trials share a GPU: a dry run of the largest student says how much of it one trial takes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hksd.config.run import RunConfig
from hksd.data import DataSet, Split
from hksd.errors import RunError, UserError
from hksd.fit import fit
from hksd.run.outcome import EpochReport
from hksd.teacher import prepare as teachers
from hksd_search.backend import nodes
from hksd_search.backend.nodes import Node
from hksd_search.space.settings import SearchConfig
from hksd_search.space.space import Space

GIB = 2**30
STEPS = 20  # of the dry run; as many before it, to warm up
CONTEXT_BYTES = 0.6 * GIB  # what a process takes on a GPU beside its tensors, by order of magnitude
USABLE = 0.9  # of the memory: the allocators of several processes do not fit together without loss
MOST = 16  # trials on one GPU
RAY_STEPS = 10_000  # Ray counts resources in these parts of one


@dataclass(frozen=True)
class Usage:
    """What one trial takes of a GPU.

    Attributes:
        peak: largest number of bytes that torch's allocator held.
        total: bytes of the GPU.
        busy: share of the wall time in which the GPU computed, 0 to 1.
    """

    peak: int
    total: int
    busy: float


@dataclass(frozen=True)
class Packing:
    """How many GPUs a trial gets, and why.

    Attributes:
        gpu: GPUs of a trial; a fraction puts several trials on one.
        reason: one line for people; empty where there is nothing to say.
    """

    gpu: float
    reason: str = ""


def proposed(usage: Usage, trials_by_cpu: int) -> Packing:
    """As many trials as fit into the memory, as keep the GPU busy and as there are processor cores for.

    Args:
        usage: what the largest student takes.
        trials_by_cpu: trials for which there are processor cores, per GPU.
    """
    options = {
        "memory": int(USABLE * usage.total / (usage.peak + CONTEXT_BYTES)),
        "time": round(1 / max(usage.busy, 1 / MOST)),
        "processor cores": trials_by_cpu,
        "the most that is tried": MOST,
    }
    bound = min(options, key=lambda name: options[name])
    count = max(1, options[bound])
    return Packing(
        int(RAY_STEPS / count) / RAY_STEPS,
        f"{count} trial(s) per GPU, bounded by {bound}: the largest student holds {usage.peak / GIB:.1f} of "
        f"{usage.total / GIB:.1f} GiB and computes {usage.busy:.0%} of the time; search.resources.gpu sets another",
    )


def measured(config: RunConfig, data: DataSet, cache_dir: Path, cuda: Any = torch.cuda) -> Usage:
    """Train some steps on the GPU and see what they take.

    The first epoch warms up. The second is timed by the wall clock and by the kernels that the profiler saw.

    Args:
        config: the largest run of a search.
        data: its images.
        cache_dir: folder of cached teachers.
        cuda: `torch.cuda`.
    """
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=2))
    if not isinstance(data.train, Split) or not isinstance(data.validation, Split):
        raise RunError("the images are streamed")
    some = dataclasses.replace(
        data,
        train=_first(data.train, STEPS * config.train.batch_size),
        validation=_first(data.validation, config.train.batch_size),
        fingerprint=f"{data.fingerprint}-first",
    )
    activities = [torch.profiler.ProfilerActivity.CUDA]
    profiler, marks = torch.profiler.profile(activities=activities), list[float]()

    def on_epoch(report: EpochReport) -> None:
        cuda.synchronize()
        marks.append(time.perf_counter())
        if report.epoch == 1:
            profiler.start()

    cuda.reset_peak_memory_stats()
    fit(short, data=some, teacher=teachers.prepare(config, data, cache_dir=cache_dir), on_epoch=on_epoch)
    profiler.stop()
    kernels = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
    return Usage(cuda.max_memory_reserved(), cuda.mem_get_info()[1], min(1.0, kernels / (marks[1] - marks[0])))


def _first(split: Split, count: int) -> Split:
    return dataclasses.replace(
        split, images=split.images[:count], labels=split.labels[:count], index=split.index[:count]
    )


def trials_by_cpu(up: Iterable[Node], cpu: int) -> int:
    """Trials for which there are processor cores, per GPU, on the node where they are fewest.

    Args:
        up: nodes; those without a GPU do not count.
        cpu: cores of a trial.
    """
    return min((int(node.cpu / cpu / node.gpu) for node in up if node.gpu), default=1)


def trials_at_once(search: SearchConfig, gpu: float, cpus: float, gpus: float) -> int:
    """Trials at once on one machine, each with that many GPUs: what it has room for, at most `search.concurrent`.

    Args:
        search: the settings.
        gpu: GPUs of a trial.
        cpus: processor cores that there are.
        gpus: GPUs that there are.

    Raises:
        UserError: not even one trial fits.
    """
    fit = nodes.room(cpus, gpus, search.resources.cpu, gpu)
    if fit < 1:
        raise UserError(f"{nodes.wish(search.resources.cpu, gpu)}, there are {cpus:g} and {gpus:g}")
    return min(fit, search.concurrent or fit)


def wants_gpu(space: Space) -> bool:
    """Whether the runs of a space may use a GPU, where there is one."""
    return space.search.resources.gpu != 0 and str(space.tree["train"].get("device", "auto")) != "cpu"


def decide(asked: float | str, gpus: bool, by_cpu: Callable[[], int], try_out: Callable[[], Usage]) -> Packing:
    """The GPUs of a trial.

    Args:
        asked: `search.resources.gpu`, a number or ``auto``.
        gpus: whether the runs may use GPUs, and there are some, or will be.
        by_cpu: trials per GPU for which there are processor cores; asked after the dry run.
        try_out: the dry run.
    """
    if not isinstance(asked, str):
        return Packing(asked)
    if not gpus:
        return Packing(0.0)
    try:
        return proposed(try_out(), by_cpu())
    except Exception as error:  # whatever the device does: one trial per GPU is what always works
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Packing(1.0, f"1 trial per GPU, since a dry run was not possible: {first}")
