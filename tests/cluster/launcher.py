"""A cluster as people run it: `ray up` from a laptop, searches on its nodes, `ray down`."""

from __future__ import annotations

import json
import secrets
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from books import Facts
from machines import PROJECT, Machine
from searches import Search

UP_S, DOWN_S = 240.0, 90.0
NODES = """
import json, sys, time
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
wanted, deadline = json.loads(sys.argv[2]), time.monotonic() + float(sys.argv[3])
while True:
    nodes = [node.node_manager_address for node in client.get_all_node_info().values() if node.state == 0]
    if wanted is None or len(nodes) == wanted or time.monotonic() > deadline:
        print(json.dumps(sorted(nodes)))
        break
    time.sleep(0.3)
"""


def token() -> str:
    """A new token of a cluster."""
    return secrets.token_hex(32)


def call_ray(laptop: Machine, words: str, timeout: float = 60) -> str:
    """Call `ray` on a laptop, in the folder of the project; returns what it says."""
    return str(laptop.shell(f"cd {PROJECT} && ray {words} 2>&1", timeout=timeout).stdout)


def ray_up(laptop: Machine, file: str) -> str:
    """Bring up, or mend, the cluster of a file."""
    return call_ray(laptop, f"up -y {file} --no-config-cache --disable-usage-stats", UP_S)


@dataclass
class Cluster:
    """A cluster of machines.

    Attributes:
        laptop: where `ray up` is called, in a copy of the project.
        file: the cluster file, on the laptop.
        head: its head.
        workers: its workers; empty where they come and go.
        runs: folder of all searches, on the host; all nodes share it.
    """

    laptop: Machine
    file: str
    head: Machine
    workers: Sequence[Machine]
    runs: Path

    def __post_init__(self) -> None:
        self.logs = self.runs.parent / "logs"
        self.logs.mkdir(exist_ok=True)

    @property
    def machines(self) -> list[Machine]:
        """Head and workers."""
        return [self.head, *self.workers]

    @property
    def store(self) -> str:
        """The MLflow store, read on the disk of the head."""
        return f"sqlite:///{self.head.home}/mlflow/mlflow.db"

    def up(self) -> str:
        """`ray up`; returns what it says."""
        return ray_up(self.laptop, self.file)

    def down(self) -> str:
        """`ray down`; returns what it says."""
        return call_ray(self.laptop, f"down -y {self.file}", DOWN_S)

    def nodes(self, wanted: int | None = None, timeout: float = 90) -> list[str]:
        """Addresses of the nodes that Ray's head takes for alive.

        Args:
            wanted: wait until there are so many.
            timeout: for how long at most, in seconds.
        """
        words = f"{self.head.address}:6379 {json.dumps(wanted)} {timeout}"
        done = self.head.shell(f"python -c '{NODES}' {words}", timeout=timeout + 30)
        return list(json.loads(done.stdout))

    def start(self, words: str, on: Machine | None = None, folder: str = "~") -> Search:
        """Start `hksd` with these words in a folder of a node, the head by default."""
        return self._begin(on or self.head, f"cd {folder}; exec hksd {words}")

    def exec(self, command: str) -> Search:
        """Start `ray exec` of a command on the laptop."""
        return self._begin(self.laptop, f"cd {PROJECT} && exec ray exec {self.file} {shlex.quote(command)}")

    def _begin(self, machine: Machine, command: str) -> Search:
        output = self.logs / f"{len(list(self.logs.iterdir())):03d}"
        with output.open("w") as file:
            words = ["bash", "-l", "-c", f". ~/.bashrc; {command}"]
            return Search(machine.popen(*words, stdout=file, stderr=subprocess.STDOUT), output)

    def trials_on(self, machine: Machine) -> int:
        """Trials that train on a machine just now."""
        return sum(line.startswith("ray::ImplicitFunc.train") for line in machine.processes().values())

    def facts(self, name: str) -> Facts:
        """What study, store and folder say of a search."""
        return Facts(self.runs, name, self.store)

    def checkpoints(self, name: str) -> int:
        """Trials of a search that have a checkpoint."""
        return len(list((self.runs / name / "trials").glob("*/last.ckpt")))

    def driver(self, name: str, on: Machine | None = None) -> list[int]:
        """Processes, by their numbers on the host, that run a search."""
        lines = (on or self.head).processes().items()
        return [number for number, line in lines if "bin/hksd search" in line and name in line.split()]
