"""Where the machines of a cluster listen, and what that says to a machine that has no token."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from machines import PROJECT, Machine
from wire import UNAUTHENTICATED, UNIMPLEMENTED

OWNERS = {  # what a process is, by words of its command line
    "gcs_server": "GCS",
    "raylet/raylet": "raylet",
    "ray.util.client.server": "Ray client server",
    "dashboard.py": "dashboard",
    "monitor.py": "autoscaler",
    "ray::DashboardAgent": "agent",
    "ray::RuntimeEnvAgent": "agent for runtime environments",
    "mlflow": "MLflow",
    "hksd search": "search",
    "ray::": "trial",
    "sshd": "sshd",
}
FIXED = range(10_000)  # Ray takes ports above for what it does not name, but for these
NAMED = {10001, 44217, 44227, 52365}
LINES = "for p in /proc/[0-9]*; do echo ${p#/proc/} $(tr '\\0' ' ' <$p/cmdline); done"


class Door(NamedTuple):
    """A port that listens.

    Attributes:
        role: ``head`` or ``worker``.
        owner: what the process is.
        port: its number, or ``any`` where Ray chooses one.
        bound: to which addresses.
        says: what a machine without the token gets, in words.
        open: whether that is more than a refusal.
    """

    role: str
    owner: str
    port: str
    bound: str
    says: str
    open: bool


def survey(machines: Sequence[Machine], stranger: Machine) -> list[Door]:
    """Knock at every port of some machines, the head first, from another machine of the network."""
    found = []
    for machine in machines:
        ports = _listening(machine)
        words = ["bash", "-l", "-c", '. ~/.bashrc; exec python "$@"', "-", f"{PROJECT}/tests/wire.py"]
        said = json.loads(stranger.run(*words, machine.address, *ports, timeout=120).stdout)
        role = "head" if machine is machines[0] else "worker"
        for port, (bound, owner) in ports.items():
            number = port if int(port) in FIXED or int(port) in NAMED else "any"
            found.append(Door(role, owner, number, *_verdict(owner, bound, said[port])))
    return found


def _listening(machine: Machine) -> dict[str, tuple[set[str], str]]:
    """Addresses and owner of each port on which a machine listens."""
    lines = machine.run("bash", "-c", LINES, root=True).stdout.splitlines()
    commands = dict(line.partition(" ")[::2] for line in lines)
    bound, owner = defaultdict[str, set[str]](set), {}
    for line in machine.run("ss", "-ltnpH", root=True).stdout.splitlines():
        _, _, _, local, _, users = line.split()
        address, _, port = local.rpartition(":")
        bound[port].add(address.strip("[]").removeprefix("::ffff:"))
        command = commands[users.partition("pid=")[2].partition(",")[0]]
        owner[port] = next((name for words, name in OWNERS.items() if words in command), command)
    return {port: (bound[port], owner[port]) for port in bound}


def _verdict(owner: str, bound: set[str], said: dict[str, dict[str, object]]) -> tuple[str, str, bool]:
    where = "every address" if bound & {"*", "0.0.0.0", "::"} else "the node's address"
    if bound <= {"127.0.0.1", "::1"}:
        return "loopback", "not reachable", False
    if "http" in said:
        statuses = {int(str(status)) for status in said["http"].values()}
        fine = sorted(request for request, status in said["http"].items() if int(str(status)) < 400)
        if len(fine) > 1 and len({request.partition(" ")[0] for request in fine}) == 1:
            return where, f"HTTP {min(statuses)} to every {fine[0].partition(' ')[0]}", True
        return where, f"HTTP {min(statuses)}" + f" to {', '.join(fine)}" * bool(fine), bool(fine)
    if "grpc" in said:
        answered = {int(status) for status in said["grpc"]} - {UNIMPLEMENTED, UNAUTHENTICATED}
        return where, f"gRPC {sorted(answered)}" if answered else "gRPC UNAUTHENTICATED", bool(answered)
    return where, "asks for a key" if owner == "sshd" else "nothing that is understood", owner != "sshd"


def table(doors: Iterable[Door]) -> str:
    """The doors as a table for people: those that are alike in one row, those that are open first."""
    alike = defaultdict[tuple[str, ...], set[str]](set)
    for role, *door in doors:
        alike[(str(not door[-1]), *map(str, door[:-1]))].add(role)
    lines = ["| process | on | port | bound to | without the token |", "|---|---|---|---|---|"]
    for key, roles in sorted(alike.items()):
        _, owner, port, bound, says = key
        lines.append(f"| {owner} | {', '.join(sorted(roles))} | {port} | {bound} | {says} |")
    return "\n".join(lines)
