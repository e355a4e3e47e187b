"""`hksd doctor --cluster` on a real cluster: nodes of this machine, started as `ray up` does, some of them ill."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler._private.monitor import BASE_READONLY_CONFIG

RAY = [sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.argv[0] = 'ray'; main()"]
OPTIONS = ["--object-store-memory=100000000", "--disable-usage-stats", "--block", "--dashboard-agent-listen-port=0"]
HIDDEN = [
    "unshare",
    "--mount",
    "sh",
    "-c",
    'mount -t tmpfs none "$0" && exec "$@"',
]  # $0: what is hidden by a new folder
ALONE = ["unshare", "--pid", "--fork", "--mount-proc"]  # no process of another cluster can be seen
WRONG_CLOCK = "import time\nreal = time.time\ntime.time = lambda: real() + 100\n"
NO_HKSD = "import sys\nsys.modules.update(hksd=None, hksd_search=None)\n"
STARTED = "Ray runtime started"


@dataclass
class Cluster:
    """A cluster out of processes of this machine; only those that carry its mark are of it.

    Attributes:
        folder: of Ray's files; `ray_current_cluster` in it is what "auto" finds.
        runs: of the searches.
        environment: of every node, and of commands on them.
    """

    folder: Path
    runs: Path
    environment: dict[str, str]
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return (self.folder / "ray" / "ray_current_cluster").read_text()

    def start(self, *words: str, before: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[bytes]:
        """Start a node and wait until it is up."""
        log = self.folder / f"node-{len(self.nodes)}.log"
        node = subprocess.Popen(
            [*before, *RAY, "start", *words, *OPTIONS],
            env={**self.environment, **environment},
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.nodes.append(node)
        deadline = time.monotonic() + 120
        while STARTED not in log.read_text(errors="replace"):
            assert node.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.2)
        return node

    def end(self, node: subprocess.Popen[bytes]) -> None:
        """End a node, which ends what it has started."""
        node.send_signal(signal.SIGTERM)
        node.wait(60)

    def close(self) -> None:
        """End all nodes, the head last, and what is left of them."""
        for node in reversed(self.nodes):
            if node.poll() is None:
                node.send_signal(signal.SIGTERM)
        for node in self.nodes:
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
        mine = f"TEST_CLUSTER={self.environment['TEST_CLUSTER']}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if int(entry.name) != os.getpid() and mine in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head without a core for trials and with an autoscaler, which brings nobody here, as that of cluster.yaml."""
    folder = Path(tempfile.mkdtemp(prefix="hksd-test-"))  # the paths of Ray's sockets may not be long
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HKSD_", "MLFLOW_"))},
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "TEST_CLUSTER": secrets.token_hex(8),
    }
    made = Cluster(folder, tmp_path_factory.mktemp("shared") / "runs", environment)
    made.runs.mkdir()
    try:
        (folder / "autoscaler.yaml").write_text(json.dumps(BASE_READONLY_CONFIG))
        config = f"--autoscaling-config={folder / 'autoscaler.yaml'}"
        made.start("--head", "--port=0", "--num-cpus=0", "--include-dashboard=false", config)
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def examine(
    start: Callable[..., Any], cluster: Cluster, empty_store: Path, tmp_path: Path
) -> Callable[[], tuple[int, dict[str, Any]]]:
    """examine(): exit code of `hksd doctor --cluster` on a node of the cluster, and what it says."""

    def run() -> tuple[int, dict[str, Any]]:
        told = {"HKSD_RUNS": str(cluster.runs), "MLFLOW_TRACKING_URI": f"sqlite:///{empty_store}"}
        program = start("doctor", "--cluster", "--json", cwd=tmp_path, **cluster.environment, **told)
        return program.wait(600), program.json()

    return run


def check(said: dict[str, Any], name: str) -> dict[str, Any]:
    """The one finding of a check of this machine or of the cluster as a whole."""
    (found,) = [one for one in said["checks"] if one["name"] == name and one["node"] is None]
    return dict(found)


def of_nodes(said: dict[str, Any], name: str, ok: bool) -> list[str]:
    """What a check found at the nodes that it found well, or ill."""
    return [one["detail"] for one in said["checks"] if one["name"] == name and one["node"] and one["ok"] == ok]


def can_hide(folder: Path) -> bool:
    try:
        return subprocess.run([*HIDDEN, str(folder), "true"], capture_output=True, timeout=60).returncode == 0
    except OSError:
        return False


def test_a_head_whose_workers_are_to_come_is_well(examine: Callable[..., Any]) -> None:
    code, said = examine()
    assert (code, said["ok"]) == (0, True), said
    assert check(said, "workers")["detail"] == "no worker is up; the autoscaler brings them when trials wait"
    assert "only the search itself writes there" in check(said, "mlflow")["detail"]


def test_a_node_of_a_cluster_starts_a_ray_of_its_own_for_whoever_gives_no_address(
    start: Callable[..., Any], write_space: Callable[..., Path], cluster: Cluster, tmp_path: Path
) -> None:
    program = start("doctor", "--json", cwd=tmp_path, **cluster.environment)
    assert program.wait(600) == 0, program.out + program.err
    here = len(os.sched_getaffinity(0))
    assert f"starts here, {here} CPU(s)" in check(program.json(), "ray")["detail"]
    space = write_space(tmp_path / "small.yaml", search={"trials": 1}, teacher={"epochs": 1}, train={"epochs": 1})
    program = start("search", space, "--name", "one", "--json", cwd=tmp_path, **cluster.environment)
    assert program.wait(600) == 0, program.err
    assert program.json()["trials"]["complete"] == 1


def test_nodes_that_came_well_and_ill_and_went(examine: Callable[..., Any], cluster: Cluster, tmp_path: Path) -> None:
    for name, files in {
        "other": {"hksd/__init__.py": '__version__ = "9.9.9"\n', "sitecustomize.py": WRONG_CLOCK},
        "without": {"sitecustomize.py": NO_HKSD},
    }.items():
        for file, content in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(content)
    hide = can_hide(cluster.runs)
    join = f"--address={cluster.address}"
    gone = cluster.start(join, "--num-cpus=1")
    well = cluster.start(join, "--num-cpus=1")
    cluster.end(gone)
    code, said = examine()
    assert (code, said["ok"]) == (0, True), said
    assert "2 node(s) up; 1 node has left" in check(said, "cluster")["detail"]
    assert check(said, "workers")["detail"].startswith("1 CPU(s) and 0 GPU(s)")
    for name in ("versions", "runs folder", "gpus", "disk", "clock"):
        assert len(of_nodes(said, name, ok=True)) == 2, name
    assert {node["versions"]["hksd"] for node in said["nodes"]} == {said["nodes"][0]["versions"]["hksd"]}
    assert not list(cluster.runs.glob(".hksd-shared-*"))

    cluster.end(well)
    before = (*HIDDEN, str(cluster.runs)) if hide else ()
    cluster.start(join, "--num-cpus=1", "--num-gpus=1", before=before, PYTHONPATH=str(tmp_path / "other"))
    cluster.start(join, "--num-cpus=1", PYTHONPATH=str(tmp_path / "without"))
    code, said = examine()
    assert (code, said["ok"]) == (1, False)
    other, without = sorted(of_nodes(said, "versions", ok=False))
    assert "hksd 9.9.9 is there" in other
    assert "at the driver: install the same on every node" in other
    assert "hksd cannot be imported there (ModuleNotFoundError" in without
    assert "2 nodes have left" in check(said, "cluster")["detail"]
    assert [text[:30] for text in of_nodes(said, "clock", ok=False)] == ["its clock is 100 s ahead of th"]
    if not torch_sees_a_gpu():
        assert ["Ray counts 1" in text for text in of_nodes(said, "gpus", ok=False)] == [True]
    apart = of_nodes(said, "runs folder", ok=False)
    if hide:
        assert ["is another folder" in text and "HKSD_RUNS or --runs" in text for text in apart] == [True]
    else:
        assert apart == []


def torch_sees_a_gpu() -> bool:
    import torch

    return torch.cuda.device_count() > 0


def joined(cluster: Cluster, folder: Path, *before: str, **environment: str) -> str:
    """What `hksd doctor --cluster` says of the cluster alone, in a process of its own."""
    code = "from pathlib import Path; from hksd_search.health.cluster import check_cluster\n"
    code += "print(check_cluster(None, Path('runs')).findings[0].detail)"
    command = [*before, sys.executable, "-c", code]
    told = {**cluster.environment, **environment}
    return subprocess.run(command, cwd=folder, env=told, capture_output=True, text=True, timeout=600).stdout


def test_a_machine_that_is_no_node_is_told_in_a_sentence(cluster: Cluster, tmp_path: Path) -> None:
    if subprocess.run([*ALONE, "true"], capture_output=True, timeout=60).returncode:
        pytest.skip("process namespaces are not allowed here")
    assert "this machine is no node of a Ray cluster that is up" in joined(
        cluster, tmp_path, *ALONE, RAY_TMPDIR=str(tmp_path)
    )


def test_another_token_is_told_in_a_sentence(cluster: Cluster, tmp_path: Path) -> None:
    said = joined(cluster, tmp_path, RAY_AUTH_TOKEN="f" * 64)
    assert f"the cluster at {cluster.address} does not take this process in" in said
    assert "RAY_AUTH_TOKEN_PATH must be as on its head" in said
