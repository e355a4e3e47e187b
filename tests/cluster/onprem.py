"""The on-premises cluster of these tests: its machines, and the file that `hksd cluster local` writes for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import image
import launcher
from disk import Parts
from launcher import Cluster
from machines import PROJECT, Machine, Network

ROOT = Path(__file__).resolve().parents[2]
KEY = ".ssh/cluster"
FILE = "cluster.yaml"
ADDRESSES = {"head": "10.77.0.11", "one": "10.77.0.12", "two": "10.77.0.13"}
LAPTOP, STRANGER = "10.77.0.10", "10.77.0.66"
SSH = "StrictHostKeyChecking accept-new\n"
MEMORY = "--object-store-memory=100000000"  # of each node; by itself Ray takes 30 % of that of the host
NODES = f"HKSD_HEAD_OPTIONS='{MEMORY}'\nHKSD_WORKER_OPTIONS='{MEMORY} --num-cpus=1 %s'\n"


def machines(network: Network) -> Cluster:
    """Switch on a laptop, a head and two workers of one processor each; nothing runs on them yet.

    Args:
        network: a new one.
    """
    image.write(network.folder / "image")
    images = image.parts(network.folder / "image")
    runs = network.folder / "runs"
    runs.mkdir()
    key = network.key.with_suffix(".pub").read_text()
    node = Parts(key=key, profile=image.PROFILE, images=images, mounts={"/root/runs": runs})
    head, *workers = [network.machine(name, address, node) for name, address in ADDRESSES.items()]
    files = {
        KEY: network.key.read_text(),
        ".ssh/config": SSH,
        ".hksd/auth_token": launcher.token(),
        ".hksd/cluster.env": NODES % "",
    }
    laptop = desk(network, "laptop", LAPTOP, images, files)
    addresses = " ".join(f"--worker {worker.address}" for worker in workers)
    options = f"--head {head.address} {addresses} --user root --key ~/{KEY}"
    laptop.shell(f"cd {PROJECT} && hksd cluster local {options} > ~/{FILE}")
    return Cluster(laptop, f"~/{FILE}", head, workers, runs)


def desk(network: Network, name: str, address: str, images: Mapping[str, Path], files: Mapping[str, str]) -> Machine:
    """A machine at which somebody works: the project and what its commands need, and no SSH into it."""
    profile = f"{image.PROFILE}export PATH=$HOME/venv/bin:$PATH PYTHONPATH={PROJECT}/search:{PROJECT}\n"
    made = network.machine(name, address, Parts(profile=profile, files=files, images={**images, PROJECT: ROOT}))
    made.shell("python3 -m venv ~/venv")
    return made


def stop_command(file: str) -> str:
    """The command that ends everything, as the cluster's file says it."""
    found = re.search(r"^#   (for host in .*)$", file, re.MULTILINE)
    assert found, file
    return found[1]
