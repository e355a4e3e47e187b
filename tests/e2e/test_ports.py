"""What a private Ray opens on this machine, and answers to whoever has no token: the table of docs/cluster.md."""

from __future__ import annotations

import importlib
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
DIAGNOSTICS = (  # of gRPC itself, which Ray lets everybody ask
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/grpc.channelz.v1.Channelz/GetServers",
)
OBJECTS = [
    f"/ray.rpc.ObjectManagerService/{name}" for name in ("Push", "Pull", "FreeObjects")
]  # Ray has it in C++ only
OK, UNIMPLEMENTED, UNAUTHENTICATED = 0, 12, 16  # of gRPC
LISTEN = "0A"  # in /proc/net/tcp
WAIT_S = 5.0


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


def ask(port: int, request: bytes, until: bytes) -> bytes:
    """Send some bytes to a port of this machine, and read until it says something or has said all."""
    with socket.create_connection(("127.0.0.1", port), WAIT_S) as connection:
        connection.sendall(request)
        got = b""
        while until not in got and (more := connection.recv(65536)):
            got += more
        return got + connection.recv(65536) if until in got and got.endswith(until) else got


def http(port: int, method: str, path: str) -> int:
    """The status that a plain HTTP request gets."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    return int(ask(port, head.encode(), b"\r\n\r\n").split()[1])


def grpc(port: int, method: str) -> int:
    """The status that a call without a token gets, by HTTP/2 as RFC 9113 and 7541 have it, without compression."""

    def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
        return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body

    pairs = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "localhost"}
    pairs |= {"content-type": "application/grpc", "te": "trailers"}
    head = b"".join(b"\0" + bytes([len(k)]) + k.encode() + bytes([len(v)]) + v.encode() for k, v in pairs.items())
    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
    empty_message = b"\0" * 5
    got = ask(port, hello + frame(1, 4, 1, head) + frame(0, 1, 1, empty_message), b"grpc-status")
    status = re.search(rb"grpc-status[\x01\x02](\d{1,2})", got)
    assert status, got
    return int(status[1])


def methods() -> list[str]:
    """Every method that Ray's own descriptions of its services name."""
    import ray.core.generated as generated

    found = []
    for file in sorted(Path(generated.__path__[0]).glob("*_pb2.py")):
        services = importlib.import_module(f"ray.core.generated.{file.stem}").DESCRIPTOR.services_by_name.values()
        found += [f"/{one.full_name}/{method.name}" for one in services for method in one.methods]
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
        if port.process.startswith("ray::RuntimeEnv"):
            asked = [("GET", "/"), ("GET", "/metrics"), ("POST", "/get_or_create_runtime_env")]
            assert {http(port.number, *one) for one in asked} == {401}, port
        else:
            found = {grpc(port.number, method) for method in every}
            assert found == {UNIMPLEMENTED, UNAUTHENTICATED}, port
            assert {grpc(port.number, method) for method in DIAGNOSTICS} == {OK}, "the docs say that they answer"
