"""Servers that benchmarks of tracking start for themselves, on loopback: MLflow's own, and PostgreSQL below it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE_S = 120.0  # for a server to answer


def free_port() -> int:
    """A port of loopback at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A program that runs until it is ended, with all processes that it starts."""

    def __init__(self, words: Sequence[str], log: Path, environment: dict[str, str] | None = None):
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                words,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                cwd=log.parent,
            )

    def wait_for(self, answers: Callable[[], bool]) -> None:
        """Wait until it answers.

        Raises:
            SystemExit: it has ended, or does not.
        """
        end = time.monotonic() + PATIENCE_S
        while not answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{self.process.args!r} does not run:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.1)

    def processor_seconds(self) -> float:
        """Processor time of its living processes (Linux)."""
        spent = 0.0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:  # the name of a process, in brackets, may hold spaces
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.process.pid:  # its session
                spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return spent

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End all of its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)
        self.process.wait()


@contextmanager
def mlflow_server(store: str, folder: Path) -> Iterator[tuple[str, Server]]:
    """An MLflow server with one worker over a store; gives its address."""
    port = free_port()
    words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    words += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = Server(words, folder / "server.log", quiet)

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    try:
        server.wait_for(answers)
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.kill()


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """A PostgreSQL server with an empty database, reached without a password on loopback; gives its address.

    It refuses to run as root, and is then run as the user `postgres`.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    here = shutil.which("initdb")
    if not programs and here is None:
        raise SystemExit("--store postgresql needs PostgreSQL's programs (Debian: apt-get install postgresql)")
    place, port, user = programs[-1] if programs else Path(str(here)).parent, free_port(), []
    data = folder / "postgresql"
    data.mkdir()
    if os.geteuid() == 0:
        entry = pwd.getpwnam("postgres")
        user = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
        os.chown(data, entry.pw_uid, entry.pw_gid)
        for parent in (folder, *folder.parents):
            if not parent.stat().st_mode & 0o001:
                raise SystemExit(f"{parent} is closed to the user postgres; give another --folder")
    words = [*user, str(place / "initdb"), "-D", str(data), "-U", "hksd", "-A", "trust", "--no-sync"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd="/")
    words = [*user, str(place / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", ""]
    server = Server(words, folder / "postgresql.log")
    ready = [str(place / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
    try:
        server.wait_for(lambda: not subprocess.run(ready, stdout=subprocess.DEVNULL).returncode)
        yield f"postgresql+psycopg2://hksd@127.0.0.1:{port}/postgres"
    finally:
        server.kill(signal.SIGINT)  # its quick end
