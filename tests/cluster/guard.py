"""What takes machines down: their processes, network namespaces, CPU share and files.

As a program (``guard.py PREFIX``) it waits for the end of its standard input, which comes with the end of the
process that started it however that ends, and then takes down whatever carries the prefix. It knows nothing but the
standard library.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FAMILY = re.compile(r"hk(\d+)-\d+-")  # how all names begin, with the process that made them
ROOMS = (Path("/dev/shm"), Path(tempfile.gettempdir()))  # where folders may be, the faster one first
ROOM_BYTES = 2 * 2**30  # that the faster one must have
SHARES = [(Path("/sys/fs/cgroup/cpu"), "cpu.shares", 8192), (Path("/sys/fs/cgroup"), "cpu.weight", 800)]  # v1, v2
PATIENCE_S = 10.0  # for killed processes to be gone


def namespaces(prefix: str = "hk") -> list[str]:
    """Names of the network namespaces that begin with a prefix."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listed.splitlines() if line.startswith(prefix)]


def processes(namespace: str) -> list[int]:
    """Numbers of the processes in a network namespace."""
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True).stdout
    return [int(number) for number in listed.split()]


def kill_all(namespace: str) -> None:
    """Kill every process in a network namespace, and wait until they are gone."""
    deadline = time.monotonic() + PATIENCE_S
    while (there := processes(namespace)) and time.monotonic() < deadline:
        for number in there:
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def cpu_share(prefix: str) -> Path | None:
    """Make a group of processes with a larger share of the CPU than others have; None where that is not allowed.

    Ray's raylet gives up after 15 s without its agent, which happens on a machine that does other work.
    """
    for root, file, weight in SHARES:
        group = root / prefix.rstrip("-")
        if not (root / "cgroup.procs").exists():
            continue
        try:
            group.mkdir(exist_ok=True)
            (group / file).write_text(str(weight))
            return group / "cgroup.procs"
        except OSError:
            _remove_group(group)
    return None


def _remove_group(group: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while group.exists() and time.monotonic() < deadline:
        try:
            group.rmdir()
        except OSError:  # killed processes are still in it
            time.sleep(0.05)


def new_folder(prefix: str) -> Path:
    """Make a folder for machines: in memory if there is room, for many databases at once wait long for one disk."""
    memory, disk = ROOMS
    try:
        found = os.statvfs(memory)
        fast = found.f_bavail * found.f_frsize > ROOM_BYTES and not found.f_flag & os.ST_NOEXEC
    except OSError:
        fast = False
    return Path(tempfile.mkdtemp(prefix=prefix, dir=memory if fast else disk))


def take_down(prefix: str) -> None:
    """Take down what carries a prefix."""
    names = namespaces(prefix)
    for name in names:
        kill_all(name)
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    for root, _, _ in SHARES:
        _remove_group(root / prefix.rstrip("-"))
    for folder in (folder for room in ROOMS for folder in room.glob(f"{prefix}*")):
        shutil.rmtree(folder, ignore_errors=True)


def take_down_orphans() -> None:
    """Take down what processes have left that are gone, with their guards."""
    names = [*namespaces(), *(folder.name for room in ROOMS for folder in room.glob("hk*"))]
    for found in {match[0]: match for name in names if (match := FAMILY.match(name))}.values():
        if not Path(f"/proc/{found[1]}").exists():
            take_down(found[0])


def main() -> None:
    """Wait for the end of the process that started this one."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    take_down(sys.argv[1])


if __name__ == "__main__":
    main()
