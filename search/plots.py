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

LEFT, RIGHT, TOP, BOTTOM = 52.0, 16.0, 30.0, 44.0  # margins in pixels
CHAR, LINE = 6.6, 15.0  # mean width of a letter and height of a line of labels, in pixels
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
        return shortened(100 * value if self.percent else value)


def spanning(values: Sequence[float], *, log: bool = False, title: str = "", percent: bool = False) -> Scale:
    """A scale for `values` with some room at both ends; a single value lies in the middle.

    Args:
        values: at least one, all > 0 where `log`.
        log: see `Scale`.
        title: see `Scale`.
        percent: see `Scale`; such a scale stays within 0 and 1.
    """
    low, high = min(values), max(values)
    if log:
        room = (high / low) ** SHARE_OF_MARGIN if high > low else 2.0
        return Scale(low / room, high * room, True, title, percent)
    room = SHARE_OF_MARGIN * (high - low) if high > low else max(abs(high) * 0.1, 0.01)
    low, high = low - room, high + room
    return Scale(max(low, 0.0), min(high, 1.0), title=title, percent=True) if percent else Scale(low, high, title=title)


def categories(names: Sequence[str], title: str = "") -> Scale:
    """A scale of categories: the i-th name stands at i."""
    return Scale(-0.5, len(names) - 0.5, title=title, names=tuple(names))


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, at even distances, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(index * (len(items) - 1) / (count - 1))] for index in range(count)]


def shortened(value: float) -> str:
    """A number in few letters: ``0.03``, ``44k``, ``1.5M``."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * factor or (abs(value) >= factor and factor > 1e3):
            return f"{value / factor:.4g}{unit}"
    return f"{value:.4g}"


def _decades(low: float, high: float, digits: Sequence[int]) -> list[float]:
    """Digit times a power of ten, for all that lie inside."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [digit * 10.0**power for power in powers for digit in digits]
    return [value for value in values if low <= value <= high]


def _round_steps(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough * 0.999)
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


class Chart:
    """A chart with two axes.

    Args:
        x: horizontal scale.
        y: vertical scale.
        width: pixels.
        height: pixels.
        left: left margin in pixels, wider where categories have long names.
    """

    def __init__(self, x: Scale, y: Scale, width: int = 680, height: int = 380, left: float = LEFT):
        self.x, self.y, self.width, self.height, self.left = x, y, width, height, left
        self.marks: list[str] = []
        self.labels: list[tuple[float, float, str, str]] = []
        self.taken: list[Box] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a place."""
        across, up = self.width - self.left - RIGHT, self.height - TOP - BOTTOM
        return self.left + across * self.x.place(x), self.height - BOTTOM - up * self.y.place(y)

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
        self.labels.append((self.width - RIGHT - 8, height - 9, text, look))

    def span(self, low: float, high: float, y: float, look: str) -> None:
        """A horizontal interval."""
        self.line([(low, y), (high, y)], look)

    def label(self, x: float, y: float, text: str, look: str, radius: float = 5.0) -> None:
        """Name a place; labels that are added first get the better place."""
        across, down = self.at(x, y)
        self.labels.append((across, down, text, look))
        self.taken.append((across - radius, down - radius, across + radius, down + radius))

    def svg(self, title: str) -> str:
        """The chart as an `<svg>` element, read out as `title`."""
        parts = [*self._axes(), *self.marks, *self._placed_labels()]
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(title)}" '
            f'style="--width:{self.width}px">{"".join(parts)}</svg>'
        )

    def _axes(self) -> list[str]:
        parts = []
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        for tick in self.y.ticks(max(3, self.height // 60)):
            _, y = self.at(self.x.low, tick)
            parts.append(f'<path class="grid" d="M{self.left:.1f} {y:.1f}H{right:.1f}"/>')
            parts.append(_text(self.left - 7, y + 4, self.y.text(tick), "tick", "end"))
        for tick in self.x.ticks(max(3, self.width // 90)):
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
        room = int((self.width - self.left - RIGHT) / len(self.x.names) / CHAR)
        return text if len(text) <= room else text[: max(1, room - 1)] + "…"

    def _placed_labels(self) -> list[str]:
        """Put each label at the first place around its mark that is inside and free."""
        taken, parts = list(self.taken), []
        for x, y, text, look in self.labels:
            width = CHAR * len(text)
            places = [
                (start, y + shift)
                for shift in (0.0, -LINE, LINE, -2 * LINE, 2 * LINE, -3 * LINE, 3 * LINE)
                for start in (x + 8, x - 8 - width)
            ]
            free = [place for place in places if self._is_free(_box(place, width), taken)]
            inside = [min(max(places[0][0], 2.0), self.width - width - 2.0), places[0][1]]
            start, middle = free[0] if free else (inside[0], inside[1])
            taken.append(_box((start, middle), width))
            parts.append(_text(start, middle + 4, text, f"label {look}", "start"))
        return parts

    def _is_free(self, box: Box, taken: Sequence[Box]) -> bool:
        left, top, right, bottom = box
        if left < self.left or right > self.width - 2 or top < TOP - LINE or bottom > self.height - BOTTOM:
            return False
        return not any(left < r and right > le and top < b and bottom > t for le, t, r, b in taken)


def _box(place: tuple[float, float], width: float) -> Box:
    start, middle = place
    return start, middle - LINE / 2, start + width, middle + LINE / 2


def _text(x: float, y: float, text: str, look: str, anchor: str) -> str:
    return f'<text class="{look}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
