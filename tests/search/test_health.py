"""What `hksd doctor` makes of what machines say of themselves; a real cluster is in tests/e2e/test_doctor.py."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hksd.errors import UserError
from hksd_search.backend import connect
from hksd_search.backend.growth import Growth, NodeType
from hksd_search.backend.nodes import Node
from hksd_search.commands.doctor import lines
from hksd_search.health import checks, cluster, machine, probe
from hksd_search.health.checks import Offset, Said
from hksd_search.health.finding import Finding, attempt

VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0+cpu", "hksd": "0.1.0"}
DRIVER: dict[str, Any] = {"versions": VERSIONS, "faults": {}, "source": "abc"}


def node(cpu: float = 0, gpu: float = 0) -> Node:
    return Node("a1", "h2", "10.0.0.2", 7000, cpu, gpu)


def said_of(**changes: Any) -> dict[str, Any]:
    return {"versions": VERSIONS | changes.pop("versions", {}), "faults": {}, "source": "abc", **changes}


def test_a_node_of_the_same_versions_is_well_also_with_a_torch_for_gpus() -> None:
    assert "torch 2.13.0+cu130" in checks.versions(said_of(versions={"torch": "2.13.0+cu130"}), DRIVER)


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("hksd", "9.9.9", "hksd 9.9.9 is there, 0.1.0 at the driver"),
        ("torch", "2.12.0+cpu", "torch 2.12.0+cpu is there, 2.13.0+cpu at the driver"),
        ("python", "3.11.8", "Python 3.11.8 is there, 3.11.7 at the driver"),
        ("python", "3.12.7", "Python 3.12.7 is there, 3.11.7 at the driver"),
        ("ray", "2.60.1", "Ray 2.60.1 is there, 2.60.0 at the driver"),
    ],
)
def test_another_version_is_a_fault_that_names_both_and_what_to_do(name: str, version: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as told:
        checks.versions(said_of(versions={name: version}), DRIVER)
    assert "install the same on every node" in str(told.value)


def test_all_versions_that_differ_are_told_at_once() -> None:
    with pytest.raises(UserError, match=r"hksd 9\.9\.9.*; torch 2\.0\.0.*; Ray 2\.59\.0"):
        checks.versions(said_of(versions={"hksd": "9.9.9", "torch": "2.0.0", "ray": "2.59.0"}), DRIVER)


def test_where_ray_compares_the_minor_version_of_python_only_so_does_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(checks.EXACT, "minor")
    checks.versions(said_of(versions={"python": "3.11.8"}), DRIVER)
    with pytest.raises(UserError, match=r"Python 3\.12\.0"):
        checks.versions(said_of(versions={"python": "3.12.0"}), DRIVER)


def test_the_same_version_of_other_files_is_a_fault() -> None:
    with pytest.raises(UserError, match="its files are others"):
        checks.versions(said_of(source="xyz"), DRIVER)


@pytest.mark.parametrize(("package", "title"), [("torch", "torch"), ("hksd", "hksd"), (probe.PACKAGES[-1], "hksd")])
def test_a_package_that_cannot_be_imported_is_a_fault_by_its_name(package: str, title: str) -> None:
    have = {key: value for key, value in VERSIONS.items() if key not in ("torch", "hksd")}
    facts = {"versions": have, "faults": {package: "ModuleNotFoundError: No module named 'x'"}, "source": None}
    with pytest.raises(UserError, match=rf"^{title} cannot be imported there \(ModuleNotFoundError"):
        checks.versions(facts, DRIVER)


def test_gpus_that_ray_counts_and_torch_does_not_see_are_a_fault() -> None:
    one = [("NVIDIA A10G", 24 * 2**30)]
    assert checks.gpus({"gpus": one}, 1) == "1 GPU(s): NVIDIA A10G (24 GiB)"
    assert "of which Ray counts 0" in checks.gpus({"gpus": one}, 0)
    assert checks.gpus({"gpus": []}, 0) == "no GPU"
    with pytest.raises(UserError, match="torch sees no GPU, Ray counts 1"):
        checks.gpus({"gpus": []}, 1)


def test_a_full_disk_is_a_fault_that_names_the_folder() -> None:
    room, none = int(5e9), int(0.2e9)
    assert checks.disk({"free": {"/tmp": room, "/runs": room}}) == "5 GB free in /tmp, 5 GB free in /runs"
    with pytest.raises(UserError, match=r"^/runs has only 0\.20 GB free: make room"):
        checks.disk({"free": {"/tmp": room, "/runs": none}})


def test_a_folder_that_is_not_shared_is_a_fault_that_says_what_to_set() -> None:
    assert checks.runs_folder({"shared": None})
    with pytest.raises(UserError, match=r"there is no /runs on h2: .*set HKSD_RUNS or --runs"):
        checks.runs_folder({"shared": "there is no /runs on h2"})


@pytest.mark.parametrize(
    ("seconds", "within", "ok"),
    [(0.2, 0.01, True), (-29, 0.1, True), (100, 0.1, False), (-100, 1, False), (35, 9, True)],
)
def test_a_clock_is_wrong_only_where_that_is_sure(seconds: float, within: float, ok: bool) -> None:
    if ok:
        assert "clock right within" in checks.clock(Offset(seconds, within))
    else:
        with pytest.raises(UserError, match="ahead of the driver's" if seconds > 0 else "behind the driver's"):
            checks.clock(Offset(seconds, within))


def test_the_quickest_answer_says_how_a_clock_goes() -> None:
    delays, took = iter([0.5, 0.0, 0.4]), []

    def ask() -> float:
        begun = time.monotonic()
        time.sleep(next(delays))
        took.append(time.monotonic() - begun)
        return time.time() + 50

    offset = cluster.offset_of(ask)
    assert abs(offset.within - min(took) / 2) < 0.1
    assert abs(offset.seconds - 50) < offset.within + 0.1


def test_every_check_of_a_node_is_made_though_others_fail() -> None:
    facts = said_of(versions={"hksd": "9"}, gpus=[], shared="there is no /runs on h2", free={"/tmp": 0})
    found = checks.check_node(Said(node(cpu=4, gpu=1), facts, Offset(90, 0)), DRIVER)
    assert [finding.ok for finding in found] == [False] * 5
    assert {finding.node for finding in found} == {"h2 (10.0.0.2)"}


def test_nodes_that_have_left_are_no_fault() -> None:
    assert cluster.members("2.60.0", 1, 2) == Finding("cluster", True, "Ray 2.60.0, 1 node(s) up; 2 nodes have left")
    assert "left" not in cluster.members("2.60.0", 1, 0).detail


def test_no_worker_is_a_fault_only_where_nothing_brings_one() -> None:
    kinds = (NodeType("gpu_spot", 4, 1, 3),)
    assert cluster.workers([node()], lambda: Growth(True)).ok
    assert "(it may start 3 gpu_spot with 4 CPU(s)" in cluster.workers([node()], lambda: Growth(True, kinds, 3)).detail
    assert not cluster.workers([node()], Growth).ok
    assert cluster.workers([node(), node(cpu=4, gpu=1)], Growth).detail == "4 CPU(s) and 1 GPU(s) for trials"


def test_a_head_that_cannot_say_how_its_cluster_grows_is_a_fault() -> None:
    def grows() -> Growth:
        raise UserError("the head cannot work")

    assert cluster.workers([node()], grows) == Finding("workers", False, "the head cannot work")


CLASH = (
    "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.11.8\n"
    "This process on node 10.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
)


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("Could not find any running Ray instance. Please", "this machine is no node of a Ray cluster that is up"),
        (
            "Failed to connect to Ray cluster at 10.0.0.1:6379",
            "the cluster at 10.0.0.1:6379 does not take this",
        ),
        (CLASH, "the cluster has Ray 2.59.0 on Python 3.11.8, here is Ray 2.60.0 on Python 3.11.7: install the same"),
        ("something else", "--address x: as it was said"),
    ],
)
def test_why_a_cluster_cannot_be_joined_is_told_in_a_sentence(cause: str, words: str) -> None:
    assert cluster.not_joined("--address x: as it was said", cause).startswith(words)


def test_what_ray_says_of_other_versions_has_the_form_that_is_read() -> None:
    from ray._private.utils import check_version_info

    with pytest.raises(RuntimeError) as told:
        check_version_info({"ray_version": "1.0", "python_version": "3.7.0"}, "node x")
    assert "the cluster has Ray 1.0 on Python 3.7.0, here is Ray 2." in cluster.not_joined("", str(told.value))


def test_a_change_of_any_file_of_ours_changes_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in probe.OURS:
        (tmp_path / package / "spaces").mkdir(parents=True)
        (tmp_path / package / "a.py").write_text("x = 1\n")
        module = ModuleType(package)
        module.__path__ = [str(tmp_path / package)]
        monkeypatch.setitem(sys.modules, package, module)
    before = probe.source()
    (tmp_path / "hksd" / "notes.txt").write_text("no code")
    (tmp_path / "hksd_search" / "spaces" / "__init__.py").write_text("no code of ours")
    assert probe.source() == before
    (tmp_path / "hksd_search" / "a.py").write_text("x = 2\n")
    assert probe.source() != before


def test_this_machine_says_what_it_has() -> None:
    said = probe.software()
    assert said["faults"] == {}
    assert checks.versions(said, said).startswith("hksd ")


def test_the_store_that_is_checked_is_the_one_that_a_search_would_take(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_store}")
    assert str(empty_store) in machine.mlflow(tmp_path, None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1 is not there"):
        machine.mlflow(tmp_path, None)


def test_a_folder_of_searches_that_cannot_be_written_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    found = attempt("storage", lambda: machine.storage(tmp_path / "file"))
    assert (found.ok, "cannot be written" in found.detail) == (False, True)


def test_what_is_well_at_a_node_stands_in_one_line_and_each_fault_in_its_own() -> None:
    findings = [
        Finding("python", True, "3.11"),
        Finding("versions", True, "hksd 1", "h2"),
        Finding("clock", True, "right", "h2"),
        Finding("disk", False, "full", "h2"),
        Finding("answer", False, "none", "h3"),
    ]
    assert lines(findings) == [
        "ok   python: 3.11",
        "ok   node h2: hksd 1; right",
        "FAIL node h2, disk: full",
        "FAIL node h3, answer: none",
    ]


def test_nodes_are_not_asked_about_a_folder_that_cannot_be_written_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr("ray.nodes", lambda: [None])
    monkeypatch.setattr(cluster.nodes, "alive", lambda: [node(cpu=1)])
    found = cluster._examine(tmp_path / "file")
    assert [finding.name for finding in found.findings if not finding.ok] == ["runs folder"]


def test_an_address_at_which_nobody_answers_is_told_without_waiting_for_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "prepare", lambda _: None)
    (found,) = cluster.check_cluster("127.0.0.1:1", tmp_path).findings
    assert (found.ok, "no Ray cluster answers there" in found.detail) == (False, True)
