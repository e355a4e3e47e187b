"""Runs of a confirmation as Ray tasks: each trains as a trial of the search does, into a folder of its own.

Import it after `hksd_search.backend.connect.prepare`.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import RayError

from hksd.config.run import config_hash, from_tree
from hksd.data import DataSet
from hksd.errors import NonFiniteLossError, RunError
from hksd.files import write_atomically
from hksd_search.backend import failures, fitness, tuning
from hksd_search.backend.cluster import NODES_LOST, Cluster
from hksd_search.backend.shared_folder import Mark
from hksd_search.backend.stop_file import STOP_FILE, told_to_stop
from hksd_search.backend.trial import FAULT_FILE, Workplace, listening
from hksd_search.confirm.contenders import FAILED_FILE
from hksd_search.interrupt import GRACE
from hksd_search.space.space import Space

LOOK_S = 1.0  # how often a waiting driver looks for signals
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A run to train.

    Attributes:
        name: name for people.
        config: its configuration as JSON text.
        out: its folder.
    """

    name: str
    config: str
    out: str


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        fault: what ended it, or None.
        warnings: what it warned of.
    """

    fault: str | None
    warnings: tuple[str, ...] = ()


def work(job: Job, data: DataSet, place: Workplace, folder: str, mark: Mark | None = None) -> Ended:
    """Train one run, continuing what is in its folder; a fault is told, with the stack trace in the folder.

    Told to stop (`hksd_search.backend.stop_file`, in the `folder` of the confirmation), it is saved after its step.

    A loss that is not finite would come again, so it is kept as the run's end
    (`hksd_search.confirm.contenders.Run.failure`); other faults, such as a full disk, are tried again by the
    next confirmation.
    """
    if mark is not None and (why := fitness.not_shared(mark, write=False)):
        return Ended(why)
    out = Path(job.out)
    with listening() as warnings:
        try:
            config = from_tree(json.loads(job.config))
            place.train(config, data, out, should_stop=told_to_stop(Path(folder)))
        except Exception as error:  # whatever a run meets, the others go on
            fault = f"{type(error).__name__}: {error}"
            out.mkdir(parents=True, exist_ok=True)
            (out / FAULT_FILE).write_text(traceback.format_exc())
            if isinstance(error, NonFiniteLossError):
                kept = {"config_hash": config_hash(config), "reason": fault}
                write_atomically(out / FAILED_FILE, json.dumps(kept).encode())
            return Ended(fault, tuple(warnings.texts))
    return Ended(None, tuple(warnings.texts))


def train_all(
    jobs: Sequence[Job],
    data: DataSet,
    space: Space,
    place: Workplace,
    folder: Path,
    on_end: Callable[[Job, Ended], None],
    on_stop: Callable[[], None],
    cluster: Cluster | None = None,
) -> None:
    """Train all jobs, as many at once as resources and `search.concurrent` allow; Ray has been started.

    A KeyboardInterrupt is raised again when what is running has saved, or a while later; a second one, at once.

    Args:
        jobs: what to train.
        data: their images.
        space: tells what a run occupies.
        place: where they train; with the share of a GPU that each gets.
        folder: folder of the confirmation.
        on_end: called when a job has ended.
        on_stop: called when what is running is told to save.
        cluster: nodes that come and go; None for this machine. A run whose node goes away is tried on another.

    Raises:
        RunError: a worker meets a fault outside of a run, as every other one would; or see `Cluster.check`.
        UserError: see `Cluster.check`.
    """
    cpu, gpu, mark = space.search.resources.cpu, place.share, cluster and cluster.mark
    places = tuning.Places(space.search, gpu, cluster)
    task = ray.remote(num_cpus=cpu, num_gpus=gpu, max_retries=0)(work)
    images = ray.put(data)
    waiting, gone = deque(jobs), Counter[Job]()
    running: dict[ray.ObjectRef, Job] = {}
    try:
        while waiting or running:
            if cluster is not None:
                cluster.check()
            while waiting and len(running) < places():
                job = waiting.popleft()
                running[task.remote(job, images, place, str(folder), mark)] = job
            if not running:  # the nodes have left
                time.sleep(LOOK_S)
                continue
            for done in ray.wait(list(running), timeout=LOOK_S)[0]:
                job = running.pop(done)
                try:
                    ended = ray.get(done)
                except RayError as error:
                    lost = failures.failure(error)
                    node = cluster and cluster.lost_node(lost)
                    if node and gone[job] < NODES_LOST:
                        gone[job] += 1
                        waiting.appendleft(job)  # it goes on from its last checkpoint
                        log.warning("%s: node %s is gone; it is tried again on another", job.name, node)
                        continue
                    if lost.fault:
                        raise RunError(f"no worker can train a run: {lost.reason}") from error
                    ended = Ended(lost.reason)
                on_end(job, ended)
    except KeyboardInterrupt:
        if running:
            on_stop()
            with suppress(OSError):  # a full disk: their last checkpoints count
                (folder / STOP_FILE).touch()
            ray.wait(list(running), num_returns=len(running), timeout=GRACE)
        raise
