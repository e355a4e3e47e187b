"""`hksd estimate` as people call it: on the small space, and with what it cannot take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Make = Callable[..., Any]


def test_an_estimate_says_time_memory_and_money_and_keeps_no_teacher(
    tmp_path: Path, write_space: Make, inside: Make
) -> None:
    write_space(tmp_path / "space.yaml", search={"trials": 12, "arms": "fixed"}, teacher={"min_accuracy": 0.99})
    words = ("--price", 2, "--cpus", 4, "--concurrent", 3, "--json")
    code, out, err = inside("estimate", "space.yaml", *words, cwd=tmp_path)
    assert code == 0, err
    found = json.loads(out)
    assert (found["name"], found["trials"], found["at_once"], found["gpu"]) == ("space", 12, 3, 0)
    assert found["missing"][0] == "teacher"
    for name in ("trial_seconds", "wall_hours", "device_hours", "cost"):
        assert 0 < found[name]["low"] < found[name]["likely"] < found[name]["high"]
    assert found["device_hours"]["likely"] * 3600 > found["teacher_seconds"] > 0
    assert found["cost"]["likely"] == pytest.approx(2 * found["device_hours"]["likely"])
    assert 1 < found["expected_epochs"] < found["epochs"] == 3
    assert found["peak_bytes"] > 100 * 2**20
    assert found["measured"] >= 12, "draws and arms"
    assert not (tmp_path / "runs" / "teachers").exists(), "the cache of teachers is left alone"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quickstart", "--price", "0"], "search.price"),
        (["quickstrt"], "did you mean 'quickstart'"),
        (["quickstart", "--set", "search.limits.params=5"], ": no student of this space is within"),
        (["quickstart", "--set", "search.resources.cpu=64"], ": a trial wants 64 CPU(s)"),
        (["cifar10", "--set", "data.root=nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_estimated_ends_with_a_message(
    words: list[str], said: str, tmp_path: Path, inside: Make
) -> None:
    code, _, err = inside("estimate", *words, cwd=tmp_path)
    assert code == 2
    assert said in err.replace("\n", " ")
    assert "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpus_are_not_forecast_without_one_to_measure_on(tmp_path: Path, inside: Make) -> None:
    code, _, err = inside("estimate", "quickstart", "--gpus", 2, cwd=tmp_path)
    assert code == 2
    assert "--gpus 2: there is no GPU here to measure on" in err
