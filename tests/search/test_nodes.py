"""Nodes of a cluster: how many trials fit, how far it may grow, what is said of them."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hksd_search.backend import growth, nodes
from hksd_search.backend.growth import Growth, NodeType
from hksd_search.backend.nodes import Node, room

HEAD = Node("0", "h1", "10.0.0.1", 1, cpu=0, gpu=0, head=True)
SPOT = {"resources": {"CPU": 4, "GPU": 1, "memory": 1}, "max_workers": 4, "min_workers": 0}
TREE: dict[str, Any] = {
    "head_node_type": "head",
    "max_workers": 4,
    "provider": {"type": "aws"},
    "available_node_types": {
        "head": {"resources": {"CPU": 0, "GPU": 0}, "max_workers": 0},
        "gpu_spot": SPOT,
        "gpu_on_demand": {**SPOT, "max_workers": 1},
    },
}


def worker(name: str, cpu: float = 4, gpu: float = 1) -> Node:
    return Node(name, name, name, 1, cpu, gpu)


@given(st.integers(0, 64), st.integers(0, 8), st.integers(1, 8), st.sampled_from([0.0, 0.25, 0.3333, 0.5, 1.0, 2.0]))
def test_a_trial_is_given_room_only_where_its_cores_and_its_gpu_are_on_one_node(
    cpus: int, gpus: int, cpu: int, gpu: float
) -> None:
    fit = room(cpus, gpus, cpu, gpu)
    assert fit * cpu <= cpus
    if 0 < gpu < 1:  # no trial lies on two halves of different GPUs
        assert fit <= gpus * int(1 / gpu)
    else:
        assert fit * gpu <= gpus or gpu == 0
    assert room(cpus, gpus, cpu, gpu) <= room(cpus + 1, gpus + 1, cpu, gpu)


@pytest.mark.parametrize(("cpu", "gpu", "trials"), [(1, 1, 4), (1, 0.5, 8), (2, 0.25, 8), (4, 0, 4), (8, 1, 0)])
def test_a_cluster_has_as_many_places_as_its_nodes_may_have_at_most(cpu: int, gpu: float, trials: int) -> None:
    found = growth.of_tree(TREE)
    assert found.automatic
    assert found.most_trials([HEAD], cpu, gpu) == trials
    assert found.may_fit(cpu, gpu) == (trials > 0)


def test_the_number_of_all_nodes_bounds_the_places_of_each_kind() -> None:
    small = NodeType("small", 1, 0, most=10)
    large = NodeType("large", 8, 0, most=2)
    assert Growth(True, (small, large), most=3).most_trials([HEAD], 1, 0) == 2 * 8 + 1
    assert Growth(True, (small, large), most=1).most_trials([HEAD], 1, 0) == 8


def test_nodes_that_are_up_count_even_where_more_are_up_than_the_file_says() -> None:
    up = [HEAD, *(worker(f"w{n}") for n in range(6))]
    assert growth.of_tree(TREE).most_trials(up, 1, 1) == 6
    assert Growth().most_trials(up, 1, 1) == 6


@pytest.mark.parametrize(
    "change", [{"max_workers": None}, {"available_node_types": {"w": {"resources": {}, "max_workers": 2}}}]
)
def test_what_the_file_does_not_say_is_not_known_and_not_none(change: dict[str, Any]) -> None:
    found = growth.of_tree({**TREE, **change})
    assert found.most_trials([HEAD], 1, 1) is None
    assert found.may_fit(1, 1)


def test_on_premises_head_and_workers_are_of_one_kind() -> None:
    kind = {"resources": {}, "max_workers": 2, "min_workers": 2}
    tree = {"provider": {"type": "local"}, "head_node_type": "n", "max_workers": 2, "available_node_types": {"n": kind}}
    assert growth.of_tree(tree).types == (NodeType("n", None, None, 2),)


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", "provider: 3\navailable_node_types: 7", "available_node_types: {a: }"]
)
def test_a_file_that_cannot_be_read_leaves_it_open_how_far_the_cluster_grows(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    assert growth._read(file) == Growth(automatic=True)
    assert growth._read(tmp_path / "none") == Growth(automatic=True)


@pytest.mark.parametrize(
    ("command", "automatic"), [("ray start --head", False), ("ray start --head --no-monitor", True), (None, False)]
)
def test_a_cluster_of_kuberay_grows_where_it_has_an_autoscaler_of_its_own(
    monkeypatch: pytest.MonkeyPatch, command: str | None, automatic: bool
) -> None:
    monkeypatch.delenv(growth.KUBERAY, raising=False)
    if command:
        monkeypatch.setenv(growth.KUBERAY, command)
    assert growth._on_head("nowhere:1") == Growth(automatic)


def test_a_file_as_ray_writes_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(json.dumps(TREE))  # JSON is YAML
    assert [kind.name for kind in growth._read(file).types] == ["gpu_spot", "gpu_on_demand"]


def test_nodes_are_told_by_what_they_have() -> None:
    assert (
        nodes.told([HEAD, worker("a"), worker("b")])
        == "h1 with 0 CPU(s) and 0 GPU(s), 2 nodes with 4 CPU(s) and 1 GPU(s)"
    )
    assert nodes.told([]) == "no node"
    assert growth.told(growth.of_tree(TREE).types[:1]) == "4 gpu_spot with 4 CPU(s) and 1 GPU(s)"


def test_a_node_answers_while_its_raylet_listens() -> None:
    with socket.socket() as raylet:
        raylet.bind(("127.0.0.1", 0))
        raylet.listen()
        there = Node("1", "w", "127.0.0.1", raylet.getsockname()[1], 1, 0)
        assert nodes.answers(there)
    assert not nodes.answers(there)
