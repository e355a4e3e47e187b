"""The figures of a report: which points are drawn, and the finding that stands above them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hksd_search.console import percent
from hksd_search.report.findings import label
from hksd_search.report.knobs import Drawn
from hksd_search.report.plots import CHAR, Chart, Scale, categories, spanning
from hksd_search.space.ranges import evenly
from hksd_search.study.reading import TRAINED, SearchFolder, front
from hksd_search.study.records import Record

MOST_DOTS, MOST_CURVES, MOST_STRIPS, STRIP_DOTS = 1000, 150, 24, 300  # what is drawn at most
ACCURACY = "validation accuracy, %"
LABELS = 150.0  # pixels for the names at the right of a chart
LONGEST_NAME = 26  # letters of a name at the left of a chart


@dataclass(frozen=True)
class Figure:
    """A chart with what it shows.

    Attributes:
        title: the finding.
        chart: the drawing.
        caption: how to read it, and what is left out.
    """

    title: str
    chart: Chart
    caption: str


def accuracy_against_size(search: SearchFolder) -> Figure | None:
    """All trials by parameters and accuracy, with front, winner, arms and teacher; None where no trial is complete."""
    known = [r for r in search.records if r.params and r.val_accuracy is not None]
    complete, pruned = ([r for r in known if r.status == status] for status in ("complete", "pruned"))
    best, teacher = search.best, search.facts.get("teacher")
    if best is None or not complete:
        return None
    ahead = sorted(front(complete, ["params"]), key=lambda r: r.params or 0)
    arms = [arm for name in search.arm_names() if (arm := search.arm(name)) in complete and arm is not None]
    special = {r.number for r in (best, *ahead, *arms)}
    faint = evenly(pruned, MOST_DOTS // 4)
    others = evenly([r for r in complete if r.number not in special], MOST_DOTS - len(faint))
    x = spanning([float(r.params or 1) for r in known], log=True, title="parameters of the student (log scale)")
    y = window([_accuracy(r) for r in complete], [teacher["accuracy"]] if teacher else [])
    chart = Chart(x, y)
    chart.cloud([_place(r) for r in faint], "pruned")
    chart.line([_place(r) for r in ahead], "front", steps=True)
    _dots(chart, others, "complete")
    _dots(chart, [r for r in ahead if r not in (best, *arms)], "onfront")
    _dots(chart, [arm for arm in arms if arm != best], "arm", 4.5)
    _dots(chart, [best], "best", 5.5)
    chart.label(*_place(best), f"trial {best.number}" + (f" ({best.arm})" if best.arm else ", the best"), "best")
    for arm in arms:
        if arm != best:
            chart.label(*_place(arm), arm.arm or "", "arm")
    if teacher:
        chart.level(teacher["accuracy"], f"teacher, {teacher['params']:,} parameters", "teacher")
    notes = ["the line is the front: what no smaller student reaches"]
    notes += [f"faint: {len(pruned)} trials that were stopped early, at their last accuracy"] if pruned else []
    notes += _left_out(len(others) + len(faint), len(complete) + len(pruned) - len(special))
    notes += _below(y, [_accuracy(r) for r in (*others, *faint, *ahead, *arms)])
    return Figure(_size_title(best, teacher), chart, _caption(notes))


def progress(search: SearchFolder) -> Figure | None:
    """The best accuracy so far over the trials; None for fewer than two complete trials."""
    trained = [r for r in search.records if r.status in TRAINED]
    places = {r.number: float(place) for place, r in enumerate(trained, 1)}
    complete = [r for r in trained if r.status == "complete" and r.val_accuracy is not None]
    if len(complete) < 2:
        return None
    steps: list[tuple[float, float]] = []
    for r in complete:
        if not steps or _accuracy(r) > steps[-1][1]:
            steps.append((places[r.number], _accuracy(r)))
    last, count = steps[-1], len(trained)
    y = window([_accuracy(r) for r in complete], [])
    chart = Chart(Scale(0.0, count + 1.0, title="trials trained, in the order of their numbers"), y, height=300)
    shown = evenly(complete, MOST_DOTS)
    chart.cloud([(places[r.number], _accuracy(r)) for r in shown], "complete")
    chart.line([*steps, (float(count), last[1])], "best", steps=True)
    leader = max(complete, key=lambda r: (_accuracy(r), -r.number))
    chart.dots([last], "best", 4.5)
    chart.label(*last, f"trial {leader.number}, {percent(last[1])}", "best", sides=(-1, 1))
    chart.avoid(last, (float(count), last[1]))
    after = count - int(last[0])
    title = (
        f"The highest accuracy, {percent(last[1])}, came with trial {leader.number}, number {int(last[0]):,} of the "
    )
    title += f"{count:,} trained" + (f"; the {after:,} after it did not raise it" if after > 1 else "")
    notes = ["each dot is a trial that ran to its end; the line is the highest accuracy so far"]
    notes += _left_out(len(shown), len(complete)) + _below(y, [_accuracy(r) for r in shown])
    return Figure(title, chart, _caption(notes))


def learning_curves(search: SearchFolder) -> Figure | None:
    """Accuracy after each epoch; None where no trial reported two epochs."""
    curved = [r for r in search.records if len(r.accuracies) > 1]
    if not curved:
        return None
    best = search.best
    arms = [arm for name in search.arm_names() if (arm := search.arm(name)) is not None and len(arm.accuracies) > 1]
    special = [r for r in (best, *arms) if r is not None]
    rest = [r for r in curved if r not in special]
    complete = evenly([r for r in rest if r.status == "complete"], MOST_CURVES // 2)
    others = evenly([r for r in rest if r.status != "complete"], MOST_CURVES - len(complete))
    drawn = [*others, *complete, *sorted(special, key=_accuracy, reverse=True)]  # names go from the top down
    epochs = max(epoch for r in drawn for epoch in r.accuracies)
    late = [value for r in drawn for epoch, value in r.accuracies.items() if epoch >= epochs / 3]
    y = window(late or [value for r in drawn for value in r.accuracies.values()], [])
    chart = Chart(Scale(1.0, float(epochs), title="epoch"), y, right=LABELS)
    for r in drawn:
        points = visible([(float(epoch), value) for epoch, value in sorted(r.accuracies.items())], y.low)
        look = "best" if r == best else "arm" if r in arms else "complete" if r.status == "complete" else "pruned"
        chart.line(points, look)
        if r.status != "complete":
            chart.cloud(points[-1:], "stopped")
        if r in special and points:
            name = f"trial {r.number}" if r == best and not r.arm else r.arm or ""
            chart.label(*points[-1], name, look, sides=(1,))
    stopped = [r for r in search.records if r.status == "pruned"]
    title = "How the trials learned"
    if stopped:
        first, last = min(r.epoch for r in stopped), max(r.epoch for r in stopped)
        when = f"after epoch {first}" if first == last else f"after epoch {first} to {last}"
        title = (
            f"{len(stopped)} of {sum(r.status in TRAINED for r in search.records)} trials were stopped early, {when}"
        )
    notes = ["one line a trial; a dot ends the line of a trial that did not run to its end; first epochs may lie lower"]
    return Figure(title, chart, _caption(notes + _left_out(len(drawn), len(curved))))


def strips(found: Sequence[Drawn], search: SearchFolder) -> list[Figure]:
    """Accuracy against the value of each knob, for the trials that ran to their end."""
    accuracies = {r.number: _accuracy(r) for r in search.records if r.status == "complete"}
    drawn = [knob for knob in found if knob.values][:MOST_STRIPS]
    if not drawn:
        return []
    total = len({number for knob in found for number in knob.values})
    y = window([accuracies[number] for knob in drawn for number in knob.values], [])
    best = search.best.number if search.best else None
    return [_strip(knob, accuracies, y, best, total) for knob in drawn]


def _strip(knob: Drawn, accuracies: Mapping[int, float], y: Scale, best: int | None, total: int) -> Figure:
    numbers = evenly(sorted(knob.values), STRIP_DOTS)
    if knob.choices:
        names = [str(choice) for choice in knob.choices]
        x = categories(names)
        spot = {n: names.index(str(knob.values[n])) + _jitter(n) for n in knob.values}
    else:
        spot = {n: float(value) for n, value in knob.values.items()}
        x = spanning(list(spot.values()), log=knob.log and min(spot.values()) > 0)
    chart = Chart(x, y, width=320, height=200)
    chart.cloud([(spot[n], accuracies[n]) for n in numbers], "complete")
    if best is not None and best in knob.values:
        chart.dots([(spot[best], accuracies[best])], "best", 4.5)
    share = "" if knob.importance is None else f"explains {knob.importance:.0%} of the variance"
    some = f"in {len(knob.values)} of {total} trials" if len(knob.values) < total else ""
    return Figure(knob.name, chart, ", ".join(text for text in (share, some) if text))


def confirmed_accuracies(facts: Mapping[str, Any]) -> Figure | None:
    """Test accuracy of every network of a confirmation with its 95 % interval (fields of confirm.json)."""
    networks = [one for one in (*facts["students"], *facts["arms"]) if one["test_accuracy"]]
    if not networks:
        return None
    names = [one["name"] for one in networks] + ["teacher"]
    found = [one["test_accuracy"] for one in networks] + [{"mean": facts["teacher"]["test_accuracy"], "low": None}]
    looks = ["arm" if one["arm"] else "best" for one in networks] + ["teacher"]
    title = f"Test accuracy over {len(facts['seeds'])} seeds, with 95 % intervals"
    caption = "an interval says how the mean varies with the seed; the teacher is one network, so it has none"
    return Figure(title, _intervals(names, found, looks, "test accuracy, %", percent_=True), _caption([caption]))


def confirmed_gains(facts: Mapping[str, Any]) -> Figure | None:
    """Differences of the confirmed students to every arm in points, with their 95 % intervals."""
    rows = [
        (f"{one['name']} − {arm}", found)
        for one in facts["students"]
        for arm, found in one["against"].items()
        if found is not None
    ]
    if not rows:
        return None
    chart = _intervals(
        [name for name, _ in rows], [found for _, found in rows], ["best"] * len(rows), "difference on test, points"
    )
    if chart.x.low < 0 < chart.x.high:
        chart.line([(0.0, chart.y.low), (0.0, chart.y.high)], "zero")
    caption = "right of 0: better than the arm; an interval that holds 0 leaves open which of the two is better"
    return Figure("What the students gained over the arms, seed by seed", chart, _caption([caption]))


def _intervals(
    names: Sequence[str],
    found: Sequence[Mapping[str, Any]],
    looks: Sequence[str],
    title: str,
    percent_: bool = False,
) -> Chart:
    names = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in names]
    ends = [one[key] for one in found for key in ("mean", "low", "high") if one.get(key) is not None]
    ends += [] if percent_ else [0.0]
    x = spanning(ends, title=title, percent=percent_)
    chart = Chart(x, categories(names[::-1]), height=60 + 30 * len(names), left=CHAR * max(map(len, names)) + 18)
    for row, (one, look) in enumerate(zip(found, looks, strict=True)):
        y = float(len(names) - 1 - row)
        if one.get("low") is not None:
            chart.span(one["low"], one["high"], y, look)
        value = f"{100 * one['mean']:.2f}" if percent_ else f"{one['mean']:+.2f}"
        chart.dots([(one["mean"], y)], look, 4.5, [value])
    return chart


def window(values: Sequence[float], others: Sequence[float]) -> Scale:
    """A scale of accuracy for `values` and `others` on which a few very low values do not squeeze the rest.

    Below the lower quartile there is room for three times the distance between the quartiles.

    Args:
        values: accuracies (0 to 1), at least one; the lowest may fall below the scale.
        others: accuracies that always lie inside.
    """
    low = min(values)
    if len(values) >= 4:
        first, _, third = statistics.quantiles(values, n=4)
        if third > first:
            low = max(low, first - 3 * (third - first))
    return spanning([low, max(values), *others], title=ACCURACY, percent=True)


def visible(points: Sequence[tuple[float, float]], low: float) -> list[tuple[float, float]]:
    """The part of a rising line after it first comes above `low`, from where it crosses that height."""
    first = next((index for index, (_, y) in enumerate(points) if y >= low), len(points))
    if first in (0, len(points)):
        return list(points[first:])
    (x0, y0), (x1, y1) = points[first - 1], points[first]
    return [(x0 + (x1 - x0) * (low - y0) / (y1 - y0), low), *points[first:]]


def _size_title(best: Record, teacher: Mapping[str, Any] | None) -> str:
    if not teacher or not best.params or teacher["params"] <= best.params:
        return f"The best student reaches {percent(best.val_accuracy)} with {best.params or 0:,} parameters"
    lost = 100 * (teacher["accuracy"] - _accuracy(best))
    away = f"{abs(lost):.2f} points {'below' if lost >= 0 else 'above'} the teacher"
    return f"The best student lies {away}, with {teacher['params'] / best.params:.1f} times fewer parameters"


def _accuracy(record: Record) -> float:
    return record.val_accuracy or 0.0


def _place(record: Record) -> tuple[float, float]:
    return float(record.params or 0), _accuracy(record)


def _dots(chart: Chart, records: Sequence[Record], look: str, radius: float = 3.5) -> None:
    hints = [f"{label(r)}: {percent(r.val_accuracy)}, {r.params:,} parameters" for r in records]
    chart.dots([_place(r) for r in records], look, radius, hints)


def _jitter(number: int) -> float:
    """A place beside a category's middle, the same at every drawing: golden steps keep neighbours apart."""
    return (number * 0.6180339887498949 % 1 - 0.5) * 0.5


def _left_out(drawn: int, total: int) -> list[str]:
    return [f"{drawn:,} of {total:,} are drawn, at even distances"] if drawn < total else []


def _below(scale: Scale, values: Sequence[float]) -> list[str]:
    count = sum(value < scale.low for value in values)
    return [f"{count} {'lies' if count == 1 else 'lie'} below the axis and are drawn on it"] if count else []


def _caption(notes: Sequence[str]) -> str:
    text = "; ".join(notes)
    return f"{text[:1].upper()}{text[1:]}."
