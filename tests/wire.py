"""What a port says to somebody who has no token, by plain HTTP and by gRPC.

As a program, ``wire.py HOST PORT...`` prints what each port of a host says, as one JSON object by port.
"""

from __future__ import annotations

import importlib
import json
import re
import socket
import struct
import sys
from pathlib import Path
from typing import Any

DIAGNOSTICS = (  # of gRPC itself, which Ray lets everybody ask
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/grpc.channelz.v1.Channelz/GetServers",
)
OBJECTS = [
    f"/ray.rpc.ObjectManagerService/{name}" for name in ("Push", "Pull", "FreeObjects")
]  # Ray has it in C++ only
OK, UNIMPLEMENTED, UNAUTHENTICATED = 0, 12, 16  # of gRPC
WAIT_S = 5.0
PATHS = [
    "/",
    "/health",
    "/version",
    "/metrics",
    "/api/version",
    "/api/job_agent/jobs/",
    "/api/jobs/",
    "/nodes",
    "/logs",
]
MLFLOW = "/api/2.0/mlflow/experiments"
BODIES = {  # of requests that a server would take as they stand
    "/api/job_agent/jobs/": {"entrypoint": "true"},
    "/api/jobs/": {"entrypoint": "true"},
    "/get_or_create_runtime_env": {},
    f"{MLFLOW}/search": {"max_results": 1},
    f"{MLFLOW}/create": {"name": "made by a stranger"},
}


def ask(address: tuple[str, int], request: bytes, until: bytes) -> bytes:
    """Send some bytes to a port, and read until it says something or has said all."""
    with socket.create_connection(address, WAIT_S) as connection:
        connection.sendall(request)
        got = b""
        while until not in got and (more := connection.recv(65536)):
            got += more
        return got + connection.recv(65536) if until in got and got.endswith(until) else got


def http(address: tuple[str, int], method: str, path: str, body: str = "") -> int:
    """The status that a plain HTTP request gets."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return int(ask(address, (head + body).encode(), b"\r\n\r\n").split()[1])


def grpc(address: tuple[str, int], method: str) -> int:
    """The status that a call without a token gets, by HTTP/2 as RFC 9113 and 7541 have it, without compression."""

    def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
        return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body

    pairs = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "localhost"}
    pairs |= {"content-type": "application/grpc", "te": "trailers"}
    head = b"".join(b"\0" + bytes([len(k)]) + k.encode() + bytes([len(v)]) + v.encode() for k, v in pairs.items())
    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
    empty_message = b"\0" * 5
    got = ask(address, hello + frame(1, 4, 1, head) + frame(0, 1, 1, empty_message), b"grpc-status")
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


def answers(address: tuple[str, int]) -> dict[str, Any]:
    """What a port says.

    Returns:
        ``http``: statuses by request, or ``grpc``: methods by the status that they get; empty if it speaks neither.
    """
    try:
        said = {f"GET {path}": http(address, "GET", path) for path in PATHS}
        posted = {f"POST {path}": http(address, "POST", path, json.dumps(body)) for path, body in BODIES.items()}
        return {"http": said | posted}
    except (OSError, ValueError, IndexError):
        pass
    try:
        answered: dict[int, list[str]] = {}
        for method in methods() + OBJECTS:
            answered.setdefault(grpc(address, method), []).append(method)
    except (OSError, AssertionError):
        return {}
    return {"grpc": answered}


def main() -> None:
    """Print what the ports say."""
    host, *ports = sys.argv[1:]
    print(json.dumps({port: answers((host, int(port))) for port in ports}))


if __name__ == "__main__":
    main()
