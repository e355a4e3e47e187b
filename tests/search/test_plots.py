"""Drawing: ticks are round and inside, places follow values, labels keep off each other, everything is escaped."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hksd_search.report.plots import LINE, Chart, Scale, categories, shortened, spanning
from hksd_search.space.ranges import evenly

values = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=20)
positive = st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=20)


@given(values=values, count=st.integers(3, 10))
def test_ticks_are_round_rise_and_lie_inside(values: list[float], count: int) -> None:
    scale = spanning(values)
    ticks = scale.ticks(count)
    assert 2 <= len(ticks) <= 2 * count
    assert all(scale.low - 1e-6 <= tick <= scale.high + 1e-6 for tick in ticks)
    steps = {round(math.log10(b - a), 6) % 1 for a, b in itertools.pairwise(ticks)}
    assert all(any(abs(step - math.log10(digit)) < 0.01 for digit in (1, 2, 5, 10)) for step in steps)


@given(values=positive, count=st.integers(3, 10))
def test_ticks_of_a_log_scale_lie_inside_and_are_few(values: list[float], count: int) -> None:
    scale = spanning(values, log=True)
    ticks = scale.ticks(count)
    assert 1 <= len(ticks) <= 2 * count
    assert sorted(ticks) == ticks
    assert all(scale.low <= tick * 1.001 and tick <= scale.high * 1.001 for tick in ticks)


def test_ticks_of_decades_are_decades() -> None:
    assert spanning([0.001, 10], log=True).ticks(5) == pytest.approx([0.001, 0.01, 0.1, 1, 10])
    assert spanning([1e-9, 1e9], log=True).ticks(5) == pytest.approx([1e-9, 1e-5, 1e-1, 1e3, 1e7])


@given(values=positive, log=st.booleans())
def test_places_rise_with_the_values_and_lie_between_the_ends(values: list[float], log: bool) -> None:
    scale = spanning(values, log=log)
    places = [scale.place(value) for value in sorted(values)]
    assert places == sorted(places)
    assert 0 < places[0] <= places[-1] < 1
    assert (scale.place(scale.low / 2 if log else scale.low - 1), scale.place(scale.high * 2)) == (0, 1)


@given(shares=st.lists(st.floats(0, 1), min_size=1))
def test_a_scale_of_shares_stays_within_nothing_and_all(shares: list[float]) -> None:
    scale = spanning(shares, percent=True)
    assert 0 <= scale.low < scale.high <= 1
    assert all(0 <= scale.place(share) <= 1 for share in shares)


def test_numbers_are_written_in_the_unit_of_the_largest() -> None:
    written = [shortened(value) for value in (0.05, 88, 5000, 12_000, 1_500_000, 2e9, 0)]
    assert written == ["0.05", "88", "5000", "12k", "1.5M", "2G", "0"]
    assert shortened(5000, 100_000) == "5k"
    assert Scale(0.9, 1.0, percent=True).text(0.95) == "95"
    assert categories(["on", "off"]).text(1) == "off"


def test_evenly_keeps_the_ends_and_takes_all_of_few() -> None:
    assert evenly(range(5), 9) == [0, 1, 2, 3, 4]
    assert evenly(range(101), 5) == [0, 25, 50, 75, 100]


def test_a_place_of_the_data_comes_out_where_its_axis_says() -> None:
    chart = Chart(Scale(0, 10), Scale(0, 1), width=300, height=200, left=50, right=50)
    (left, bottom), (right, top) = chart.at(0, 0), chart.at(10, 1)
    assert (left, right) == (50, 250)
    assert bottom > top
    assert chart.at(5, 0.5) == ((left + right) / 2, (top + bottom) / 2)


def test_a_line_of_steps_keeps_its_height_up_to_the_next_point() -> None:
    chart = Chart(Scale(0, 2), Scale(0, 1), width=116, height=100, left=0, right=16)
    chart.line([(0, 0), (1, 1), (2, 0)], "front", steps=True)
    low, high = f"{chart.at(0, 0)[1]:.1f}", f"{chart.at(0, 1)[1]:.1f}"
    assert f'd="M0.0 {low}L50.0 {low}V{high}L100.0 {high}V{low}"' in chart.marks[0]


@given(heights=st.lists(st.floats(0.2, 0.8), min_size=2, max_size=6))
def test_labels_of_places_that_touch_do_not_cover_each_other(heights: list[float]) -> None:
    chart = Chart(Scale(0, 1), Scale(0, 1))
    for height in heights:
        chart.label(0.5, height, "a name", "best")
    found = re.findall(r'class="label best" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)"', chart.svg("x"))
    assert len(found) == len(heights)
    for i, (_, y, anchor) in enumerate(found):
        for _, other, side in found[:i]:
            assert side != anchor or abs(float(y) - float(other)) >= LINE - 0.11


def test_a_chart_is_one_element_whose_texts_are_escaped() -> None:
    evil = '<script>"&'
    chart = Chart(categories([evil, "b"], title=evil), Scale(0, 1, title=evil))
    chart.dots([(0, 0.5)], "best", hints=[evil])
    chart.label(0, 0.5, evil, "best")
    chart.level(0.2, evil, "teacher")
    chart.cloud([(1, 0.1)], "complete")
    svg = ET.fromstring(chart.svg(evil))
    assert svg.get("aria-label") == evil
    assert {element.tag for element in svg.iter()} == {"svg", "path", "text", "circle", "title"}
    assert [element.text for element in svg.iter()].count(evil) >= 5
