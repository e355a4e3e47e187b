"""A few steps of a few runs, as trials would make them: on a miniature of the data, with a teacher of a few steps.

Nothing is kept. A miniature has training and validation images in the proportion of the whole, so an epoch over it
costs what an epoch costs, in proportion to its steps. A teacher that learned for a few steps costs in each step what
the finished one does.
"""

from __future__ import annotations

import math
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hksd.config.run import RunConfig
from hksd.data import DataSet
from hksd.data.dataset import AnySplit, Split
from hksd.errors import RunError, UserError
from hksd.fit import fit
from hksd.run.outcome import EpochReport
from hksd.teacher import prepare as teachers
from hksd_search.backend import connect, failures

STEPS = 6  # of an epoch over the miniature
EPOCHS = 6  # of a run over it, at most; the first warms up
TEACHER_EPOCHS, ATTENTION_EPOCHS = 3, 2
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of ru_maxrss


def steps(images: int, batch_size: int) -> int:
    """Steps of an epoch; a last image alone joins the batch before it (see `hksd.data.augment.Batches`)."""
    return max(1, math.ceil(images / batch_size) - (images % batch_size == 1 and batch_size > 1 < images))


def miniature(data: DataSet, batch_size: int) -> DataSet:
    """Some of the images, for `STEPS` steps of that batch size: evenly over both splits, in their proportion."""
    share = min(1.0, STEPS * batch_size / len(data.train))
    return replace(
        data,
        train=_some(data.train, share),
        validation=_some(data.validation, share),
        fingerprint=f"{data.fingerprint}-miniature",
    )


def _some(split: AnySplit, share: float) -> AnySplit:
    rows = np.linspace(0, len(split) - 1, max(2, round(share * len(split)))).astype(np.int64)
    labels, index = split.labels[rows], split.index[rows]
    if isinstance(split, Split):
        return Split(split.images[rows], labels, index)
    return replace(split, files=split.files.select(rows), labels=labels, index=index)


def shortened(config: RunConfig) -> RunConfig:
    """A run with few epochs, whose teacher learns for a few steps."""
    epochs = max(2, min(config.train.epochs, EPOCHS))
    short = replace(config, train=replace(config.train, epochs=epochs, views=None))
    if config.data_free is not None:
        short = replace(short, data_free=replace(config.data_free, steps_per_epoch=STEPS))
    if (teacher := config.teacher) is None:
        return short
    attention = replace(teacher.attention, epochs=min(teacher.attention.epochs, ATTENTION_EPOCHS))
    few = min(teacher.epochs, TEACHER_EPOCHS)
    return replace(short, teacher=replace(teacher, epochs=few, attention=attention, min_accuracy=0.0))


@dataclass(frozen=True)
class Stage:
    """What the teacher stage costs over the miniature.

    Attributes:
        epoch_seconds: time of an epoch, by what learns (``teacher``, ``attention``, ``teacher and attention``).
        first_seconds: time until its first epoch ended, less that of an epoch: what a process does once.
    """

    epoch_seconds: dict[str, float]
    first_seconds: float


def time_teacher(configs: Sequence[RunConfig], data: DataSet, cache_dir: Path) -> Stage:
    """Make the teachers of shortened runs in `cache_dir`, and time their epochs; the last of each kind counts."""
    marks = [time.perf_counter()]
    whats: list[str] = []

    def on_progress(what: str, epoch: int, epochs: int, accuracy: float) -> None:
        marks.append(time.perf_counter())
        whats.append(what)

    for config in configs:
        teachers.prepare(config, data, cache_dir=cache_dir, on_progress=on_progress)
    spans = np.diff(marks)
    found = {what: float(span) for what, span in zip(whats, spans, strict=True)}
    first = max(0.0, float(spans[0]) - found[whats[0]]) if whats else 0.0
    return Stage(found, first)


@dataclass(frozen=True)
class Job:
    """What a worker of a dry run does.

    Attributes:
        configs: shortened runs by their number, in the order in which they are measured.
        shared: a shortened run that stands for all (see `hksd.fit.fit`).
        data: the miniature.
        cache_dir: folder with the teacher.
        asked_at: time since the epoch at which the worker was asked for.
    """

    configs: tuple[tuple[int, RunConfig], ...]
    shared: RunConfig
    data: DataSet
    cache_dir: str
    asked_at: float


@dataclass(frozen=True)
class Findings:
    """What a worker measured.

    Attributes:
        start_seconds: from when it was asked for until it was ready.
        first_seconds: what its first epoch took more than the next ones.
        epoch_seconds: mean time of an epoch over the miniature, without the first, by the number of the run.
        problems: why runs failed, by their number.
        peak_bytes: largest memory of the process (resident set).
        gpu_bytes: largest memory that torch's allocator held on a GPU; 0 without one.
    """

    start_seconds: float
    first_seconds: float
    epoch_seconds: dict[int, float]
    problems: dict[int, str]
    peak_bytes: int
    gpu_bytes: int


def work(job: Job) -> Findings:
    """Train each run of the job for its few epochs, in this process, as a trial does."""
    from hksd_search.backend import trial  # noqa: F401 - what the worker of a search has loaded too

    start, first = time.time() - job.asked_at, 0.0
    measured: dict[int, float] = {}
    problems: dict[int, str] = {}
    with tempfile.TemporaryDirectory(prefix="hksd-estimate-") as own:
        # On another node of a cluster the folder of the teacher may not exist: then the worker makes its own.
        cache = Path(job.cache_dir) if Path(job.cache_dir).is_dir() else Path(own)
        for number, config in job.configs:
            reports: list[EpochReport] = []
            try:
                fit(config, data=job.data, cache_dir=cache, shared=job.shared, on_epoch=reports.append)
            except (RunError, UserError) as error:
                problems[number] = str(error)
                continue
            seconds = [report.seconds for report in reports]
            first = first or max(0.0, seconds[0] - float(np.mean(seconds[1:])))
            measured[number] = float(np.mean(seconds[1:]))
    gpu = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    return Findings(
        start, first, measured, problems, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT, gpu
    )


def jobs(configs: Sequence[RunConfig], shared: RunConfig, data: DataSet, cache_dir: Path, workers: int) -> list[Job]:
    """One job for each worker: every worker measures every run, each in an order of its own.

    At any time the workers are then at different runs, as trials are. A single worker measures everything twice.
    """
    numbered = list(enumerate(configs))
    turned = [numbered[at:] + numbered[:at] for at in (len(numbered) * w // workers for w in range(workers))]
    return [Job(tuple(order), shared, data, str(cache_dir), time.time()) for order in turned]


def run_here(work_list: Sequence[Job]) -> list[Findings]:
    """Do all jobs at once, in processes of this machine.

    Raises:
        RunError: a process died.
    """
    _begin_tracker()
    context, processes = multiprocessing.get_context("spawn"), list[multiprocessing.process.BaseProcess]()
    try:
        with ProcessPoolExecutor(len(work_list), mp_context=context) as pool:
            jobs = [pool.submit(work, job) for job in work_list]
            processes += multiprocessing.active_children()
            return [job.result() for job in jobs]
    except BrokenProcessPool:
        ended = next((process.exitcode for process in processes if (process.exitcode or 0) > 0), None)
        if ended is not None:  # by itself: it could not begin
            raise RunError(
                f"a process of the dry run could not begin (exit code {ended}, its fault is above)"
            ) from None
        raise RunError(
            "a process of the dry run died (killed, or out of memory): try fewer at once, --concurrent 1"
        ) from None


def _begin_tracker() -> None:
    """Begin Python's tracker of what processes share, so that a SIGHUP to the whole group does not end it.

    By itself it ignores SIGINT and SIGTERM only; a second one, begun in its place, knows nothing and says so at length.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_on_cluster(work_list: Sequence[Job], cpus: int, gpu: float) -> list[Findings]:
    """Do all jobs at once as tasks of the Ray cluster to which this process is connected.

    Args:
        work_list: the jobs.
        cpus: cores of a trial.
        gpu: GPUs of a trial.

    Raises:
        RunError: a worker was lost.
    """
    import ray

    task: Any = ray.remote(num_cpus=cpus, num_gpus=gpu, max_calls=1)(connect.at_home)
    try:
        found: list[Findings] = ray.get([task.remote(str(Path.cwd()), work, job) for job in work_list])
    except ray.exceptions.RayError as error:
        raise RunError(f"the dry run failed on the cluster: {failures.failure(error).reason}") from error
    return found
