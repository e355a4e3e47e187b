"""A Ray cluster while a search uses it: nodes come and go, and each must be fit for the work.

A thread looks after the nodes. What it finds that ends the search, it keeps; whoever waits, or hands out trials, asks
for it by `check`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hksd import __version__
from hksd.errors import RunError, UserError
from hksd_search.backend import connect, failures, fitness, growth, nodes, shared_folder
from hksd_search.backend.failures import Failure
from hksd_search.backend.nodes import Node

MINUTE = 60.0  # seconds
LOOK_EVERY = 1.0  # seconds between two looks at the nodes
POLL_S = 0.5  # between two looks at a task that works
NODE_ANSWER_S = 60.0  # for a node to say whether it is fit; its first worker has to start
PATIENCE_S = 60.0  # for a node that fits, where nobody is known to bring one
PATIENCE_GROWING_S = 1800.0  # and where an autoscaler does, or one was there: a machine starts, and installs several GB
TOLD_AGAIN_S = 300.0  # between two lines that a node is waited for
QUIET_S = 3.0  # without a node that fits before that is told
NODES_LOST = 5  # that a piece of work may lose before that counts as its own fault
GONE_S = 30.0  # for which a node that was found to be gone counts as gone, without asking it again


@contextmanager
def joined(
    address: str | None, runs: Path, say: Callable[[str], None], node_timeout: float | None = None
) -> Iterator[Cluster | None]:
    """Be connected to the cluster at `address` inside; None where there is none to connect to.

    Args:
        address: of the cluster.
        runs: see `Cluster`.
        say: see `Cluster`.
        node_timeout: see `Cluster`.

    Raises:
        UserError: there is none at that address, or a node is not fit for the work.
        RunError: Ray cannot be used there.
    """
    if address is None:
        yield None
        return
    connect.prepare(address)
    connect.start_ray(address)
    try:
        cluster = Cluster(runs, say, node_timeout)
        try:
            yield cluster
        finally:
            cluster.close()
    finally:
        connect.stop_ray()


class Cluster:
    """The nodes of a cluster to which this process is connected, watched until it is closed.

    Args:
        runs: folder of all searches, which every node must share.
        say: shows a line to people.
        node_timeout: seconds without a node that fits after which a search ends; None takes a default.

    Attributes:
        mark: in the folder of all searches.
        growth: how the cluster may grow.
        up: nodes that are up, by Ray's id.

    Raises:
        UserError: a node that is up is not fit for the work.
    """

    def __init__(self, runs: Path, say: Callable[[str], None], node_timeout: float | None = None):
        self.runs, self.say, self.node_timeout = runs, say, node_timeout
        self.growth = growth.of_cluster()
        self.up = {node.id: node for node in nodes.alive()}
        self._known = dict(self.up)  # all nodes that there have been
        self._fault: Exception | None = None
        self._need: tuple[float, float] | None = None  # cores and GPUs of what is to start; None while nothing is
        self._worked = False  # a node has fitted before
        self._lacking: float | None = None  # since when no node fits
        self._told = 0.0  # when that was told last
        self._gone: dict[str, float] = {}  # nodes that did not answer, and when
        self._asked: dict[Any, Node] = {}  # nodes that have been asked whether they are fit
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="nodes of the cluster", daemon=True)
        self.mark = shared_folder.mark(runs)
        try:
            self._ask(self.up.values())
            until = time.monotonic() + NODE_ANSWER_S
            while self._asked and self._fault is None and time.monotonic() < until:
                self._hear(POLL_S)
            self.check()
        except BaseException:
            shared_folder.unmark(self.mark)
            raise
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join(LOOK_EVERY + POLL_S)
        shared_folder.unmark(self.mark)

    def check(self) -> None:
        """Return while nothing has been found that ends the search.

        Raises:
            UserError: a node is not fit for the work, or none has come where nobody is known to bring one.
            RunError: no node has come in time.
        """
        if self._fault is not None:
            raise self._fault

    @contextmanager
    def wanting(self, cpu: float, gpu: float) -> Iterator[None]:
        """Inside, something waits for a node with so many cores and GPUs, or works on one.

        Raises:
            UserError: there is none, and the cluster starts none.
        """
        kinds = self.growth.types
        if not self._fits(cpu, gpu) and kinds and not self.growth.may_fit(cpu, gpu):
            raise UserError(
                f"{nodes.wish(cpu, gpu)}, and the cluster starts no node that has them: {growth.told(kinds)}"
            )
        self._lacking, self._need = None, (cpu, gpu)
        try:
            yield
        finally:
            self._need = None

    def wait(self, reference: Any) -> Any:
        """The result of a task of Ray that works on a node; the task is ended when this is left early.

        Raises:
            UserError: see `check`.
            RunError: see `check`.
            ray.exceptions.RayError: the task failed, or its node did.
        """
        import ray

        try:
            while not ray.wait([reference], timeout=POLL_S)[0]:
                self.check()
        except BaseException:
            with suppress(Exception):
                ray.cancel(reference, force=True)
            raise
        return ray.get(reference)

    def places(self, cpu: float, gpu: float) -> int:
        """Trials that may run now, or wait for a node that an autoscaler would bring for them."""
        up = list(self.up.values())
        now = sum(node.room(cpu, gpu) for node in up)
        most = self.growth.most_trials(up, cpu, gpu)
        return now + max(1, now) if most is None else most  # how far it grows is not known: to twice as many

    def has_gpus(self) -> bool:
        """Whether trials may count on GPUs: a node has one, or such a node can come.

        Where no node for trials is up, and nobody knows which will come, the first one that does tells.

        Raises:
            UserError: see `check`.
            RunError: see `check`.
        """
        kinds = self.growth.types
        if not kinds or any(kind.gpu is None for kind in kinds):
            with self.wanting(1, 0):
                while not self._fits(1, 0):
                    self.check()
                    time.sleep(POLL_S)
        return any(node.gpu for node in self.up.values()) or any(kind.gpu for kind in kinds)

    def lost_node(self, failure: Failure) -> str | None:
        """Name of the node that went away with a worker; None where only the worker did.

        Ray tells at once that a process has ended, and only after 15 to 60 s that its machine has: it is asked here.

        Args:
            failure: what Ray said of the worker.
        """
        if failure.fault:
            return None
        node = self._known.get(failure.node or nodes.node_of(failure.actor) or "")
        if node is None and failure.address is not None:
            node = next((one for one in self._known.values() if one.address == failure.address), None)
        if failure.reason == failures.NODE:
            return str(node or failure.address or "that it was on")
        if node is None:
            return None
        if time.monotonic() - self._gone.get(node.id, -GONE_S) < GONE_S:
            return str(node)
        if node.id in self.up and nodes.answers(node):
            return None
        self._gone[node.id] = time.monotonic()
        return str(node)

    def _fits(self, cpu: float, gpu: float) -> bool:
        return any(node.room(cpu, gpu) for node in self.up.values())

    # --- the thread

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            with suppress(Exception):  # the head does not answer: whoever works there hears it from Ray
                self._look()

    def _look(self) -> None:
        before, self.up = self.up, {node.id: node for node in nodes.alive()}
        came = [node for node in self.up.values() if node.id not in before]
        for node in came:
            self._known[node.id] = node
            self.say(f"node {node} has joined: {node.cpu:g} CPU(s), {node.gpu:g} GPU(s)")
        for node in before.values():
            if node.id not in self.up:
                self.say(f"node {node} has left")
        self._ask(came)
        self._hear(0)
        self._mind_the_time()

    def _ask(self, some: Iterable[Node]) -> None:
        """Have nodes find out whether they are fit for the work; where no trial fits (a board), none is done."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        task = ray.remote(num_cpus=0, max_retries=0)(fitness.fault)
        for node in (one for one in some if one.room(1, 0)):
            there = NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
            self._asked[task.options(scheduling_strategy=there).remote(self.mark, __version__)] = node

    def _hear(self, seconds: float) -> None:
        """Take in what nodes say of themselves, if one says something within some seconds."""
        import ray

        for answer in ray.wait(list(self._asked), timeout=seconds)[0] if self._asked else ():
            node = self._asked.pop(answer)
            try:
                fault = ray.get(answer)
            except ray.exceptions.RayError as error:
                failure = failures.failure(error)
                if not failure.fault:  # the node has gone again
                    continue
                fault = f"node {node} cannot work for this search: {failure.reason} (`hksd doctor --cluster` says more)"
            if fault:
                self._fault = self._fault or UserError(fault)

    def _mind_the_time(self) -> None:
        """Tell that no node fits what is wanted, and after a while have the search end."""
        need = self._need
        if need is None or self._fits(*need):
            self._worked, self._lacking = self._worked or need is not None, None
            return
        now = time.monotonic()
        if self._lacking is None:
            self._lacking, self._told = now, now + QUIET_S - TOLD_AGAIN_S
        waited, growing = now - self._lacking, self.growth.automatic
        limit = self.node_timeout or (PATIENCE_GROWING_S if growing or self._worked else PATIENCE_S)
        if waited >= limit:
            self._fault = self._fault or self._none_came(need, limit)
        elif now - self._told >= TOLD_AGAIN_S:
            self._told = now
            whom = "the autoscaler has been asked for one" if growing else "one that joins will be used"
            self.say(
                f"waiting for a node, {duration(limit)} at most: {nodes.wish(*need)}, and no node has them; {whom}"
            )

    def _none_came(self, need: tuple[float, float], limit: float) -> Exception:
        """What is said of a wait in vain."""
        there = f"there are {nodes.told(self.up.values())}"
        if not self.growth.automatic:
            return UserError(
                f"{nodes.wish(*need)}, and within {duration(limit)} no node came that has them; {there}. "
                "Start one with `ray start --address=HEAD:6379`, or ask for less"
            )
        kinds = f" (it may start {growth.told(self.growth.types)})" if self.growth.types else ""
        return RunError(
            f"{nodes.wish(*need)}, and within {duration(limit)} the autoscaler brought no node that has them{kinds}; "
            f"{there}. Likely causes: the account's quota for such machines, no capacity in the zone, a spot price "
            "above the limit, a set-up command that fails there. `ray status` and the log of Ray's monitor on "
            "the head (/tmp/ray/session_latest/logs/monitor.*) say which; search.node_timeout sets another limit"
        )


def duration(seconds: float) -> str:
    """A time in words: ``90 s``, ``30 min``."""
    return f"{seconds:g} s" if seconds < 2 * MINUTE or seconds % MINUTE else f"{seconds / MINUTE:g} min"
