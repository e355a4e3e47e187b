"""Searches on a cluster whose head trains nothing and whose workers come when there is work: as after `ray up`."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from books import Facts
from conftest import Program
from growing import Growing

from hksd_search.study.records import open_storage


@pytest.fixture(scope="module")
def short() -> Iterator[Path]:
    """A folder with a short path."""
    with tempfile.TemporaryDirectory(prefix="hk-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def cluster(short: Path) -> Iterator[Growing]:
    """A cluster with no worker; two can come, each with a core and what Ray takes for a GPU."""
    (short / "g").mkdir()
    growing = Growing(short / "g", {"gpu_worker": {"CPU": 1, "GPU": 1}}, most=2)
    yield growing
    growing.end()


@pytest.fixture(scope="module")
def place(short: Path, write_space: Callable[..., Path]) -> Path:
    """A folder with a space whose trials take a while."""
    folder = short / "p"
    folder.mkdir()
    write_space(
        folder / "space.yaml", train={"epochs": 8}, search={"trials": 4, "concurrent": None, "scheduler": "none"}
    )
    return folder


def said(program: Program) -> str:
    return " ".join((program.out + program.err).split())


def test_a_search_alone_brings_the_workers_and_all_of_it_is_done_by_them(
    start: Callable[..., Program], cluster: Growing, place: Path, facts: Callable[[Path, str], Facts]
) -> None:
    words = [
        "search",
        "space.yaml",
        "--name",
        "first",
        "--address",
        cluster.address,
        "--set",
        "search.resources.gpu=auto",
    ]
    done = start(*words, cwd=place, **cluster.environment)
    code, text = done.wait(300), said(done)
    assert code == 0, text
    assert text.count("has joined: 1 CPU(s), 1 GPU(s)") >= 2, text  # as many as the cluster may have
    assert "4 complete" in text
    facts(place / "runs", "first").must_agree()
    assert not list((place / "runs").glob(".hksd-shared-*"))


def test_the_share_of_a_gpu_is_found_out_on_the_first_node_that_comes_with_one(
    start: Callable[..., Program], cluster: Growing, place: Path
) -> None:
    """The runs may use a GPU; there is none on the head, and Ray's GPUs are none for torch: the dry run fails there."""
    words = ["search", "space.yaml", "--name", "share", "--address", cluster.address, "--trials", "1"]
    done = start(*words, "--set", "train.device=auto", cwd=place, **cluster.environment)
    code, text = done.wait(300), said(done)
    assert code == 0, text
    assert "1 trial per GPU, since a dry run was not possible: the dry run on a GPU failed: " in text
    assert "the worker process died" not in text.split("dry run on a GPU failed")[1][:80]


def test_a_node_that_goes_away_is_told_by_name_is_no_strike_and_its_trials_go_on(
    start: Callable[..., Program], cluster: Growing, place: Path, facts: Callable[[Path, str], Facts]
) -> None:
    words = ["search", "space.yaml", "--name", "lost", "--address", cluster.address, "--trials", "2"]
    search = start(*words, "--set", "train.epochs=60", cwd=place, **cluster.environment)
    trials = place / "runs" / "lost" / "trials"
    search.wait_until(lambda: len(list(trials.glob("*/last.ckpt"))) == 2, 240)
    os.kill(cluster.raylets()[-1], signal.SIGKILL)  # a machine that loses its power is gone the same way
    code, text = search.wait(300), said(search)
    assert code == 0, text
    assert f"node {socket.gethostname()} (127.0.0.1) is gone; it is tried again from its last checkpoint" in text
    found = facts(place / "runs", "lost")
    found.must_agree()
    for trial in open_storage(place / "runs" / "lost").get_all_trials(0):
        assert not trial.user_attrs.get("strikes")
        assert trial.user_attrs["nodes"] == [socket.gethostname()]


def test_what_no_kind_of_node_has_is_refused_at_once_with_the_kinds(
    hksd: Callable[..., Program], cluster: Growing, place: Path
) -> None:
    begun = time.monotonic()
    words = ["search", "space.yaml", "--name", "large", "--address", cluster.address, "--set", "search.resources.cpu=3"]
    done = hksd(*words, cwd=place, **cluster.environment)
    assert done.process.returncode == 2
    assert (
        "a trial wants 3 CPU(s) and 0 GPU(s), and the cluster starts no node that has them: "
        "2 gpu_worker with 1 CPU(s) and 1 GPU(s)" in said(done)
    )
    assert time.monotonic() - begun < 60


def test_a_search_that_waits_for_a_node_is_interrupted_at_once_and_has_a_limit(
    start: Callable[..., Program], hksd: Callable[..., Program], short: Path, place: Path
) -> None:
    (short / "s").mkdir()
    slow = Growing(short / "s", {"worker": {"CPU": 1}}, most=1, look_every=600)
    try:
        words = ["--address", slow.address, "--trials", "1"]
        waits = start("search", "space.yaml", "--name", "later", *words, cwd=place, **slow.environment)
        time.sleep(1)
        waits.wait_until(lambda: (place / "runs" / "later").exists())
        time.sleep(5)
        begun = time.monotonic()
        waits.press_ctrl_c()
        assert waits.wait() == 130
        assert time.monotonic() - begun < 15
        assert "waiting for a node, 30 min at most: search.resources: a trial wants 1 CPU(s) and 0 GPU(s)" in said(
            waits
        )
        assert f"--address {slow.address} --resume" in said(waits)

        limit = ["--set", "search.node_timeout=4"]
        none = hksd("search", "later", *words, "--resume", *limit, cwd=place, **slow.environment)
        assert none.process.returncode == 1
        assert "within 4 s the autoscaler brought no node that has them (it may start 1 worker with 1 CPU(s)" in said(
            none
        )
        assert "Likely causes: the account's quota" in said(none)
    finally:
        slow.end()


def test_where_nobody_brings_nodes_the_wait_is_short_and_says_what_there_is(
    hksd: Callable[..., Program], short: Path, place: Path
) -> None:
    (short / "f").mkdir()
    fixed = Growing(short / "f", None)
    try:
        words = ["search", "space.yaml", "--name", "none", "--address", fixed.address, "--set", "search.node_timeout=4"]
        done = hksd(*words, cwd=place, **fixed.environment)
        assert done.process.returncode == 2
        assert "within 4 s no node came that has them; there are" in said(done)
        assert "with 0 CPU(s) and 0 GPU(s). Start one with `ray start --address=HEAD:6379`" in said(done)
    finally:
        fixed.end()
