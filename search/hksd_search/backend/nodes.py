"""The nodes of a Ray cluster: which there are, what they have, how many trials fit on them."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

EDGE = 1e-9  # shares of a GPU are not exact in binary
ANSWER_S = 2.0  # in which a machine that is there accepts a connection
HEAD = "node:__internal_head__"  # resource that Ray gives to the head of a cluster


@dataclass(frozen=True)
class Node:
    """A node that is up.

    Attributes:
        id: Ray's.
        name: of the machine.
        address: of the machine.
        port: of its raylet.
        cpu: processor cores for trials; 0 on a head that trains nothing.
        gpu: GPUs.
        head: the head of the cluster.
    """

    id: str
    name: str
    address: str
    port: int
    cpu: float
    gpu: float
    head: bool = False

    def __str__(self) -> str:
        return self.name if self.name == self.address else f"{self.name} ({self.address})"

    def room(self, cpu: float, gpu: float) -> int:
        """Trials at once, each with that many cores and GPUs."""
        return room(self.cpu, self.gpu, cpu, gpu)


def room(cpus: float, gpus: float, cpu: float, gpu: float) -> int:
    """Trials at once on a machine with `cpus` and `gpus`, each with `cpu` and `gpu` of them.

    A trial lies on one GPU, or on several whole ones: shares of two GPUs do not add up.
    """
    fit = int(cpus / cpu + EDGE)
    if 0 < gpu < 1:
        return min(fit, int(gpus) * int(1 / gpu + EDGE))
    return min(fit, int(gpus / gpu + EDGE)) if gpu else fit


def alive() -> list[Node]:
    """Nodes that are up, as Ray has them."""
    import ray

    return [_node(facts) for facts in ray.nodes() if facts["Alive"]]


def _node(facts: Mapping[str, Any]) -> Node:
    have, address = facts["Resources"], str(facts["NodeManagerAddress"])
    name = str(facts.get("NodeManagerHostname") or address)
    port = int(facts["NodeManagerPort"])
    return Node(facts["NodeID"], name, address, port, have.get("CPU", 0.0), have.get("GPU", 0.0), HEAD in have)


def node_of(actor: str | None) -> str | None:
    """Ray's id of the node that a worker is on, or was; None where that is not known.

    Args:
        actor: Ray's id of it.
    """
    import ray

    if actor is None:
        return None
    facts = ray._private.state.actors(actor)  # the public way asks the dashboard, which may not be there
    return facts.get("Address", {}).get("NodeID") or None if facts else None


def answers(node: Node, seconds: float = ANSWER_S) -> bool:
    """Whether the raylet of a node still takes connections: Ray itself learns after 15 to 60 s that it does not."""
    try:
        socket.create_connection((node.address, node.port), timeout=seconds).close()
    except OSError:
        return False
    return True


def told(nodes: Iterable[Node]) -> str:
    """What nodes have, in words: ``2 nodes with 8 CPU(s) and 1 GPU(s), h1 with 0 CPU(s) and 0 GPU(s)``."""
    kinds: dict[tuple[float, float], list[Node]] = {}
    for node in nodes:
        kinds.setdefault((node.cpu, node.gpu), []).append(node)
    said = [
        f"{alike[0].name if len(alike) == 1 else f'{len(alike)} nodes'} with {cpu:g} CPU(s) and {gpu:g} GPU(s)"
        for (cpu, gpu), alike in kinds.items()
    ]
    return ", ".join(said) or "no node"


def wish(cpu: float, gpu: float) -> str:
    """What a trial takes, in words."""
    return f"search.resources: a trial wants {cpu:g} CPU(s) and {gpu:g} GPU(s)"
