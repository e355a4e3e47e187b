"""Draws that are wished for: the point of a space nearest to given values, and the documented defaults as such a point.

A search begins with a few of them, after its arms, so that its sampler starts from what is known to work.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from hksd.config.networks import StudentConfig
from hksd.config.run import RunConfig, dump, flatten
from hksd.errors import ConfigError, KeyPath
from hksd.schema import section_fields
from hksd_search.space import alternatives
from hksd_search.space.ranges import ABSENCE, ABSENT, PRESENT, Range
from hksd_search.space.space import Space, section_type

Params = dict[str, Any]  # values by the names of the parameters
SHARE = 10  # one in that many trials may be a default


class Nearest:
    """Answers what a draw asks by the value nearest to the one that is wished for, by the middle where there is none.

    Args:
        wishes: values by the names of the parameters.
    """

    # ruff: noqa: D102 - Optuna's own methods

    def __init__(self, wishes: Mapping[str, Any]):
        self._wishes = wishes
        self.answers: Params = {}

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        wish = self._wishes.get(name, choices[0])
        self.answers[name] = nearest(Range("choice", tuple(choices)), wish)
        return self.answers[name]

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if name.endswith(ABSENCE):
            self.answers[name] = self._wishes.get(name, PRESENT)
            return float(self.answers[name])
        return float(self._number(name, Range("log_uniform" if log else "uniform", (low, high), step)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return int(self._number(name, Range("int", (low, high), step)))

    def _number(self, name: str, spread: Range) -> Any:
        wish = self._wishes.get(name)
        self.answers[name] = spread.middle() if wish is None else nearest(spread, wish)
        return self.answers[name]


def nearest(spread: Range, wish: Any) -> Any:
    """The value of a range nearest to `wish`; of a choice without numbers the first, unless it has the wish."""
    if spread.kind == "choice":
        same = [value for value in spread.values if value == wish and type(value) is type(wish)]
        near = [value for value in spread.values if _number(value)] if _number(wish) else []
        return (same or sorted(near, key=lambda value: abs(value - wish)) or spread.values)[0]
    if not _number(wish):
        return spread.middle()
    low, high = spread.values
    value = min(max(wish, low), high)
    if spread.step or spread.kind == "int":
        step = spread.step or 1
        places = min(round((value - low) / step), int((high - low) / step + 1e-9))
        on_step = low + places * step
        value = value if math.isclose(value, on_step, rel_tol=1e-9) else on_step  # a value of the range stays itself
    return int(value) if spread.kind == "int" else float(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def point(space: Space, wishes: Mapping[str, Any]) -> tuple[Params, RunConfig] | None:
    """The point of the space nearest to `wishes`, as parameters and as a run; None where it makes no valid run."""
    draws = Nearest(wishes)
    try:
        return draws.answers, space.draw(draws)
    except ConfigError:
        return None


def wishes(space: Space, config: RunConfig) -> dict[str, Params]:
    """The values of a run by the names of the parameters, for each alternative of the space by name ("" for none)."""
    flat = flatten(dump(config))
    found: dict[str, Params] = {}
    for name, plain in (space.alternatives or {"": space}).items():
        keys = {plain.parameter(path): ".".join(map(str, path)) for path in plain.ranges}
        found[name] = {parameter: flat[key] for parameter, key in keys.items() if key in flat}
        for block in {path[:-1] for path, spread in plain.ranges.items() if spread.off}:
            present = str(block[-1]) in config.terms.active()
            found[name][plain.parameter(block) + ABSENCE] = PRESENT if present else ABSENT
        if name:
            found[name][alternatives.PARAMETER] = name
    return found


def defaults(space: Space, student: StudentConfig) -> list[Params]:
    """The points that a search draws first: for each alternative, as many as the trials allow, the documented defaults.

    A default counts where it lies inside its range; else, and where a knob has none, the middle does. Every term is
    present. The student is that of the arms, which is known to keep the limits.

    Args:
        space: the space.
        student: the largest student within its limits.
    """
    most = max(1, space.search.trials // SHARE)
    found = []
    for name, plain in list((space.alternatives or {"": space}).items())[:most]:
        chosen: Params = {alternatives.PARAMETER: name} if name else {}
        for path, spread in plain.ranges.items():
            value = getattr(student, str(path[1])) if path[0] == "student" else _default(path)
            if value is not None and nearest(spread, value) == value:
                chosen[plain.parameter(path)] = value
        if (drawn := point(space, chosen)) is not None:
            found.append(drawn[0])
    return found


def _default(path: KeyPath) -> Any:
    """The default of the key at a path of a run configuration; None where there is none."""
    kind: Any = RunConfig
    for key in path[:-1]:
        kind = section_fields(kind)[str(key)]
    fields = {field.name: field for field in dataclasses.fields(section_type(kind))}
    default = fields[str(path[-1])].default
    return None if default is dataclasses.MISSING else default
