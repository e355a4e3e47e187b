"""Checks of one node of a cluster, from what it said of itself. Each returns what is there, or raises what is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from hksd.errors import UserError
from hksd_search.backend.nodes import Node
from hksd_search.health.finding import Finding, attempt
from hksd_search.health.machine import LEAST_DISK_GB

GB, GIB = 10**9, 2**30
CLOCK_S = 30.0  # that a clock may be wrong; times of files and records say nothing beyond that
TITLES = {"hksd": "hksd", "torch": "torch", "python": "Python", "ray": "Ray"}
EXACT = "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"  # of Ray: minor, or patch, which it takes where this is not set
SAME = "install the same on every node (`ray up` does, from one cluster.yaml)"


@dataclass(frozen=True)
class Offset:
    """How far another clock is ahead of that of this machine.

    Attributes:
        seconds: it is ahead, negative where it is behind.
        within: how exact that is; half of the time that an answer took.
    """

    seconds: float
    within: float

    def __str__(self) -> str:
        return f"{abs(self.seconds):.3g} s {'ahead of' if self.seconds > 0 else 'behind'} the driver's"


@dataclass(frozen=True)
class Said:
    """What is known of a node.

    Attributes:
        node: as Ray has it.
        facts: what it said (`probe.look`).
        offset: of its clock.
    """

    node: Node
    facts: Mapping[str, Any]
    offset: Offset


def check_node(said: Said, driver: Mapping[str, Any]) -> list[Finding]:
    """All checks of a node.

    Args:
        said: what is known of it.
        driver: what the driver says of its own software (`probe.software`).
    """
    checks: dict[str, Callable[[], str]] = {
        "versions": partial(versions, said.facts, driver),
        "runs folder": partial(runs_folder, said.facts),
        "gpus": partial(gpus, said.facts, said.node.gpu),
        "disk": partial(disk, said.facts),
        "clock": partial(clock, said.offset),
    }
    return [attempt(name, check, str(said.node)) for name, check in checks.items()]


def versions(facts: Mapping[str, Any], driver: Mapping[str, Any]) -> str:
    """Hksd can be imported; it, torch, Python and Ray are those of the driver."""
    here, there = facts["versions"], driver["versions"]
    wrong = [
        f"{title} {here[key]} is there, {there[key]} at the driver"
        for key, title in TITLES.items()
        if key in here and key in there and not alike(key, here[key], there[key])
    ]
    for name, fault in facts["faults"].items():
        if not wrong or name == "torch":
            package = "hksd" if name.startswith("hksd") else name
            wrong.append(f"{package} cannot be imported there ({fault})")
    if not wrong and facts["source"] != driver["source"]:
        wrong.append(f"hksd {here['hksd']} is there, as at the driver, but its files are others")
    if wrong:
        raise UserError(f"{'; '.join(wrong)}: {SAME}")
    return ", ".join(f"{title} {here[key]}" for key, title in TITLES.items())


def alike(name: str, here: str, there: str) -> bool:
    """Whether two versions go together: of Python as Ray compares them, of torch whatever it was built for."""
    if name == "torch":
        return here.partition("+")[0] == there.partition("+")[0]
    if name == "python" and os.environ.get(EXACT) == "minor":
        return here.split(".")[:2] == there.split(".")[:2]
    return here == there


def runs_folder(facts: Mapping[str, Any]) -> str:
    """The folder of all searches is the driver's, and can be written from there."""
    if facts["shared"]:
        raise UserError(
            f"{facts['shared']}: every node must see the folder of the driver at the same place; "
            "set HKSD_RUNS or --runs to one on a file system that all of them share"
        )
    return "runs folder shared"


def gpus(facts: Mapping[str, Any], counted: float) -> str:
    """Torch sees the GPUs that Ray counts."""
    found = [f"{name} ({memory / GIB:.0f} GiB)" for name, memory in facts["gpus"]]
    seen = f"{len(found)} GPU(s): {', '.join(found)}" if found else "no GPU"
    if len(found) < counted:
        raise UserError(
            f"torch sees {seen}, Ray counts {counted:g}: trials that get one would fail; see `nvidia-smi` there, that "
            "torch is built for CUDA, and --num-gpus of `ray start`"
        )
    return seen + (f", of which Ray counts {counted:g}" if len(found) > counted else "")


def disk(facts: Mapping[str, Any]) -> str:
    """The runs folder and that for temporary files have room."""
    free = {folder: size / GB for folder, size in facts["free"].items()}
    if full := [f"{folder} has only {size:.2f} GB free" for folder, size in free.items() if size < LEAST_DISK_GB]:
        raise UserError(f"{'; '.join(full)}: make room, at least {LEAST_DISK_GB:g} GB")
    return ", ".join(f"{size:.0f} GB free in {folder}" for folder, size in free.items())


def clock(offset: Offset) -> str:
    """The clock goes with that of the driver."""
    if abs(offset.seconds) - offset.within > CLOCK_S:
        raise UserError(
            f"its clock is {offset}: times of checkpoints, locks and records mislead; set it (NTP, `chronyc makestep`)"
        )
    return f"clock right within {abs(offset.seconds) + offset.within:.2g} s"
