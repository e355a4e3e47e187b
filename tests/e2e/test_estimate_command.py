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


CLUSTER = """
max_workers: 3
provider: {type: aws, region: us-west-2}
head_node_type: head
available_node_types:
  head: {resources: {CPU: 0}, node_config: {InstanceType: m6i.xlarge}}
  worker:
    max_workers: 3
    resources: {CPU: 2}
    node_config: {InstanceType: c9.large, InstanceMarketOptions: {MarketType: spot}}
"""


def test_an_estimate_for_a_cluster_counts_its_nodes_their_hours_and_what_they_cost(
    tmp_path: Path, write_space: Make, inside: Make
) -> None:
    write_space(tmp_path / "space.yaml", search={"trials": 12, "concurrent": 5})
    (tmp_path / "c.yaml").write_text(CLUSTER)
    (tmp_path / "p.yaml").write_text("machines: {aws: {us-west-2: {c9.large: {on_demand: 1.0, spot: 0.25}}}}")
    words = ("estimate", "space.yaml", "--cluster", "c.yaml", "--prices", "p.yaml")
    code, out, err = inside(*words, "--json", cwd=tmp_path)
    assert code == 0, err
    found = json.loads(out)
    cluster = found["cluster"]
    assert found["at_once"] == 5
    head, worker = cluster["lines"]
    assert (head["count"], worker["count"], worker["kind"]["machine"]) == (1, 3, "c9.large")
    hours = worker["hours"]["likely"]
    assert head["hours"]["likely"] == pytest.approx(found["wall_hours"]["likely"])
    idle, rest = 3 * 5 / 60, found["wall_hours"]["likely"] - found["teacher_seconds"] / 3600
    assert hours == pytest.approx(found["wall_hours"]["likely"] + 2 * rest + idle)
    own = 0.192 * head["hours"]["likely"]
    assert cluster["total"]["on_demand"]["likely"] == pytest.approx(own + 1.0 * hours)
    assert cluster["total"]["asked"]["likely"] == pytest.approx(own + 0.25 * hours)
    assert cluster["assumed"][0] == "processor cores are as fast as those that were measured"
    (tmp_path / "p.yaml").write_text("machines: {aws: {us-west-2: {c9.large: {on_demand: 1.0}}}}")
    code, out, err = inside(*words, cwd=tmp_path)
    assert code == 0, err
    assert "3 x worker: c9.large, spot" in out
    assert "money, workers as spot: not known" in out
    assert "not known: spot price of c9.large in us-west-2" in out
    assert "money, all on demand: 0." in out


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
