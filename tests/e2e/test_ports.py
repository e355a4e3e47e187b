"""What a private Ray opens on this machine, and answers to whoever has no token: the table of docs/cluster.md."""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from wire import DIAGNOSTICS, OBJECTS, OK, UNAUTHENTICATED, UNIMPLEMENTED, grpc, http, methods

START = """
import json, os, subprocess, sys
from hksd_search.backend import connect
connect.prepare(None)
connect.start_ray()
import ray
class Worker:
    def number(self):
        return os.getpid()
worker = ray.remote(Worker).remote()
ray.get(worker.number.remote())
names = {process: open(f"/proc/{process}/comm").read().strip() for process in connect._children()}
print(json.dumps(names), flush=True)
sys.stdin.read()
connect.stop_ray()
"""
LISTEN = "0A"  # in /proc/net/tcp


class Port(NamedTuple):
    """A port that listens: its number, the addresses on which it does, and the name of its process."""

    number: int
    address: str
    process: str


def listening(processes: dict[int, str]) -> list[Port]:
    """The ports on which some processes listen."""
    owner: dict[str, str] = {}
    for process, name in processes.items():
        for file in Path(f"/proc/{process}/fd").glob("*"):
            try:
                owner[re.sub(r"socket:\[(\d+)\]", r"\1", str(file.readlink()))] = name
            except OSError:
                continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == LISTEN and rest[5] in owner:
                raw, number = local.split(":")
                words = struct.pack(f"={len(raw) // 8}I", *(int(raw[at : at + 8], 16) for at in range(0, len(raw), 8)))
                family = socket.AF_INET if table == "tcp" else socket.AF_INET6
                found.append(Port(int(number, 16), socket.inet_ntop(family, words), owner[rest[5]]))
    return found


@pytest.fixture(scope="module")
def ports() -> Iterator[list[Port]]:
    """Ports of a private Ray with a worker. This process does not know its token."""
    process = subprocess.Popen([sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    names = {int(number): name for number, name in json.loads(process.stdout.readline()).items()}
    yield listening(names)
    process.communicate("", timeout=60)


def test_a_private_ray_listens_on_the_loopback_interface_only(ports: list[Port]) -> None:
    assert {"raylet", "gcs_server", "ray::RuntimeEnv"} <= {port.process for port in ports}
    assert {port.address for port in ports} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_without_the_token_ray_does_nothing_for_anybody(ports: list[Port]) -> None:
    every = methods() + OBJECTS
    assert len(every) > 100
    for port in ports:
        address = ("127.0.0.1", port.number)
        if port.process.startswith("ray::RuntimeEnv"):
            asked = [("GET", "/"), ("GET", "/metrics"), ("POST", "/get_or_create_runtime_env")]
            assert {http(address, *one) for one in asked} == {401}, port
        else:
            found = {grpc(address, method) for method in every}
            assert found == {UNIMPLEMENTED, UNAUTHENTICATED}, port
            assert {grpc(address, method) for method in DIAGNOSTICS} == {OK}, "the docs say that they answer"
