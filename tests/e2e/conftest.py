"""Searches as people run them: `hksd` as a process of its own, with a real Ray, a real store, real files."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from books import Facts

from hksd_search import cli

SPACE: dict[str, Any] = {
    "data": {"name": "digits", "limit": 400, "validation": 0.25},
    "teacher": {
        "model": "resnet8",
        "width": 0.5,
        "epochs": 3,
        "batch_size": 64,
        "attention": {"epochs": 1, "batch_size": 64},
    },
    "student": {"model": "resnet8", "width": {"choice": [0.25, 0.5]}},
    "terms": {
        "logits": {"weight": {"log_uniform": [0.5, 5]}},
        "squeeze": {"weight": {"log_uniform": [0.1, 1], "off": 0.3}, "depth": 1},
    },
    "train": {"epochs": 3, "batch_size": 64, "lr": {"log_uniform": [0.05, 0.2]}, "device": "cpu"},
    "search": {"trials": 5, "sampler": "random", "seed": 1, "arms": "none", "concurrent": 1},  # a worker is expensive
}
HKSD = Path(sys.executable).with_name("hksd")  # as it is installed: only so the working directory is not on the path
TRAP = "raise SystemExit('a file of the user hides a module: ' + __file__)\n"
MARK = "HKSD_TEST_PROCESS"


def descendants(mark: str) -> list[int]:
    """Processes that inherited a mark in their environment, wherever they hang in the tree of processes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                alive = (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
                if alive and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


@dataclass
class Program:
    """A command that was started, with everything that it starts.

    Attributes:
        process: the process, leader of a session and a process group of its own.
        mark: what all its descendants carry in their environment.
        begun: when it was started.
    """

    process: subprocess.Popen[str]
    mark: str
    begun: float = field(default_factory=time.monotonic)
    out: str = ""
    err: str = ""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def press_ctrl_c(self) -> None:
        """Send what a terminal sends: the signal goes to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self, timeout: float = 120) -> int:
        """Wait for its end; returns the exit code."""
        self.out, self.err = self.process.communicate(timeout=timeout)
        return self.process.returncode

    def wait_until(self, condition: Callable[[], bool], timeout: float = 90) -> None:
        """Wait for something to happen while it runs."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.end()
                raise AssertionError(f"it does not happen: {self.out}\n{self.err}")
            time.sleep(0.1)

    def processes(self) -> list[int]:
        """Numbers of itself and of all that it has started."""
        return [self.process.pid, *(pid for pid in descendants(self.mark) if pid != self.process.pid)]

    def left(self, seconds: float = 20, ignoring: str = "nothing") -> list[str]:
        """Names of what still runs some seconds after it ended."""
        deadline = time.monotonic() + seconds
        while True:
            names = []
            for pid in descendants(self.mark):
                with contextlib.suppress(OSError):
                    names.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()[:200])
            found = [name for name in names if ignoring not in name]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.1)

    def end(self) -> None:
        """Kill it and all that it started, by their numbers."""
        for pid in [*([self.process.pid] if self.process.poll() is None else []), *descendants(self.mark)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process.returncode is None:
            self.out, self.err = self.process.communicate()

    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        assert len(self.out.splitlines()) == 1, self.out
        found: dict[str, Any] = json.loads(self.out)
        return found


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Program]]:
    """start("search", ..., cwd=..): run `hksd` in a session of its own; whatever is left of it is killed at the end.

    `program` is another one than `hksd`. Further keywords are put into its environment.
    """
    programs: list[Program] = []

    def begin(*words: object, cwd: Path, program: object = HKSD, **environment: str) -> Program:
        mark = uuid.uuid4().hex
        clean = {**os.environ, "PYTHONUNBUFFERED": "1", MARK: mark}
        for name in ("HKSD_RUNS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
            clean.pop(name, None)
        process = subprocess.Popen(
            [str(program), *map(str, words)],
            cwd=cwd,
            env={**clean, **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        programs.append(Program(process, mark))
        return programs[-1]

    yield begin
    for program in programs:
        program.end()


@pytest.fixture(scope="module")
def hksd(start: Callable[..., Program]) -> Callable[..., Program]:
    """hksd("search", ..., cwd=..): run `hksd` to its end."""

    def run(*words: object, cwd: Path, **environment: str) -> Program:
        program = start(*words, cwd=cwd, **environment)
        program.wait()
        return program

    return run


@pytest.fixture(scope="session")
def lay_traps() -> Callable[..., None]:
    """lay_traps(folder): files of the user that are called like modules, and end who imports them.

    With `python_path=True` only those are left that Python itself does not take from a folder on its path.
    """

    def lay(folder: Path, python_path: bool = False) -> None:
        files = [folder / f"{name}.py" for name in ("search", "spaces", "hksd", "hksd_spaces")]
        files += [folder / name / "__init__.py" for name in ("tests", "hksd.d")]
        taken = [folder / f"{name}.py" for name in ("hksd_search", "yaml", "torch", "statistics")]
        taken += [folder / "optuna" / "__init__.py"]
        for file in (*files, *taken):
            file.parent.mkdir(exist_ok=True)
            file.write_text(TRAP)
        if python_path:
            for file in taken:
                file.unlink()
            (folder / "optuna").rmdir()

    return lay


@pytest.fixture
def inside(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """inside("status", ..., cwd=..): exit code and outputs of a command that needs no process of its own."""

    def run(*words: object, cwd: Path) -> tuple[int, str, str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["hksd", *map(str, words)])
        root = logging.getLogger()
        handlers = root.handlers[:]
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            root.handlers[:] = handlers
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def write_space() -> Callable[..., Path]:
    """write_space(file, train={..}): the small space, with sections changed."""

    def write(file: Path, **sections: dict[str, Any]) -> Path:
        tree = {name: {**SPACE.get(name, {}), **sections.get(name, {})} for name in {**SPACE, **sections}}
        file.write_text(yaml.safe_dump(tree, sort_keys=False))
        return file

    return write


@pytest.fixture(scope="session")
def facts() -> Callable[[Path, str], Facts]:
    """facts(runs, name): what study, store and folder say of a search."""
    return Facts
