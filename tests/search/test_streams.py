"""Standard streams that are closed, full, or lose their reader: the work goes on, and a result that is lost is said."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

HKSD = [sys.executable, "-m", "hksd_search.cli"]
WORK = """
import os, sys
from hksd_search import streams
streams.make_last()
from hksd_search.commands.output import Output
output = Output("--json" in sys.argv)
for line in range(200):
    output.console.print("line", line)
sys.stdout.flush()
os.write(int(sys.argv[1]), b"through")
output.give({}, lambda console: console.print("end"))
"""


def worked(stdout: int | IO[str], *words: str, closed: Callable[[], None] | None = None) -> tuple[str, int, str]:
    """What a process that prints for long says when it is through, its exit code, and its standard error."""
    ear, bell = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(bell), *words],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[bell],
        preexec_fn=closed,
    )
    os.close(bell)
    if stdout == subprocess.PIPE:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()  # as `| head -1` does
    with os.fdopen(ear) as said:
        heard = said.read()
    assert process.stderr is not None
    return heard, process.wait(60), process.stderr.read()


def test_work_goes_on_when_nobody_reads_any_more() -> None:
    assert worked(subprocess.PIPE) == ("through", 0, "")


def test_work_goes_on_when_the_disk_of_its_log_is_full() -> None:
    with Path("/dev/full").open("w") as full:
        assert worked(full) == ("through", 0, "")
        heard, code, error = worked(full, "--json")
    assert (heard, code) == ("through", 1)
    assert "cannot be written to standard output: No space left on device" in error


@pytest.mark.parametrize("numbers", [(0,), (1,), (0, 1)])
def test_a_process_without_standard_streams_works_and_gives_their_numbers_to_no_file(numbers: tuple[int, ...]) -> None:
    def close() -> None:
        for number in numbers:
            os.close(number)

    assert worked(subprocess.DEVNULL, closed=close) == ("through", 0, "")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full", "2> /dev/full", "| head -c 1"])
def test_no_command_ends_in_a_trace_for_want_of_a_stream(redirection: str) -> None:
    words = f"{' '.join(HKSD)} methods kd {redirection}"
    found = subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0
    assert "Traceback" not in found.stdout + found.stderr
    assert "Exception ignored" not in found.stderr
