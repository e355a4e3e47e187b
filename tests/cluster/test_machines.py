"""The machines themselves: what they keep, what they lose, and that nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import guard
import pytest
from disk import Parts, User
from machines import Machine, Network

pytestmark = pytest.mark.cluster

LEAVE = """
import signal, sys
sys.path.insert(0, {folder!r})
from machines import Network
network = Network("10.99.0.1/24")
network.machine("alone", "10.99.0.2").popen("sleep", "1000")
print(network.prefix, network.folder, flush=True)
signal.pause()
"""


@pytest.fixture(scope="module")
def pair(allowed: None) -> Iterator[tuple[Machine, Machine]]:
    """Two machines at one network: the first opens to the key that the second has."""
    with Network("10.88.0.1/24") as network:
        key = network.key.with_suffix(".pub").read_text()
        first = network.machine("first", "10.88.0.2", Parts(key=key, user=User("somebody", 1000)))
        config = "StrictHostKeyChecking accept-new\nIdentityFile ~/.ssh/id\n"
        files = {".ssh/id": network.key.read_text(), ".ssh/config": config}
        yield first, network.machine("second", "10.88.0.3", Parts(files=files))


def test_a_machine_lets_in_who_has_its_key_and_has_a_name_and_a_user_of_its_own(pair: tuple[Machine, Machine]) -> None:
    _, second = pair
    done = second.run("ssh", "somebody@first", "hostname; whoami; pwd")
    assert done.stdout.split() == ["first", "somebody", "/home/somebody"]
    assert second.run("ssh", "root@first", "true", check=False).returncode != 0


def test_a_machine_sees_neither_the_processes_nor_the_files_nor_the_network_of_its_host(
    pair: tuple[Machine, Machine], tmp_path: Path
) -> None:
    first, second = pair
    process = first.popen("sleep", "77")
    assert "77" not in second.run("bash", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
    process.kill()
    assert first.run("ls", str(tmp_path), check=False).returncode != 0
    assert first.run("touch", "/usr/written", root=True, check=False).returncode != 0
    links = first.run("ls", "/sys/class/net").stdout.split()
    assert sorted(links) == ["eth0", "lo"]


def test_a_machine_that_starts_again_has_its_disk_and_nothing_else_of_before(pair: tuple[Machine, Machine]) -> None:
    first, _ = pair
    first.run("bash", "-c", "echo kept > disk; echo lost > /tmp/memory; sleep 1000 </dev/null >/dev/null 2>&1 &")
    first.reboot()
    assert first.run("cat", "disk").stdout == "kept\n"
    assert first.run("ls", "/tmp").stdout == ""
    assert not [line for line in first.processes().values() if line.startswith("sleep 1000")]
    first.replace()
    assert first.run("ls").stdout == ""


def test_a_cut_cable_keeps_everybody_away_until_it_is_mended(pair: tuple[Machine, Machine]) -> None:
    first, second = pair
    knock = ["timeout", "2", "bash", "-c", "exec 3<>/dev/tcp/first/22"]
    first.cut()
    assert second.run(*knock, check=False).returncode != 0
    first.mend()
    assert second.run(*knock).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_nothing_is_left_of_a_process_that_made_machines_and_was_killed(allowed: None, number: int) -> None:
    code = LEAVE.format(folder=str(Path(__file__).parent))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    prefix, folder = process.stdout.readline().split()
    assert any(guard.processes(name) for name in guard.namespaces(prefix))
    os.kill(process.pid, number)
    process.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while (guard.namespaces(prefix) or Path(folder).exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert guard.namespaces(prefix) == [] and not Path(folder).exists()
    assert not [entry for entry in Path("/proc").glob("[0-9]*/cmdline") if prefix in _text(entry)]


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
