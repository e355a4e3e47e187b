"""Ranges: what may stand in a search space where a run has a value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from hksd.errors import Problem, unknown
from hksd.schema import describe

KINDS = ("choice", "uniform", "log_uniform", "int")
MODIFIERS = ("step", "off")


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

    def grid(self, points: int = 9) -> tuple[Any, ...]:
        """All choices, or up to `points` values from low to high."""
        if self.kind == "choice":
            return self.values
        low, high = self.values
        if self.kind == "int" or self.step:
            step = self.step or 1
            count = int((high - low) / step + 1e-9) + 1
            picks = sorted({round(i * (count - 1) / (min(points, count) - 1 or 1)) for i in range(min(points, count))})
            values = [low + pick * step for pick in picks]
            return tuple(int(value) for value in values) if self.kind == "int" else tuple(values)
        shares = [i / (points - 1) for i in range(points)]
        if self.kind == "log_uniform":
            return tuple(low * (high / low) ** share for share in shares)
        return tuple(low + (high - low) * share for share in shares)

    def ends(self) -> list[tuple[tuple[str | int, ...], Any]]:
        """Every value to validate, with its key path below the range: all choices, or low and high."""
        return [((self.kind, i), value) for i, value in enumerate(self.values)]

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
    faults += _choice_faults(values, where) if kind == "choice" else _bound_faults(kind, values, where)
    if faults:
        return None, faults
    if kind != "choice":
        values = [int(v) if kind == "int" else float(v) for v in values]
    if step is not None:
        step = int(step) if kind == "int" else float(step)
    return Range(kind, tuple(values), step, float(off)), []


def _choice_faults(values: list[Any], where: tuple[str | int, ...]) -> list[Problem]:
    if not values:
        return [Problem(where, "empty range: give at least one value")]
    return [
        Problem((*where, i), f"the value {describe(value)} stands twice")
        for i, value in enumerate(values)
        if any(value == v and type(value) is type(v) for v in values[:i])
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
    """Whether `value` is a finite number; YAML 1.1 reads 1e-3 as a text, so texts of numbers count."""
    if isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
