"""Checks of a Ray cluster: which nodes there are, and each of them, asked where it is."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hksd.errors import RunError, UserError
from hksd_search.backend import connect, failures, growth, nodes, reach, shared_folder
from hksd_search.backend.growth import Growth
from hksd_search.backend.nodes import Node
from hksd_search.backend.shared_folder import Mark
from hksd_search.health import checks, probe
from hksd_search.health.checks import Offset, Said
from hksd_search.health.finding import Finding

ANSWER_S = 180.0  # for all nodes together; the first work on a node starts a process and imports torch
ROUNDS = 3  # in which a clock is asked; the quickest answer is the most exact
NOT_HERE = (
    "this machine is no node of a Ray cluster that is up: type this on its head "
    "(`ray exec cluster.yaml 'hksd doctor --cluster'`), or give --address"
)
NOT_TAKEN = (
    "the cluster at {} does not take this process in: this machine must be one of its nodes, and RAY_AUTH_MODE and "
    "RAY_AUTH_TOKEN_PATH must be as on its head"
)
NOTHING, CLASH = "Could not find any running Ray instance", "Version mismatch"  # words of Ray


@dataclass
class Examined:
    """What was found of a cluster.

    Attributes:
        findings: result of each check.
        nodes: what each node said of itself.
    """

    findings: list[Finding]
    nodes: list[dict[str, Any]] = field(default_factory=list)


def check_cluster(address: str | None, runs: Path) -> Examined:
    """Check the cluster at `address`, or the one that this machine is a node of, with each node that is up.

    Args:
        address: of the cluster.
        runs: folder of all searches.
    """
    connect.prepare(address or "auto")
    try:
        reach.must_answer(address)
        connect.start_ray(address or "auto")
    except (UserError, RunError) as error:
        return Examined([Finding("cluster", False, not_joined(str(error), str(error.__cause__)))])
    try:
        return _examine(runs)
    finally:
        connect.stop_ray()


def not_joined(error: str, cause: str) -> str:
    """Why a cluster cannot be used from here.

    Args:
        error: what is said of it, as the last resort.
        cause: what Ray said.
    """
    if NOTHING in cause:
        return NOT_HERE
    if refused := re.search(r"Failed to connect to Ray cluster at (\S+)", cause):
        return NOT_TAKEN.format(refused[1])
    versions = re.findall(r"(?:Ray|Python): (\S+)", cause)
    if CLASH in cause and len(versions) == 4:
        there, here = [f"Ray {ray} on Python {python}" for ray, python in (versions[:2], versions[2:])]
        return f"the cluster has {there}, here is {here}: {checks.SAME}"
    return error


def _examine(runs: Path) -> Examined:
    import ray

    up = nodes.alive()
    found = Examined([members(ray.__version__, len(up), len(ray.nodes()) - len(up))])
    try:
        answers = ask(up, runs)
    except UserError as error:  # the folder cannot be written here, so no node can be asked about it
        found.findings.append(Finding("runs folder", False, str(error)))
        return found
    driver = probe.software()
    for answer in answers:
        if isinstance(answer, Finding):
            found.findings.append(answer)
        else:
            found.findings += checks.check_node(answer, driver)
            found.nodes.append({"name": str(answer.node), **answer.facts, "clock": answer.offset.seconds})
    found.findings.append(workers(up, growth.of_cluster))
    return found


def members(ray: str, up: int, left: int) -> Finding:
    """How many nodes there are; those that have left are no fault: machines come and go."""
    gone = f"; {left} node{'s have' if left > 1 else ' has'} left" if left else ""
    return Finding("cluster", True, f"Ray {ray}, {up} node(s) up{gone}")


def workers(up: list[Node], grows: Callable[[], Growth]) -> Finding:
    """Something is there to train on, or comes when there is something to train.

    Args:
        up: nodes that are up.
        grows: tells how the cluster grows.
    """
    cpus, gpus = sum(one.cpu for one in up), sum(one.gpu for one in up)
    if cpus:
        return Finding("workers", True, f"{cpus:g} CPU(s) and {gpus:g} GPU(s) for trials")
    try:
        coming = grows()
    except UserError as error:
        return Finding("workers", False, str(error))
    if coming.automatic:
        which = f" (it may start {growth.told(coming.types)})" if coming.types else ""
        return Finding("workers", True, f"no worker is up; the autoscaler brings them when trials wait{which}")
    return Finding("workers", False, "no node has a CPU for trials, and no autoscaler brings one: start workers")


def ask(up: list[Node], runs: Path) -> list[Said | Finding]:
    """Ask each node of itself, all at once; a finding stands for one that does not answer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    until = time.monotonic() + ANSWER_S
    marks = [shared_folder.mark(runs) for _ in up]
    places = [NodeAffinitySchedulingStrategy(node_id=one.id, soft=False) for one in up]

    def answer(look: Any, clock: Any, mark: Mark) -> tuple[dict[str, Any], Offset]:
        facts = dict(ray.get(look, timeout=max(0.0, until - time.monotonic())))
        if not facts["shared"] and not shared_folder.answered(mark):
            facts["shared"] = f"what {facts['host']} writes into {Path(mark.path).parent} is not seen here"
        return facts, offset_of(lambda: float(ray.get(clock.remote(), timeout=ANSWER_S)))

    try:
        with sent_whole():
            task = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(probe.look)
            looks = [
                task.options(scheduling_strategy=place).remote(mark) for place, mark in zip(places, marks, strict=True)
            ]
            task = ray.remote(num_cpus=0, max_retries=0)(probe.clock)
            clocks = [task.options(scheduling_strategy=place) for place in places]
            for clock in clocks:
                clock.remote()  # starts the process that is asked later
        answers: list[Said | Finding] = []
        for one, look, clock, mark in zip(up, looks, clocks, marks, strict=True):
            try:
                facts, offset = answer(look, clock, mark)
                answers.append(Said(one, facts, offset))
            except Exception as error:  # whatever Ray says of work that is lost
                answers.append(Finding("answer", False, f"it could not be asked: {_why(error)}", str(one)))
        return answers
    finally:
        for mark in marks:
            shared_folder.unmark(mark)


def offset_of(ask: Callable[[], float], rounds: int = ROUNDS) -> Offset:
    """How far another clock is ahead of this one; the quickest of some answers counts."""
    found: list[Offset] = []
    for _ in range(rounds):
        begun, timer = time.time(), time.monotonic()
        there, took = ask(), time.monotonic() - timer
        found.append(Offset(there - (begun + took / 2), took / 2))
    return min(found, key=lambda one: one.within)


@contextmanager
def sent_whole() -> Iterator[None]:
    """Inside, what is asked on nodes is sent with its code, not by its name: hksd may not be there."""
    from ray import cloudpickle

    modules = (probe, shared_folder)
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _why(error: Exception) -> str:
    if type(error).__name__ == "GetTimeoutError":
        return f"no answer within {ANSWER_S:g} s"
    return failures.failure(error).reason
