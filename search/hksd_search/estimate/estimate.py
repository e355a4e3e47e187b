"""What a search would cost, measured beforehand by a dry run of a few steps (`hksd estimate`)."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hksd.config.networks import TeacherConfig
from hksd.config.run import RunConfig
from hksd.data import DataSet
from hksd.errors import RunError
from hksd.teacher import prepare as teachers
from hksd_search.backend import packing
from hksd_search.caps import HOUR, device_hours
from hksd_search.estimate import dry_run, forecast
from hksd_search.estimate.dry_run import Findings, Stage
from hksd_search.estimate.forecast import Plan, Span, around
from hksd_search.estimate.question import MEASURED, Machine, Question, ask
from hksd_search.session import TEACHERS
from hksd_search.space.space import Space
from hksd_search.strategy import stopping
from hksd_search.teaching import Teaching

STARTS = 3.0  # time until the first trial trains, and from the last to the end, in starts of a worker of the dry run


@dataclass(frozen=True)
class Estimate:
    """What a search would cost.

    Attributes:
        trials: trials to train, the arms included.
        at_once: trials that train at once.
        gpu: GPUs of a trial.
        gpu_reason: how many trials share a GPU and why; empty without one.
        teacher_seconds: training of the teacher and its estimators; 0 where they are cached.
        missing: what of them is not cached.
        knowledge_seconds: what the teacher says of all views, computed once by the trials.
        trial_seconds: training of a drawn trial (see `hksd_search.estimate.forecast.Totals`).
        expected_epochs: of a drawn trial.
        epochs: of a trial that is not stopped.
        wall_hours: of the whole search, the teacher stage included.
        device_hours: of training, the teacher's included (see `hksd_search.caps`).
        cost: money at `price`; None without one.
        price: of a device hour.
        peak_bytes: memory of a trial process (resident set), without the images that all trials share.
        gpu_bytes: GPU memory of a trial process; 0 without a GPU.
        measured: runs that were measured.
        workers: processes that measured at once.
        seconds: what the estimate itself took.
        familiar: the accuracy of the teacher will be measured on images that it may have been trained on.
    """

    trials: int
    at_once: int
    gpu: float
    gpu_reason: str
    teacher_seconds: float
    missing: tuple[str, ...]
    knowledge_seconds: float
    trial_seconds: Span
    expected_epochs: float
    epochs: int
    wall_hours: Span
    device_hours: Span
    cost: Span | None
    price: float | None
    peak_bytes: int
    gpu_bytes: int
    measured: int
    workers: int
    seconds: float
    familiar: bool

    def facts(self) -> dict[str, Any]:
        """All of it for machines."""
        return asdict(self)


def estimate(space: Space, machine: Machine, *, runs: Path, say: Callable[[str], None]) -> Estimate:
    """Measure a few steps of some draws of a space and forecast the search.

    Args:
        space: what would be searched; `search.price` gives money.
        machine: what it would run on; with an address, this process is connected to that cluster.
        runs: folder of cached teachers and images; no teacher is written there.
        say: told what goes on.

    Raises:
        UserError: wrong data, limits, resources, or no draw makes a valid run.
        RunError: no run could be measured.
    """
    begun = time.monotonic()
    asked = ask(space, machine, runs)
    return _forecast(asked, _measured(asked, say), begun)


@dataclass(frozen=True)
class _Measured:
    """What the dry run found.

    Attributes:
        small: the images that it used.
        stage: of the teacher.
        packed: GPUs of a trial.
        at_once: trials at once.
        workers: processes that measured at once.
        found: what each of them measured.
        knowledge_seconds: what the teacher says of all views of all images.
    """

    small: DataSet
    stage: Stage
    packed: packing.Packing
    at_once: int
    workers: int
    found: list[Findings]
    knowledge_seconds: float


def _measured(asked: Question, say: Callable[[str], None]) -> _Measured:
    """Train some steps of the teacher, then of the chosen runs."""
    space, machine, middle = asked.space, asked.machine, asked.middle
    batch = max([middle.train.batch_size, *(run.train.batch_size for run in asked.chosen), *_teacher_batches(middle)])
    small, shared = dry_run.miniature(asked.data, batch), dry_run.shortened(middle)
    with tempfile.TemporaryDirectory(prefix="hksd-estimate-") as scratch:
        cache = Path(scratch) / TEACHERS
        missing = "measuring some steps of the teacher"
        say(missing if asked.missing else "the teacher is cached; a small one stands in for it")
        stage = dry_run.time_teacher([dry_run.shortened(run) for run in asked.taught], small, cache)
        teaching = Teaching(shared, small, teachers.prepare(shared, small, cache_dir=cache), cache)
        teaching.build_all()
        packed = _packed(replace(shared, student=asked.largest), small, cache, space, machine)
        at_once = packing.trials_at_once(space.search, packed.gpu, machine.cpus, machine.gpus)
        workers = min(at_once, len(asked.chosen), _capacity(machine, space, packed.gpu))
        say(f"measuring some steps of {len(asked.chosen)} runs, {workers} at once")
        jobs = dry_run.jobs([dry_run.shortened(run) for run in asked.chosen], shared, small, cache, workers)
        found = _measure(jobs, machine, space, packed.gpu)
    knowledge = _knowledge_seconds(teaching, middle, asked.data, small, asked.missing, asked.runs / TEACHERS)
    return _Measured(small, stage, packed, at_once, workers, found, knowledge)


def _forecast(asked: Question, measured: _Measured, begun: float) -> Estimate:
    """What the search would cost, from what was measured since `begun` (monotonic clock)."""
    search, found, gpu = asked.space.search, measured.found, measured.packed.gpu
    works = [asked.work(run) for run in asked.chosen]
    steps = [dry_run.steps(len(measured.small.train), run.train.batch_size) for run in asked.chosen]
    seconds, noise = _step_seconds(found, steps)
    fit = forecast.fitted([works[number] for number in seconds], list(seconds.values()))
    count = max(search.trials - len(asked.arms), 0)
    grace, epochs = stopping.grace_epochs(asked.space), stopping.total_epochs(asked.space)
    # Trials are stopped early by comparison with those of their own space.
    expected = forecast.expected_epochs(search.scheduler, grace, count // asked.groups, epochs)
    plan = Plan(
        drawn=count,
        arms=tuple(
            seconds[number] * works[number].steps if number in seconds else fit.epoch_seconds(works[number])
            for number in range(len(asked.arms))
        ),
        epochs=epochs,
        first_rung=grace,
        expected=expected,
        at_once=measured.at_once,
        knowledge_seconds=measured.knowledge_seconds,
        first_seconds=float(np.mean([each.first_seconds for each in found])),
    )
    epoch_seconds = [fit.epoch_seconds(asked.work(run)) for run in asked.drawn]
    sums = forecast.totals(plan, epoch_seconds, fit.error / len(seconds) ** 0.5, noise)
    stage = _teacher_seconds(measured.stage, asked.middle, asked.data, measured.small, asked.missing)
    start = STARTS * float(np.mean([each.start_seconds for each in found]))
    hours = around(device_hours(sums.training, gpu) + stage / HOUR, sums.error)
    return Estimate(
        trials=count + len(plan.arms),
        at_once=measured.at_once,
        gpu=gpu,
        gpu_reason=measured.packed.reason,
        teacher_seconds=stage,
        missing=asked.missing,
        knowledge_seconds=measured.knowledge_seconds,
        trial_seconds=sums.trial,
        expected_epochs=expected,
        epochs=epochs,
        wall_hours=around((sums.wall + stage + start) / HOUR, sums.error),
        device_hours=hours,
        cost=None if search.price is None else hours.times(search.price),
        price=search.price,
        peak_bytes=max(each.peak_bytes for each in found),
        gpu_bytes=max(each.gpu_bytes for each in found),
        measured=len(seconds),
        workers=measured.workers,
        seconds=time.monotonic() - begun,
        familiar=teachers.familiar(asked.middle, asked.data),
    )


def _capacity(machine: Machine, space: Space, gpu: float) -> int:
    """Trials that can be measured at once, on what there really is."""
    if machine.address is not None:
        return MEASURED
    cores = len(os.sched_getaffinity(0)) // space.search.resources.cpu
    return max(1, min(cores, int(torch.cuda.device_count() / gpu) if gpu else cores))


def _packed(largest: RunConfig, data: DataSet, cache: Path, space: Space, machine: Machine) -> packing.Packing:
    gpus = largest.train.device != "cpu" and machine.gpus >= 1

    def by_cpu() -> int:
        return int(machine.cpus // space.search.resources.cpu / machine.gpus)

    def try_out() -> packing.Usage:
        return packing.measured(largest, data, cache)

    return packing.decide(space.search.resources.gpu, gpus, by_cpu, try_out)


def _measure(jobs: Sequence[dry_run.Job], machine: Machine, space: Space, gpu: float) -> list[Findings]:
    if machine.address is not None:
        return dry_run.run_on_cluster(jobs, space.search.resources.cpu, gpu)
    return dry_run.run_here(jobs)


def fit_numbers(found: Sequence[Findings]) -> list[int]:
    """Numbers of the runs that every worker could measure.

    Raises:
        RunError: there is none.
    """
    common = set.intersection(*(set(each.epoch_seconds) for each in found))
    if not common:
        problems = sorted({text for each in found for text in each.problems.values()})
        raise RunError(f"no draw could be measured: {'; '.join(problems)}")
    return sorted(common)


def _step_seconds(found: Sequence[Findings], steps: Sequence[int]) -> tuple[dict[int, float], float]:
    """Time of a step of each run, and the relative standard error of all of them, from the workers' differences."""
    numbers = fit_numbers(found)
    seconds = np.array([[each.epoch_seconds[number] / steps[number] for number in numbers] for each in found])
    sums = seconds.sum(1)
    noise = float(sums.std(ddof=1) / sums.mean()) / len(found) ** 0.5 if len(found) > 1 else 0.0
    return dict(zip(numbers, seconds.mean(0).tolist(), strict=True)), noise


def _teacher_batches(middle: RunConfig) -> list[int]:
    settings = middle.teacher
    return [settings.batch_size, settings.attention.batch_size] if settings is not None else []


def _teacher_seconds(stage: Stage, middle: RunConfig, data: DataSet, small: DataSet, missing: Sequence[str]) -> float:
    """Time of the teacher stage, of what is not cached."""
    settings = middle.teacher
    assert isinstance(settings, TeacherConfig)
    networks, estimators = missing.count("teacher"), missing.count("attention")
    whole = {
        "teacher": (networks, settings.epochs, settings.batch_size),
        "attention": (estimators, settings.attention.epochs, settings.attention.batch_size),
        "teacher and attention": (max(networks, estimators), settings.epochs, settings.batch_size),
    }
    total = stage.first_seconds if missing else 0.0
    for what, seconds in stage.epoch_seconds.items():
        times, epochs, batch = whole[what]
        ratio = dry_run.steps(len(data.train), batch) / dry_run.steps(len(small.train), batch)
        total += times * epochs * seconds * ratio
    return total


def _knowledge_seconds(
    teaching: Teaching, middle: RunConfig, data: DataSet, small: DataSet, missing: Sequence[str], cache: Path
) -> float:
    """Time in which trials compute what the teacher says of views that are not there yet."""
    if teaching.cost is None:
        return 0.0
    views = middle.views()
    if not missing:
        views = Teaching(middle, data, teachers.prepare(middle, data, cache_dir=cache), cache).missing_views()
    return views * teaching.cost.view_seconds * len(data.train) / len(small.train)
