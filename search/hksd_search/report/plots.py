"""Drawing in SVG: scales with ticks at round numbers, axes with units, marks, and labels that keep off each other.

A chart is collected mark by mark in data coordinates and written as one `<svg>` without scripts or outside references.
Colours come from the style sheet of the page, by class, so that a chart follows its light and its dark form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeVar

T = TypeVar("T")
Points = Sequence[tuple[float, float]]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

LEFT, RIGHT, TOP, BOTTOM = 52.0, 16.0, 30.0, 44.0  # margins in pixels, with titles
BARE = 16.0  # what a title takes of them
CHAR, LINE = 7.4, 15.0  # mean width of a letter and height of a line of labels, in pixels
REACH = 8.0  # from a place to its label, in pixels
SHIFTS = (0.0, LINE, -LINE, 2 * LINE, -2 * LINE, 3 * LINE, -3 * LINE)  # of a label that has no room at its place
ROUNDING = 1e-9  # values that differ by less, relative to their size, are the same
SHARE_OF_MARGIN = 0.05  # of a range, left free at both of its ends


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels.

    Attributes:
        low: smallest value, > 0 where `log`.
        high: largest value, > `low`.
        log: equal ratios are equally far apart, in place of equal differences.
        title: what is measured, with its unit.
        percent: values are shares from 0 to 1 and are written as percentages.
        names: the values 0, 1, 2, ... are categories of these names.
    """

    low: float
    high: float
    log: bool = False
    title: str = ""
    percent: bool = False
    names: tuple[str, ...] = ()

    def place(self, value: float) -> float:
        """Where a value lies between `low` (0) and `high` (1); values outside lie at the nearer end."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values inside the range; every category."""
        if self.names:
            return [float(index) for index in range(len(self.names))]
        if self.log:
            for digits in ((1, 2, 5), (1, 3), (1,)):
                found = _decades(self.low, self.high, digits)
                if 3 <= len(found) <= max(count, 3):
                    return found
            if len(found) > count:  # many decades: every second, third, ... of them
                return found[:: math.ceil(len(found) / count)]
        return _round_steps(self.low, self.high, count)

    def text(self, value: float) -> str:
        """A tick as people read it."""
        if self.names:
            return self.names[int(value)]
        return shortened(100 * value if self.percent else value, self.high)


def spanning(values: Sequence[float], *, log: bool = False, title: str = "", percent: bool = False) -> Scale:
    """A scale for `values` with some room at both ends; a single value lies in the middle.

    Args:
        values: at least one, all > 0 where `log`.
        log: see `Scale`.
        title: see `Scale`.
        percent: see `Scale`; such a scale stays within 0 and 1.
    """
    low, high = min(values), max(values)
    spread = high - low > ROUNDING * max(abs(low), abs(high))
    if log:
        room = (high / low) ** SHARE_OF_MARGIN if spread else 2.0
        return Scale(low / room, high * room, True, title, percent)
    room = SHARE_OF_MARGIN * (high - low) if spread else abs(high) * 0.1 or 1.0
    low, high = low - room, high + room
    return Scale(max(low, 0.0), min(high, 1.0), title=title, percent=True) if percent else Scale(low, high, title=title)


def categories(names: Sequence[str], title: str = "") -> Scale:
    """A scale of categories: the i-th name stands at i."""
    return Scale(-0.5, len(names) - 0.5, title=title, names=tuple(names))


def shortened(value: float, largest: float = 0.0) -> str:
    """A number in few letters, in the unit that goes with the largest one beside it: ``0.03``, ``5k``, ``1.5M``."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor and max(abs(value), largest) >= 10e3:
            return f"{value / factor:.4g}{unit}"
    return f"{value:.4g}"


def _decades(low: float, high: float, digits: Sequence[int]) -> list[float]:
    """Digit times a power of ten, for all that lie inside."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [digit * 10.0**power for power in powers for digit in digits]
    return [value for value in values if low <= value <= high]


def _round_steps(low: float, high: float, count: int) -> list[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten, at least two."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [digit * power for digit in (0.5, 1, 2, 5, 10)]
    first = next(index for index, step in enumerate(steps) if step >= rough * 0.999)
    found: list[float] = []
    for step in reversed(steps[: first + 1]):
        found = [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
        if len(found) > 1:
            break
    return found


@dataclass(frozen=True)
class Label:
    """A name beside a place in pixels; see `Chart.label`."""

    x: float
    y: float
    text: str
    look: str
    sides: tuple[int, ...]

    def box(self, y: float, side: int) -> Box:
        """What it covers on one side, at height `y`."""
        near, far = self.x + side * REACH, self.x + side * (REACH + CHAR * len(self.text))
        return min(near, far), y - LINE / 2, max(near, far), y + LINE / 2


class Chart:
    """A chart with two axes.

    Args:
        x: horizontal scale.
        y: vertical scale.
        width: pixels.
        height: pixels.
        left: left margin in pixels, wider where categories have long names.
        right: right margin in pixels, wider where labels stand in it.
    """

    def __init__(
        self, x: Scale, y: Scale, width: int = 680, height: int = 380, left: float = LEFT, right: float = RIGHT
    ):
        self.x, self.y, self.width, self.height = x, y, width, height
        self.left, self.right = left, width - right
        self.top, self.bottom = TOP - BARE * (not y.title), height - BOTTOM + BARE * (not x.title)
        self.marks: list[str] = []
        self.labels: list[Label] = []
        self.taken: list[Box] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a place."""
        across, up = self.right - self.left, self.bottom - self.top
        return self.left + across * self.x.place(x), self.bottom - up * self.y.place(y)

    def dots(self, points: Points, look: str, radius: float = 3.5, hints: Sequence[str] = ()) -> None:
        """Dots of one look (a class of the style sheet), with texts that show under the pointer."""
        for index, point in enumerate(points):
            x, y = self.at(*point)
            hint = f"<title>{escape(hints[index])}</title>" if hints else ""
            self.marks.append(f'<circle class="{look}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}">{hint}</circle>')

    def cloud(self, points: Points, look: str) -> None:
        """Many dots in one path, for small files; the style sheet gives their size."""
        if points:
            places = (self.at(*point) for point in points)
            path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
            self.marks.append(f'<path class="cloud {look}" d="{path}"/>')

    def line(self, points: Points, look: str, steps: bool = False) -> None:
        """A line through points; with `steps` it keeps its height up to the next one."""
        if not points:
            return
        path, above = [], 0.0
        for index, (x, y) in enumerate(self.at(*point) for point in points):
            path.append(f"{'L' if index else 'M'}{x:.1f} {above if steps and index else y:.1f}")
            if steps and index:
                path.append(f"V{y:.1f}")
            above = y
        self.marks.append(f'<path class="line {look}" d="{"".join(path)}"/>')

    def level(self, y: float, text: str, look: str) -> None:
        """A horizontal line over the whole width, named at its right end."""
        self.line([(self.x.low, y), (self.x.high, y)], look)
        _, height = self.at(self.x.high, y)
        self.labels.append(Label(self.right + REACH, height - 9, text, look, (-1,)))

    def span(self, low: float, high: float, y: float, look: str) -> None:
        """A horizontal interval."""
        self.line([(low, y), (high, y)], look)

    def label(self, x: float, y: float, text: str, look: str, sides: Sequence[int] = (1, -1)) -> None:
        """Name a place, on the first of its `sides` (1 right, -1 left) that is free; earlier labels choose first."""
        across, down = self.at(x, y)
        self.labels.append(Label(across, down, text, look, tuple(sides)))
        self.taken.append((across - 4, down - 4, across + 4, down + 4))

    def avoid(self, first: tuple[float, float], second: tuple[float, float]) -> None:
        """Keep labels off a straight line."""
        (x0, y0), (x1, y1) = self.at(*first), self.at(*second)
        self.taken.append((min(x0, x1), min(y0, y1) - 1, max(x0, x1), max(y0, y1) + 1))

    def svg(self, title: str) -> str:
        """The chart as an `<svg>` element, read out as `title`."""
        parts = [*self._axes(), *self.marks, *self._placed_labels()]
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(title)}" '
            f'style="--width:{self.width}px">{"".join(parts)}</svg>'
        )

    def _axes(self) -> list[str]:
        parts = []
        bottom, right = self.bottom, self.right
        for tick in self.y.ticks(max(3, self.height // 48)):
            _, y = self.at(self.x.low, tick)
            parts.append(f'<path class="grid" d="M{self.left:.1f} {y:.1f}H{right:.1f}"/>')
            parts.append(_text(self.left - 7, y + 4, self.y.text(tick), "tick", "end"))
        for tick in self.x.ticks(max(3, self.width // 75)):
            x, _ = self.at(tick, self.y.low)
            parts.append(f'<path class="axis" d="M{x:.1f} {bottom:.1f}v4"/>')
            parts.append(_text(x, bottom + 17, self._fitting(self.x.text(tick)), "tick", "middle"))
        parts.append(f'<path class="axis" d="M{self.left:.1f} {bottom:.1f}H{right:.1f}"/>')
        parts.append(_text(8, 14, self.y.title, "title", "start"))
        parts.append(_text((self.left + right) / 2, self.height - 8, self.x.title, "title", "middle"))
        return parts

    def _fitting(self, text: str) -> str:
        """A category's name, cut where its neighbours would touch it."""
        if not self.x.names:
            return text
        room = int((self.right - self.left) / len(self.x.names) / CHAR)
        return text if len(text) <= room else text[: max(1, room - 1)] + "…"

    def _placed_labels(self) -> list[str]:
        """Put each label at the first place beside its mark that is inside and free."""
        taken, parts = list(self.taken), []
        for label in self.labels:
            places = [(label.y + shift, side) for shift in SHIFTS for side in label.sides]
            boxes = [label.box(*place) for place in places]
            free = next((i for i, box in enumerate(boxes) if self._is_free(box, taken)), 0)
            y, side = places[free]
            taken.append(boxes[free])
            anchor = "start" if side > 0 else "end"
            parts.append(_text(label.x + side * REACH, y + 4, label.text, f"label {label.look}", anchor))
        return parts

    def _is_free(self, box: Box, taken: Sequence[Box]) -> bool:
        left, top, right, bottom = box
        if left < self.left or right > self.width or top < self.top - LINE or bottom > self.bottom:
            return False
        return not any(left < r and right > le and top < b and bottom > t for le, t, r, b in taken)


def _text(x: float, y: float, text: str, look: str, anchor: str) -> str:
    return f'<text class="{look}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
