"""The teacher stage as work for a node of a cluster: the head, where a search runs, often has no GPU.

What is trained lies in the shared folder, so a node that goes away leaves its checkpoint to the next one.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayError, RayTaskError

from hksd.config.run import RunConfig
from hksd.data import DataSet
from hksd.errors import RunError, UserError
from hksd.teacher.estimators import Progress
from hksd_search.backend import connect, failures, fitness
from hksd_search.backend.cluster import NODES_LOST, POLL_S, Cluster
from hksd_search.backend.shared_folder import Mark
from hksd_search.study.records import STRIKES
from hksd_search.teaching import TeacherFacts, make_teacher

log = logging.getLogger(__name__)


def make(
    cluster: Cluster,
    runs: Sequence[RunConfig],
    data: DataSet,
    cache_dir: Path,
    on_progress: Progress,
    cpu: int,
    gpu: bool,
) -> TeacherFacts:
    """Make the teachers of runs on a node; see `hksd_search.teaching.make_teacher`.

    Args:
        cluster: the nodes.
        runs: see there.
        data: see there.
        cache_dir: see there; every node sees it.
        on_progress: see there; called in this process.
        cpu: processor cores for it.
        gpu: it gets a whole GPU.

    Raises:
        UserError: as `hksd.teacher.prepare.prepare`, and see `Cluster.wanting`.
        RunError: as there, or worker after worker ended without a word.
    """
    told = ray.put((list(runs), data, cache_dir))
    strikes = gone = 0
    with cluster.wanting(cpu, float(gpu)):
        while True:
            try:
                return _once(cluster, told, on_progress, cpu, gpu)
            except RayTaskError as error:
                if isinstance(error.cause, (UserError, RunError)):
                    raise error.cause from None
                raise RunError(f"the teacher cannot be made on a node: {failures.failure(error).reason}") from error
            except RayError as error:
                lost = failures.failure(error)
                node = cluster.lost_node(lost)
                why = f"node {node} is gone" if node else lost.reason
                strikes, gone = strikes + (node is None), gone + (node is not None)
                if strikes >= STRIKES or gone > NODES_LOST:
                    raise RunError(f"the teacher cannot be made: {strikes + gone} times, at last: {why}") from error
                log.warning("the teacher: %s; it is tried again from its last checkpoint", why)


def _once(cluster: Cluster, told: Any, on_progress: Progress, cpu: int, gpu: bool) -> TeacherFacts:
    """One try on one node."""
    task = ray.remote(num_cpus=cpu, num_gpus=int(gpu), max_retries=0, max_calls=1)(_on_node)
    heard = task.options(num_returns="streaming").remote(str(Path.cwd()), cluster.mark, told)
    try:
        for said in _items(cluster, heard):
            if isinstance(said, TeacherFacts):
                return said
            on_progress(*said)
    except BaseException:
        with suppress(Exception):
            ray.cancel(heard, force=True)
        raise
    raise RunError("the teacher cannot be made: its worker has ended without a result")


def _items(cluster: Cluster, heard: Any) -> Iterator[Any]:
    """What the worker says, as it says it."""
    while True:
        while not ray.wait([heard], timeout=POLL_S)[0]:
            cluster.check()
        try:
            said = next(heard)
        except StopIteration:
            return
        yield ray.get(said)


def _on_node(home: str, mark: Mark, told: tuple[list[RunConfig], DataSet, Path]) -> Iterator[Any]:
    """Make the teachers here: yields what `on_progress` is called with, and at last the `TeacherFacts`."""
    if why := fitness.not_shared(mark):
        raise UserError(why)
    said: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        try:
            said.put(
                connect.at_home(home, cast(Callable[..., TeacherFacts], make_teacher), *told, lambda *p: said.put(p))
            )
        except BaseException as error:
            said.put(error)

    threading.Thread(target=work, name="teacher", daemon=True).start()
    while True:
        item = said.get()
        if isinstance(item, BaseException):
            raise item
        yield item
        if isinstance(item, TeacherFacts):
            return
