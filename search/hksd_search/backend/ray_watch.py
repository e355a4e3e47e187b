"""When Ray itself dies: its library ends the driver without a word, 0.1 to 60 seconds later. We are faster.

A thread looks after the processes of a private Ray. When one without which nothing goes on is gone, it puts a new
process in the place of this one, which clears away the others (`backend.takeover`) and resumes the search: same number,
same terminal. That is as safe as a kill at any time, which a resume copes with anyway, and needs nothing of a library
in an unknown state. Where Ray is faster still, `backend.last_word` says how to go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import ray

from hksd_search import streams
from hksd_search.backend import last_word, private, takeover

NEEDED = ("raylet", "gcs_server")
AGENTS = {"ray::RuntimeEnvAgent": "runtime_env_agent", "ray::DashboardAgent": "dashboard_agent"}  # as Ray calls them
LOOK_EVERY = 0.1  # seconds
TRIES = 3  # restarts in a row without a finished epoch between them


def _processes() -> dict[str, list[Any]]:
    """Processes of the private Ray of this process by kind; none where it is connected to a cluster."""
    node = ray._private.worker._global_node  # no public way leads to them
    return {} if node is None else {k: [info.process for info in infos] for k, infos in node.all_processes.items()}


def dead() -> str | None:
    """Name of a process of Ray that has died and without which nothing goes on."""
    processes = _processes()
    return next((kind for kind in NEEDED if any(p.poll() is not None for p in processes.get(kind, ()))), None)


def _agents() -> dict[int, str]:
    """Numbers and names of the agents without which the raylet ends, and with it this process."""
    found: dict[int, str] = {}
    for raylet in _processes().get("raylet", ()):
        for file in Path(f"/proc/{raylet.pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for pid in map(int, file.read_text().split()):
                    name = Path(f"/proc/{pid}/comm").read_text().strip()
                    for agent in (AGENTS[one] for one in AGENTS if name and one.startswith(name)):
                        found[pid] = agent
    return found


class RayWatch:
    """Looks after Ray until it is closed.

    Args:
        restart: called with the name of what died and with `stopping`; does not return.
        stopping: whether the search is being stopped; then only its books are closed.
    """

    def __init__(self, restart: Callable[[str, Callable[[], bool]], NoReturn], stopping: Callable[[], bool]):
        self.restart, self.stopping = restart, stopping
        self._over, self._turn = threading.Event(), threading.Lock()
        self._ends: dict[int, str] = {}  # descriptors that become readable when a process ends, and its name
        threading.Thread(target=self._look, name="ray watch", daemon=True).start()

    def _look(self) -> None:
        known: set[int] = set()
        needed = {p.pid: kind for kind in NEEDED for p in _processes().get(kind, ())}
        while not self._over.is_set():
            if len(known) < len(needed) + len(AGENTS) and hasattr(os, "pidfd_open"):  # they begin after the raylet
                for pid, name in {**needed, **_agents()}.items():
                    if pid not in known:
                        with contextlib.suppress(OSError):
                            self._ends[os.pidfd_open(pid)] = name
                        known.add(pid)
            select.select(list(self._ends), [], [], LOOK_EVERY)  # Ray's library is about to end this process: be first
            self.check()

    def check(self) -> None:
        """Act if something has died; returns while all live, and never where another thread restarts."""
        with self._turn:
            if self._over.is_set():
                return
            ended = select.select(list(self._ends), [], [], 0)[0]
            if name := dead() or next((self._ends[end] for end in ended), None):
                self.restart(name, self.stopping)

    def close(self) -> None:
        """Ray is about to be ended on purpose."""
        with self._turn:
            self._over.set()
            for end in self._ends:
                os.close(end)
            self._ends = {}


class Restart:
    """Resumes the search in the place of this process.

    Args:
        command: what a user would type to resume, ``hksd search ...``.
        extra: options that do not belong on the screen.
        secrets: what only the environment of the new process has; it stands in no command.
        heard: whether a signal has come that this process may not have acted on yet; the new one would not know of it.
    """

    def __init__(
        self,
        command: str,
        extra: Sequence[str],
        secrets: Mapping[str, str] | None = None,
        heard: Callable[[], bool] = lambda: False,
    ):
        self.command, self.extra, self.secrets, self.heard = command, extra, secrets or {}, heard
        self.count = int(os.environ.get(takeover.COUNT, "0"))

    def progress(self, *_: object) -> None:
        """A trial has finished an epoch."""
        self.count = 0

    def __call__(self, died: str, stopping: Callable[[], bool] = lambda: False) -> NoReturn:
        """See the class; ends with exit code 1 where that was tried too often.

        Args:
            died: name of the process.
            stopping: whether the search is being stopped: the new process then closes its books, and ends as this one
                would have.
        """
        signal.setitimer(signal.ITIMER_REAL, 0)  # it would outlive this process, and end the new one
        left = [process.pid for processes in _processes().values() for process in processes]
        over = stopping()
        if not over and self.count >= TRIES:
            node = ray._private.worker._global_node
            self._give_up(
                f"Ray died ({died}), {self.count + 1} times in a row before a trial finished an epoch "
                f"(logs: {node.get_logs_dir_path() if node else 'none'}). Everything is saved. Resume with:\n  "
                f"{self.command}",
                left,
            )
        program = ["-m", "hksd_search.cli"] if sys.argv[0].endswith("cli.py") else [sys.argv[0]]
        words = [sys.executable, *program, *shlex.split(self.command)[1:], *self.extra]
        signal.pthread_sigmask(signal.SIG_BLOCK, private.DEAF_TO)  # what comes now is kept for the new process
        try:
            left += last_word.hand_on()
            told = takeover.environment(died, left, self.count + 1, over or self.heard())
            streams.mute_dead()
            sys.stdout.flush()
            sys.stderr.flush()
            os.execve(sys.executable, words, {**os.environ, **self.secrets, **told})
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, private.DEAF_TO)

    def _give_up(self, text: str, left: Sequence[int]) -> NoReturn:
        last_word.take_back()
        print(f"failed: {text}", file=sys.stderr, flush=True)
        if "--json" in self.extra:
            print(json.dumps({"error": text, "exit_code": 1}), flush=True)
        takeover.end(set(left))
        os._exit(1)  # the main thread may wait for Ray for ever
