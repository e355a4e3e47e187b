"""When Ray itself dies: its library ends the driver without a word, 10 to 60 seconds later. We are faster.

A thread looks after the processes of a private Ray. When one without which nothing goes on is gone, it clears away the
others and puts in the place of this process a new one that resumes the search: same number, same terminal. That is as
safe as a kill at any time, which a resume copes with anyway, and needs nothing of a library in an unknown state.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import ray

NEEDED = ("raylet", "gcs_server")
LOOK_EVERY = 0.1  # seconds
TRIES = 3  # restarts in a row without a finished epoch between them
COUNT = "HKSD_RAY_RESTARTS"  # environment variable: such restarts so far


def _processes() -> dict[str, list[Any]]:
    """Processes of the private Ray of this process by kind; none where it is connected to a cluster."""
    node = ray._private.worker._global_node  # no public way leads to them
    return {} if node is None else {k: [info.process for info in infos] for k, infos in node.all_processes.items()}


def dead() -> str | None:
    """Name of a process of Ray that has died and without which nothing goes on."""
    processes = _processes()
    return next((kind for kind in NEEDED if any(p.poll() is not None for p in processes.get(kind, ()))), None)


class RayWatch:
    """Looks after Ray until it is closed.

    Args:
        restart: called with the name of what died; does not return.
        stopping: whether the search is being stopped; then nothing is restarted, and the wait for its trials ends.
    """

    def __init__(self, restart: Callable[[str], NoReturn], stopping: Callable[[], bool]):
        self.restart, self.stopping = restart, stopping
        self._over, self._turn = threading.Event(), threading.Lock()
        threading.Thread(target=self._look, name="ray watch", daemon=True).start()

    def _look(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            self.check()

    def check(self) -> None:
        """Act if something has died; returns while all live, and never where another thread restarts."""
        with self._turn:
            if self._over.is_set() or not (name := dead()):
                return
            if not self.stopping():
                self.restart(name)
            self._over.set()
            os.kill(os.getpid(), signal.SIGALRM)  # see `hksd_search.interrupt.Interrupt`

    def close(self) -> None:
        """Ray is about to be ended on purpose."""
        with self._turn:
            self._over.set()


class Restart:
    """Resumes the search in the place of this process.

    Args:
        command: what a user would type to resume, ``hksd search ...``.
        extra: options that do not belong on the screen.
        say: shows people a line.
        secrets: what only the environment of the new process has; it stands in no command.
    """

    def __init__(
        self,
        command: str,
        extra: Sequence[str],
        say: Callable[[str], None],
        secrets: Mapping[str, str] | None = None,
    ):
        self.command, self.extra, self.say, self.secrets = command, extra, say, secrets or {}
        self.count = int(os.environ.get(COUNT, "0"))

    def progress(self, *_: object) -> None:
        """A trial has finished an epoch."""
        self.count = 0

    def __call__(self, died: str) -> NoReturn:
        """See the class; ends with exit code 1 where that was tried too often."""
        node = ray._private.worker._global_node
        logs = node.get_logs_dir_path() if node else "none"
        for process in (process for processes in _processes().values() for process in processes):
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                process.kill()
                process.wait(timeout=5)
        if self.count >= TRIES:
            self._give_up(
                f"Ray died ({died}), {self.count + 1} times in a row before a trial finished an epoch (logs: {logs}). "
                f"Everything is saved. Resume with:\n  {self.command}"
            )
        self.say(f"Ray died ({died}); it is started again, and trials go on from their last checkpoints")
        sys.stdout.flush()
        sys.stderr.flush()
        program = ["-m", "hksd_search.cli"] if sys.argv[0].endswith("cli.py") else [sys.argv[0]]
        words = [sys.executable, *program, *shlex.split(self.command)[1:], *self.extra]
        os.execve(sys.executable, words, {**os.environ, **self.secrets, COUNT: str(self.count + 1)})

    def _give_up(self, text: str) -> NoReturn:
        print(f"failed: {text}", file=sys.stderr, flush=True)
        if "--json" in self.extra:
            print(json.dumps({"error": text, "exit_code": 1}), flush=True)
        os._exit(1)  # the main thread may wait for Ray for ever
