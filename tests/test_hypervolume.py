"""The replay of searches: its measure, its clock, and the table that it reads."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def replay() -> Iterator[Any]:
    """`benchmarks/hypervolume.py` as a module."""
    sys.path.append(str(BENCHMARKS))
    yield importlib.import_module("hypervolume")
    sys.path.remove(str(BENCHMARKS))


def test_the_hypervolume_is_the_area_under_the_staircase(replay: Any) -> None:
    def curve(accuracy: float, params: float) -> Any:
        return replay.Curve((0.0, accuracy), {"params": params})

    assert replay.hypervolume([], 1000) == 0
    assert replay.hypervolume([curve(0.6, 100)], 1000) == pytest.approx(0.5)
    stairs = [curve(0.6, 100), curve(0.8, 10 ** (2.5))]
    assert replay.hypervolume(stairs, 1000) == pytest.approx(0.5 * 0.5 + 0.7 * 0.5)
    dominated = [*stairs, curve(0.6, 200), curve(0.1, 100)]
    assert replay.hypervolume(dominated, 1000) == pytest.approx(replay.hypervolume(stairs, 1000))


@pytest.mark.parametrize("time", ["flops", "epochs"])
def test_a_search_spends_its_device_time_and_returns_trials_of_full_length(replay: Any, time: str) -> None:
    space, table = replay.read(BENCHMARKS / "results" / "curves.csv")
    assert len(table) == math.prod(len(spread.values) for spread in space.ranges.values())
    shape = {"in_channels": 1, "classes": 10, "image_size": 8}
    options = argparse.Namespace(shape=shape, scratch=None, workers=2, time=time)
    for name in ("random", "tpe, asha"):
        way = replay.TWO[name]
        budget = 90.0 if time == "epochs" else 36.0
        done = replay.search(table, replay.settled(space, way, ["params"], 0), way, budget, options)
        assert done
        assert all(len(curve.accuracies) == 9 for curve in done)
        cost = sum(9 * (curve.costs["mflops"] if time == "flops" else 1) for curve in done)
        slack = 2 * max(curve.costs["mflops"] for curve in table.values()) if time == "flops" else 2
        assert cost <= budget + slack
