"""Ranges: what may stand in a search space where a run has a value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from hksd import bounds
from hksd.errors import KeyPath, Problem, describe, unknown

T = TypeVar("T")
KINDS = ("choice", "uniform", "log_uniform", "int")
MODIFIERS = ("step", "off")
LARGEST = 2.0**63  # of the bounds of a range: the seeds
ABSENCE = ".off"  # after the key path of a block: the name of the parameter that says whether it is absent


class Draws(Protocol):
    """What a range needs of an Optuna trial."""

    # ruff: noqa: D102 - Optuna's own methods
    def suggest_categorical(self, name: str, choices: Any) -> Any: ...
    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int: ...


@dataclass(frozen=True)
class Range:
    """A distribution over the values of one key.

    Attributes:
        kind: one of `KINDS`.
        values: the choices, or (low, high).
        step: grid of uniform and int ranges, or None.
        off: probability that the block around the key is absent; 0 for never.
    """

    kind: str
    values: tuple[Any, ...]
    step: float | None = None
    off: float = 0.0

    def draw(self, trial: Draws, name: str) -> Any:
        """Draw a value under the parameter `name`."""
        if self.kind == "choice":
            return trial.suggest_categorical(name, self.values)
        low, high = self.values
        if self.kind == "int":
            return trial.suggest_int(name, low, high, step=int(self.step or 1))
        return trial.suggest_float(name, low, high, step=self.step, log=self.kind == "log_uniform")

    def middle(self) -> Any:
        """The value for a run that is not searched: first choice, middle of a range (geometric for log_uniform)."""
        if self.kind == "choice":
            return self.values[0]
        low, high = self.values
        if self.kind == "log_uniform":
            return math.sqrt(low * high)
        middle = (low + high) / 2
        if self.step or self.kind == "int":
            step = self.step or 1
            middle = low + round((middle - low) / step) * step
        return int(middle) if self.kind == "int" else middle

    def at(self, share: float) -> Any:
        """The value at a share (0 to 1) of a range of numbers, on its steps; rises with the share."""
        low, high = self.values
        if self.kind == "int" or self.step:
            step = self.step or 1
            value = low + int(share * int((high - low) / step + 1e-9) + 1e-9) * step
            return int(value) if self.kind == "int" else value
        return low * (high / low) ** share if self.kind == "log_uniform" else low + (high - low) * share

    def samples(self) -> list[tuple[tuple[str | int, ...], Any]]:
        """Values that stand for all in a validation, with their key path below the range: choices, or the ends.

        A range of numbers adds a value between its ends, so that one that only starts and ends on whole numbers is
        not taken for whole numbers.
        """
        ends: list[tuple[tuple[str | int, ...], Any]] = [((self.kind, i), value) for i, value in enumerate(self.values)]
        if self.kind == "choice":
            return ends
        between = self.values[0] + self.step if self.step else self.at(0.3819660112501051)
        return [*ends, ((self.kind,), between)]

    def __str__(self) -> str:
        if self.kind == "choice":
            text = " | ".join(map(str, self.values))
        else:
            text = f"{self.kind} {self.values[0]:g} .. {self.values[1]:g}" + (
                f" step {self.step:g}" if self.step else ""
            )
        return text + (f"  (block absent with probability {self.off:g})" if self.off else "")


def parse(node: Mapping[str, Any], path: tuple[str | int, ...]) -> tuple[Range | None, list[Problem]]:
    """Read ``{choice: [...]}``, ``{uniform: [low, high], step: s}`` and the like.

    Returns:
        The range, or None with every fault found.
    """
    kinds = [key for key in node if key in KINDS]
    faults = [
        Problem((*path, key), unknown("distribution", key, (*KINDS, *MODIFIERS)))
        for key in node
        if key not in (*KINDS, *MODIFIERS)
    ]
    if len(kinds) != 1:
        if not faults:
            found = " and ".join(kinds) or "none"
            faults.append(Problem(path, f"a range needs exactly one of {', '.join(KINDS)} (got {found})"))
        return None, faults
    kind, values = kinds[0], node[kinds[0]]
    where = (*path, kind)
    if not isinstance(values, list) or (kind != "choice" and len(values) != 2):
        wanted = "a list of values" if kind == "choice" else "[low, high]"
        return None, [*faults, Problem(where, f"must be {wanted} (got {describe(values)})")]
    off, step = node.get("off", 0.0), node.get("step")
    if not _number(off) or not 0 <= float(off) < 1:
        faults.append(Problem((*path, "off"), f"must be a probability from 0 to below 1 (got {describe(off)})"))
    if step is not None and (kind not in ("uniform", "int") or not _number(step) or float(step) <= 0):
        message = f"must be a number above 0, in a uniform or int range (got {describe(step)})"
        faults.append(Problem((*path, "step"), message))
    elif step is not None and kind == "int" and not float(step).is_integer():
        faults.append(Problem((*path, "step"), f"must be a whole number in an int range (got {describe(step)})"))
    elif step is not None and all(map(_number, values)):
        faults += _step_faults(float(step), float(values[1]) - float(values[0]), kind, (*path, "step"))
    faults += _choice_faults(values, where) if kind == "choice" else _bound_faults(kind, values, where)
    if faults:
        return None, faults
    if kind != "choice":
        values = [int(float(v)) if kind == "int" else float(v) for v in values]
    if step is not None:
        step = int(float(step)) if kind == "int" else float(step)
    return Range(kind, tuple(values), step, float(off)), []


def _step_faults(step: float, width: float, kind: str, where: KeyPath) -> list[Problem]:
    if step > width > 0:
        return [Problem(where, f"leaves nothing but the low end: at most {width:.12g}, high less low (got {step:g})")]
    if kind == "uniform" and width / step > bounds.RANGE_STEPS:
        return [Problem(where, f"makes more than {bounds.RANGE_STEPS:,} values; leave it out for any (got {step:g})")]
    return []


def _choice_faults(values: list[Any], where: tuple[str | int, ...]) -> list[Problem]:
    if not values:
        return [Problem(where, "empty range: give at least one value")]
    if len(values) > bounds.CHOICES:
        return [Problem(where, f"{len(values):,} values; at most {bounds.CHOICES:,}, or take a range of numbers")]
    return [
        Problem((*where, i), f"the value {describe(value)} stands twice")
        for i, value in enumerate(values)
        if any(value == v and isinstance(value, bool) is isinstance(v, bool) for v in values[:i])
    ] + [
        Problem((*where, i), f"a choice is a single value (got {describe(value)})")
        for i, value in enumerate(values)
        if isinstance(value, (dict, list))
    ]


def _bound_faults(kind: str, values: list[Any], where: tuple[str | int, ...]) -> list[Problem]:
    wrong = [
        Problem((*where, i), f"must be a number (got {describe(v)})") for i, v in enumerate(values) if not _number(v)
    ]
    if wrong:
        return wrong
    low, high = map(float, values)
    if kind == "int" and not (low.is_integer() and high.is_integer()):
        return [Problem(where, f"must be two whole numbers (got {values})")]
    if kind == "log_uniform" and low <= 0:
        return [Problem((*where, 0), f"must be above 0 in a log_uniform range (got {low:g})")]
    if low >= high:
        return [Problem(where, f"empty range: low must be below high (got {low:g} and {high:g})")]
    return []


def _number(value: Any) -> bool:
    """Whether `value` is a finite number, and no larger than any that a key can have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


PRESENT, ABSENT = 1.0, 0.0  # answers to "is the block absent?", which is so below its probability


def continuous(spread: Range) -> bool:
    """Whether a range has no end of values."""
    return spread.kind in ("uniform", "log_uniform") and spread.step is None


def grid_problems(ranges: Mapping[KeyPath, Range]) -> list[Problem]:
    """What keeps a space with these ranges from having a grid when `grid_points` is not given."""
    message = "a grid needs points: take `choice`, or `step`, or set search.grid_points for all continuous ranges"
    return [Problem(path, message) for path, spread in ranges.items() if continuous(spread)]


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of `items`, at even distances, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(place * (len(items) - 1) / (count - 1))] for place in range(count)]
