"""Whether a cluster gets nodes by itself, and how many: what Ray's autoscaler on the head was told.

Ray tells no driver of it, so the head is asked for the file that its autoscaler was started with.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hksd.errors import UserError
from hksd_search.backend import nodes
from hksd_search.backend.nodes import Node

ANSWER_S = 30.0  # for the head; a worker of Ray starts there first
SHARE = 0.001  # of the head's resource
OPTION = "--autoscaling-config="  # of Ray's monitor
# How KubeRay starts Ray in its pods: without Ray's monitor where an autoscaler of its own, which has no file, works.
KUBERAY, NO_MONITOR = "KUBERAY_GEN_RAY_START_CMD", "--no-monitor"


@dataclass(frozen=True)
class NodeType:
    """A kind of nodes that an autoscaler may start.

    Attributes:
        name: in its file.
        cpu: processor cores; None where the file does not say.
        gpu: GPUs; None where the file does not say.
        most: nodes of this kind at once.
    """

    name: str
    cpu: float | None
    gpu: float | None
    most: int

    def room(self, cpu: float, gpu: float) -> int | None:
        """Trials on one such node; None where that is not known."""
        if self.cpu is None or self.gpu is None:
            return None
        return nodes.room(self.cpu, self.gpu, cpu, gpu)


@dataclass(frozen=True)
class Growth:
    """How a cluster grows.

    Attributes:
        automatic: an autoscaler brings nodes where there is work for them.
        types: kinds of nodes that it has; empty where that is not known.
        most: nodes beside the head at once; None where that is not known.
    """

    automatic: bool = False
    types: tuple[NodeType, ...] = ()
    most: int | None = None

    def may_fit(self, cpu: float, gpu: float) -> bool:
        """Whether a node may come on which such a trial fits."""
        if not self.types:
            return self.automatic
        return any(kind.room(cpu, gpu) != 0 for kind in self.types)

    def most_trials(self, up: list[Node], cpu: float, gpu: float) -> int | None:
        """Trials at once when the cluster has grown as far as it may; None where that is not known."""
        now = sum(node.room(cpu, gpu) for node in up)
        if not self.automatic:
            return now
        rooms = [kind.room(cpu, gpu) for kind in self.types]
        if not rooms or None in rooms or self.most is None:
            return None
        left, trials = self.most, sum(node.room(cpu, gpu) for node in up if node.head)
        for each, kind in sorted(((r or 0, k.most) for r, k in zip(rooms, self.types, strict=True)), reverse=True):
            trials += each * min(kind, left)
            left -= min(kind, left)
        return max(now, trials)


def told(kinds: Iterable[NodeType]) -> str:
    """Kinds of nodes in words: ``4 gpu_spot with 4 CPU(s) and 1 GPU(s)``."""
    return ", ".join(
        f"{kind.most} {kind.name}"
        + ("" if kind.cpu is None or kind.gpu is None else f" with {kind.cpu:g} CPU(s) and {kind.gpu:g} GPU(s)")
        for kind in kinds
    )


def of_cluster() -> Growth:
    """How the cluster to which this process is connected grows."""
    import ray

    if not any(node.head for node in nodes.alive()):  # tests of Ray's own build clusters without
        return Growth()
    ask = ray.remote(num_cpus=0, resources={nodes.HEAD: SHARE}, max_retries=1)(_on_head)
    try:
        found: Growth = ray.get(ask.remote(ray.get_runtime_context().gcs_address), timeout=ANSWER_S)
    except ray.exceptions.RayError as error:
        raise UserError(
            "the head of the cluster cannot work for this search: does it have this version of hksd installed? "
            f"`hksd doctor --cluster` tells ({str(error).strip().splitlines()[-1]})"
        ) from error
    return found


def _on_head(cluster: str) -> Growth:
    """What the autoscaler of this machine was told that belongs to the cluster of that address."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = entry.read_bytes().decode(errors="replace").split("\0")
            if f"--gcs-address={cluster}" in words and any(word.endswith("monitor.py") for word in words):
                for word in words:
                    if word.startswith(OPTION):
                        return _read(Path(word.removeprefix(OPTION)).expanduser())
    return Growth(automatic=NO_MONITOR in os.environ.get(KUBERAY, ""))


def _read(file: Path) -> Growth:
    """What such a file says; what it leaves out is not known."""
    import yaml

    try:
        tree = yaml.safe_load(file.read_text())
        return of_tree(tree)
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError):
        return Growth(automatic=True)


def of_tree(tree: Mapping[str, Any]) -> Growth:
    """The growth that the file of a cluster (see Ray's documentation, "Cluster YAML Configuration Options") allows.

    Args:
        tree: the file, as Ray has completed it for the head.
    """
    head, types = tree.get("head_node_type"), []
    for name, kind in (tree.get("available_node_types") or {}).items():
        most = int(kind.get("max_workers", 0))
        if most > 0 and (name != head or tree["provider"]["type"] == "local"):
            have = kind.get("resources") or {}
            known = "CPU" in have
            cpu, gpu = (float(have.get("CPU", 0)), float(have.get("GPU", 0))) if known else (None, None)
            types.append(NodeType(str(name), cpu, gpu, most))
    return Growth(True, tuple(types), None if tree.get("max_workers") is None else int(tree["max_workers"]))
