"""The grid of a space: every configuration of its conditional tree, once, in an order that never changes.

A walk is an odometer whose wheels are the questions that a draw asks: a draw is repeated with the same answers but for
the last one that has another to give, and what it asks after that starts anew. So what a block that is absent, or a
dead knob, does not ask is not counted, and the space alone says what that is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from hksd.errors import ConfigError
from hksd_search.space.ranges import ABSENCE, ABSENT, PRESENT, Range, continuous
from hksd_search.space.space import Space


class Odometer:
    """Answers what a draw asks by the positions of its wheels, and finds the positions after them.

    Args:
        wheels: number of the answer to each question, in the order of the draw; questions beyond take the first.
        points: points of a continuous range: the middles of that many parts of equal probability.
    """

    # ruff: noqa: D102 - Optuna's own methods

    def __init__(self, wheels: Sequence[int] = (), points: int | None = None):
        self.wheels, self._points = list(wheels), points
        self._sizes: list[int] = []
        self.answers: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._answer(name, choices)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if name.endswith(ABSENCE):
            return float(self._answer(name, (PRESENT, ABSENT)))
        return float(self._answer(name, _values(Range("log_uniform" if log else "uniform", (low, high), step), self)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return int(self._answer(name, range(low, high + 1, step)))

    def _answer(self, name: str, options: Sequence[Any]) -> Any:
        place = len(self._sizes)
        self._sizes.append(len(options))
        self.wheels += [0] * (len(self._sizes) - len(self.wheels))
        self.answers[name] = options[self.wheels[place]]
        return self.answers[name]

    @property
    def points(self) -> int:
        """Points of a continuous range."""
        assert self._points is not None, "a space with continuous ranges has no grid without grid_points"
        return self._points

    def turned(self) -> list[int] | None:
        """The wheels of the next draw, after one was made with these; None after the last."""
        for place in reversed(range(len(self._sizes))):
            if self.wheels[place] + 1 < self._sizes[place]:
                return [*self.wheels[:place], self.wheels[place] + 1]
        return None


def _values(spread: Range, odometer: Odometer) -> list[float]:
    """The points of a range of numbers that are not whole."""
    low, high = spread.values
    if spread.step:
        count = int((high - low) / spread.step + 1e-9) + 1  # as in Range.at
        return [low + place * spread.step for place in range(count)]
    return [spread.at((place + 0.5) / odometer.points) for place in range(odometer.points)]


def draw(space: Space, wheels: Sequence[int]) -> Odometer:
    """Make the draw of `wheels`; the odometer then holds its answers."""
    odometer = Odometer(wheels, space.search.grid_points)
    with contextlib.suppress(ConfigError):  # all is asked by then; whether it makes a run is not for this to say
        space.draw(odometer)
    return odometer


def walk(space: Space, wheels: Sequence[int] | None = ()) -> Iterator[Odometer]:
    """The points of the grid from `wheels` on, in order."""
    while wheels is not None:
        odometer = draw(space, wheels)
        yield odometer
        wheels = odometer.turned()


def count(space: Space, most: int) -> int | None:
    """Number of points of the grid, or `most` + 1 where they are more; None where a range has no points."""
    if space.search.grid_points is None and any(map(continuous, space.ranges.values())):
        return None
    return sum(1 for _ in islice(walk(space), most + 1))
