"""Searches on a cluster, as small as they get, and what is seen of them while they run."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from doors import Door

SEARCH_S = 900.0
SMALL = (  # a search whose teacher and students are as small as they get
    "--arms none --set search.scheduler=none --set teacher.model=resnet8 --set teacher.epochs=3 "
    "--set teacher.min_accuracy=0.2 --set teacher.attention.epochs=1 "
    "--set student.model=resnet8 --set student.width=0.25"
)


class Search:
    """An `hksd` that runs on a node; what it says goes into a file."""

    def __init__(self, process: subprocess.Popen[str], output: Path):
        self.process, self.output, self.begun = process, output, time.monotonic()

    @property
    def text(self) -> str:
        """What it has said so far, on both of its streams."""
        return self.output.read_text(errors="replace")

    def wait(self, timeout: float = SEARCH_S) -> int:
        """Wait for its end; returns the exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"not through in {timeout} s:\n{self.text}") from None

    def must_end_well(self, timeout: float = SEARCH_S) -> None:
        """It ends with 0."""
        code = self.wait(timeout)
        assert code == 0, f"exit code {code}:\n{self.text}"

    def wait_until(self, condition: Callable[[], bool], timeout: float = SEARCH_S) -> None:
        """Wait for something to happen while it runs."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"it does not happen ({self.process.poll()}):\n{self.text}")
            time.sleep(0.2)


@dataclass(frozen=True)
class First:
    """What was seen of the first search of a cluster.

    Attributes:
        code: exit code of `ray exec`.
        text: what it said.
        places: names of the machines that were seen training a trial.
        doors: where all machines listened meanwhile.
    """

    code: int
    text: str
    places: set[str] = field(default_factory=set)
    doors: list[Door] = field(default_factory=list)
