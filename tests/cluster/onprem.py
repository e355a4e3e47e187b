"""The on-premises cluster of these tests: its file, its machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import image
import launcher
import yaml
from disk import Parts
from launcher import Cluster
from machines import PROJECT, Machine, Network

ROOT = Path(__file__).resolve().parents[2]
DROPPED = ("metadata", "available_node_types", "head_node_type", "initialization_commands", "upscaling_speed")
KEY = "/root/.ssh/cluster"
ADDRESSES = {"head": "10.77.0.11", "one": "10.77.0.12", "two": "10.77.0.13"}
LAPTOP, STRANGER = "10.77.0.10", "10.77.0.66"


def file(head: str, workers: list[str]) -> dict[str, Any]:
    """The repository's cluster file for machines that are there already; see docs/cluster.md for what differs."""
    text = (ROOT / "cluster.yaml").read_text().replace("/home/ubuntu", "/root")
    config = {key: value for key, value in yaml.safe_load(text).items() if key not in DROPPED}
    config["provider"] = {"type": "local", "head_ip": head, "worker_ips": workers}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": KEY}
    config["min_workers"] = config["max_workers"] = len(workers)
    config["head_setup_commands"] = config["worker_setup_commands"] = []
    start = f"RAY_enable_autoscaler_v2=0 ray start --node-ip-address={head}"
    config["head_start_ray_commands"] = [
        command.replace("ray start", start) for command in config["head_start_ray_commands"]
    ]
    return config


def machines(network: Network, shared: bool = True) -> Cluster:
    """Switch on a laptop, a head and two workers; nothing runs on them yet.

    Args:
        network: a new one.
        shared: the nodes see one folder of runs.
    """
    image.write(network.folder / "image")
    images = image.parts(network.folder / "image")
    runs = network.folder / "runs"
    runs.mkdir()
    key = network.key.with_suffix(".pub").read_text()
    mounts = {"/root/runs": runs} if shared else {}
    node = Parts(key=key, profile=image.PROFILE, images=images, mounts=mounts)
    nodes = [network.machine(name, address, node) for name, address in ADDRESSES.items()]
    config = launcher.sized(file(nodes[0].address, [one.address for one in nodes[1:]]))
    files = {
        ".ssh/cluster": network.key.read_text(),
        ".hksd/auth_token": launcher.token(),
        "cluster.yaml": json.dumps(config),
    }
    laptop = network.machine("laptop", LAPTOP, laptop_parts(images, files))
    return Cluster(laptop, "~/cluster.yaml", nodes[0], nodes[1:], runs)


def laptop_parts(images: Any, files: dict[str, str]) -> Parts:
    """A machine from which clusters are launched: the project, Ray, and no SSH into it."""
    profile = image.PROFILE + "export PATH=$HOME/venv/bin:$PATH\n"
    return Parts(profile=profile, files=files, images={**images, PROJECT: ROOT})


def stranger(network: Network, images: Any) -> Machine:
    """A machine of the same network that has neither key nor token."""
    return network.machine("stranger", STRANGER, laptop_parts(images, {}))
