"""Machines out of namespaces of the kernel (network, mounts, processes, host name), on a network of their own.

A machine has an address, a disk, memory file systems, processes and a host name of its own, and is reached by SSH like
any other. Its programs are those of the host, which it cannot write. It can lose its power, start again with the same
disk or with an empty one, and its cable can be cut. No way leads out of the network, and none into it.

Needs root, and no container engine. Everything goes when the process ends, however it ends (`guard`).
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import guard
from disk import Disk, Parts, User

HERE = Path(__file__).resolve().parent
PROJECT = "/project"  # where a machine has the project, if it does
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
Done = subprocess.CompletedProcess[str]
START_S = 30.0  # for a machine to let somebody in
_networks = itertools.count()


class Network:
    """A switch and the machines at it.

    Attributes:
        prefix: of the names of all its namespaces.
        folder: disks of its machines, and whatever else lives as long as it; removed at its end.
        machines: all that there are, by name.

    Args:
        address: of the switch, with the length of the network's prefix. No address beyond the network answers.
    """

    def __init__(self, address: str = "10.77.0.1/24"):
        guard.take_down_orphans()
        self.prefix = f"hk{os.getpid()}-{next(_networks)}-"
        self.bits = address.partition("/")[2]
        self.folder = guard.new_folder(self.prefix)
        self.machines: dict[str, Machine] = {}
        self.known: dict[str, str] = {}
        command = [sys.executable, "-I", str(HERE / "guard.py"), self.prefix]
        self._guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        self.share = guard.cpu_share(self.prefix)
        self.switch = self.namespace("sw")
        _ip("link", "add", "br0", "type", "bridge", namespace=self.switch)
        _ip("addr", "add", address, "dev", "br0", namespace=self.switch)
        _ip("link", "set", "br0", "up", namespace=self.switch)
        self.key = self.folder / "key"
        make_key(self.key)
        make_key(self.folder / "host_key")

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take everything down, and wait for it."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait(timeout=60)

    def namespace(self, name: str) -> str:
        """Make a network namespace; returns its full name."""
        full = self.prefix + name
        _ip("netns", "add", full)
        _ip("link", "set", "lo", "up", namespace=full)
        return full

    def machine(self, name: str, address: str, parts: Parts | None = None, public: str | None = None) -> Machine:
        """A new machine with an empty disk, switched on; see `Machine`."""
        self.known[name] = address
        made = Machine(self, name, address, public, parts or Parts())
        self.machines[name] = made
        made.start()
        return made


@dataclass
class Machine:
    """A machine at a network.

    Attributes:
        network: its network.
        name: its host name.
        address: its address.
        public: a second address that it is reached by, as in a cloud; None without.
        parts: what it sees of the file system, and who works there.
    """

    network: Network
    name: str
    address: str
    public: str | None = None
    parts: Parts = field(default_factory=Parts)

    def __post_init__(self) -> None:
        self.folder = self.network.folder / self.name
        self.disk = Disk(self.folder, self.parts, self.network.folder / "host_key")
        self.home, self.user = self.disk.home, self.parts.user
        self._power: subprocess.Popen[bytes] | None = None
        self._plug_in()

    def _plug_in(self) -> None:
        self.namespace = self.network.namespace(self.name)
        switch, bits = self.network.switch, self.network.bits
        self.cable = self.name[:15]  # the kernel takes no longer names
        ends = [self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.namespace]
        _ip("link", "add", *ends, namespace=switch)
        _ip("link", "set", self.cable, "master", "br0", "up", namespace=switch)
        _ip("addr", "add", f"{self.address}/{bits}", "dev", "eth0", namespace=self.namespace)
        if self.public:
            _ip("addr", "add", f"{self.public}/32", "dev", "eth0", namespace=self.namespace)
        _ip("link", "set", "eth0", "up", namespace=self.namespace)
        _ip("route", "add", "default", "dev", "eth0", "src", self.address, namespace=self.namespace)

    def start(self) -> None:
        """Switch it on, and wait until it lets somebody in; a machine that never ran gets its disk."""
        self.disk.format()
        self.disk.lay_out(self.network.known)
        words = ["bash", str(HERE / "boot.sh"), self.name, str(self.folder), "sshd" if self.parts.key else "quiet"]
        words = ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--uts", *words]
        self._power = subprocess.Popen(
            self._shared(["ip", "netns", "exec", self.namespace, "env", "-i", f"PATH={PATH}", *words]),
            stdin=subprocess.DEVNULL,
            stdout=(self.folder / "console").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._power.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not start: {(self.folder / 'console').read_text()}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        first = self._first()
        if first is None or not Path(f"/proc/{first}/root/run/booted").exists():
            return False
        if not self.parts.key:
            return True
        test = ["ip", "netns", "exec", self.network.switch, "bash", "-c", f"exec 3<>/dev/tcp/{self.address}/22"]
        return subprocess.run(test, capture_output=True).returncode == 0

    def kill(self) -> None:
        """Take its power away. Its connections end at once, as when a cloud takes back a machine; see also `cut`."""
        assert self._power is not None
        self._power.kill()
        self._power.wait()
        guard.kill_all(self.namespace)

    def reboot(self) -> None:
        """Power off and on: the same disk, and no process that ran before."""
        self.kill()
        self.start()

    def replace(self) -> None:
        """Put a fresh machine in its place: the same name and address, an empty disk."""
        self.kill()
        shutil.rmtree(self.folder)
        self.start()

    def remove(self) -> None:
        """End it for good, with its disk."""
        self.kill()
        _ip("netns", "del", self.namespace)
        shutil.rmtree(self.folder)
        del self.network.machines[self.name], self.network.known[self.name]

    def cut(self) -> None:
        """Cut its cable: nobody hears that it is gone."""
        _ip("link", "set", self.cable, "down", namespace=self.network.switch)

    def mend(self) -> None:
        """Mend its cable."""
        _ip("link", "set", self.cable, "up", namespace=self.network.switch)

    @property
    def on(self) -> bool:
        """Whether it has power."""
        return self._power is not None and self._power.poll() is None

    def popen(self, *words: object, root: bool = False, **how: Any) -> subprocess.Popen[str]:
        """Start a program there, by its user (or root), in the home, with an environment of its own."""
        user = User() if root else self.user
        inside = ["nsenter", "-t", str(self._first()), "-m", "-n", "-p", "-u"]
        inside += ["--setuid", str(user.number), "--setgid", str(user.number)]
        clean = ["env", "-i", "-C", user.home, f"HOME={user.home}", f"USER={user.name}", f"PATH={PATH}"]
        clean += ["TERM=xterm", "LANG=C.UTF-8"]
        command = self._shared([*inside, *clean, *map(str, words)])
        return subprocess.Popen(command, text=True, **{"stdin": subprocess.DEVNULL, **how})

    def run(self, *words: object, check: bool = True, timeout: float = 60, **how: Any) -> Done:
        """Run a program there to its end.

        Raises:
            AssertionError: it ended with another code than 0, and `check` says that it may not.
        """
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.popen(*words, **{**pipes, **how}) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                raise AssertionError(f"{words} on {self.name}: not through in {timeout} s: {out}\n{err}") from None
        done = subprocess.CompletedProcess(words, process.returncode, out, err)
        assert not check or done.returncode == 0, f"{words} on {self.name} ends with {done.returncode}: {out}\n{err}"
        return done

    def shell(self, command: str, **how: Any) -> Done:
        """Run a line in a login shell there, which has read `.bashrc` as that of `ray exec` has."""
        return self.run("bash", "-l", "-c", f". ~/.bashrc; {command}", **how)

    def processes(self) -> dict[int, str]:
        """Command lines of all its processes, by their numbers on the host."""
        found = {}
        for number in guard.processes(self.namespace):
            try:
                found[number] = Path(f"/proc/{number}/cmdline").read_text().replace("\0", " ").strip()
            except OSError:
                continue
        return found

    def signal(self, words: str, number: int = signal.SIGKILL) -> list[int]:
        """Send a signal to each of its processes whose command line has these words; returns their numbers."""
        hit = [process for process, line in self.processes().items() if words in line]
        for process in hit:
            os.kill(process, number)
        return hit

    def _first(self) -> int | None:
        """Number on the host of its process 1, the child of `unshare`."""
        assert self._power is not None
        for number in guard.processes(self.namespace):
            try:
                parent = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            if parent == self._power.pid:
                return number
        return None

    def _shared(self, command: Sequence[str]) -> list[str]:
        """A command that joins the group with the larger share of the CPU first."""
        if self.network.share is None:
            return list(command)
        return ["sh", "-c", 'echo $$ > "$0"; exec "$@"', str(self.network.share), *command]


def make_key(file: Path) -> None:
    """Make a pair of SSH keys, the public one beside it with .pub."""
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-m", "PEM", "-C", "test", "-f", str(file)]
    subprocess.run(words, check=True)


def _ip(*words: str, namespace: str = "") -> None:
    command = ["ip", *(["-n", namespace] if namespace else []), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
