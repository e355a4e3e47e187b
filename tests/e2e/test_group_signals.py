"""A signal to everything at once, as systemd, a batch system or a terminal that is closed sends it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hksd.errors import UserError
from hksd_search.study.records import Record, read_records

Make = Callable[..., Any]
EPOCHS = 100
BUSY = 40  # seconds; 20 are meant, on a machine that has nothing else to do


def records(folder: Path) -> list[Record]:
    with contextlib.suppress(UserError, KeyError):
        return read_records(folder)
    return []


@pytest.fixture
def place(tmp_path: Path, write_space: Make) -> Path:
    write_space(
        tmp_path / "space.yaml",
        teacher={"epochs": 1},
        terms={"squeeze": {"weight": 0}},
        train={"epochs": EPOCHS, "batch_size": 16},
        search={"trials": 3, "scheduler": "none"},
    )
    return tmp_path


def training(folder: Path) -> bool:
    return any(record.status == "running" and record.epoch >= 2 for record in records(folder))


def begun(folder: Path) -> bool:
    return bool(records(folder))


def must_have_stopped_well(program: Any, place: Path, facts: Make) -> None:
    assert program.wait(BUSY) == 130, program.err
    assert "Traceback" not in program.err
    assert "Resume with:\n  hksd search all --resume" in program.err
    assert program.left() == [], "processes are left"
    found = facts(place / "runs", "all")
    found.must_agree()
    assert {record.status for record in found.records} == {"interrupted"}
    assert found.parent.info.status == "KILLED"
    assert (found.folder / "trials.csv").exists()


def test_sigterm_to_every_process_saves_and_closes_the_books(place: Path, start: Make, facts: Make) -> None:
    program = start("search", "space.yaml", "--name", "all", cwd=place)
    program.wait_until(lambda: training(place / "runs" / "all"))
    for pid in program.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    must_have_stopped_well(program, place, facts)
    assert "finishes its step" in program.out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_saves_and_closes_the_books(
    number: int, place: Path, start: Make, facts: Make
) -> None:
    program = start("search", "space.yaml", "--name", "all", cwd=place)
    program.wait_until(lambda: training(place / "runs" / "all"))
    os.killpg(program.process.pid, number)
    must_have_stopped_well(program, place, facts)


@pytest.mark.slow
def test_a_cluster_that_dies_under_a_search_that_is_being_stopped_is_not_waited_for(
    place: Path, start: Make, facts: Make
) -> None:
    program = start("search", "space.yaml", "--name", "all", cwd=place)
    program.wait_until(lambda: training(place / "runs" / "all"))
    _, *others = program.processes()
    program.process.send_signal(signal.SIGTERM)
    for pid in others:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    must_have_stopped_well(program, place, facts)


def below(pid: int) -> list[int]:
    """Processes below one, by their parents: an agent of Ray writes its name over its environment."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, file.read_text().split()):
                found += [child, *below(child)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("moment", [begun, training], ids=["at the start", "in the middle"])
@pytest.mark.parametrize(("part", "called"), [("RuntimeEnvAgent", "runtime_env_agent"), ("raylet", "raylet")])
def test_a_part_of_ray_that_dies_does_not_end_the_search(
    part: str, called: str, moment: Callable[[Path], bool], place: Path, start: Make
) -> None:
    """At the start Ray ends the driver within 80 ms of the death of an agent: it misses its images in the store."""
    program = start("search", "space.yaml", "--name", "all", "--set", "train.epochs=10", "--json", cwd=place)
    program.wait_until(lambda: moment(place / "runs" / "all"))
    found: list[int] = []

    def there() -> bool:
        for pid in below(program.process.pid):
            with contextlib.suppress(OSError):
                if part in Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]:
                    found.append(pid)
        return bool(found)

    program.wait_until(there)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    assert program.wait(200) == 0, program.err
    assert f"Ray died ({called}); it is started again" in program.err
    assert program.json()["trials"]["complete"] == 3


@pytest.mark.slow
def test_a_terminal_that_is_closed_ends_a_search_well_though_nobody_reads_what_it_says(
    place: Path, facts: Make
) -> None:
    controller, terminal = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [Path(sys.executable).with_name("hksd"), "search", "space.yaml", "--name", "all"],
        cwd=place,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        preexec_fn=own_terminal,
    )
    os.close(terminal)
    os.set_blocking(controller, False)
    deadline = time.monotonic() + 120
    while not training(place / "runs" / "all"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError):
            os.read(controller, 65536)
        time.sleep(0.1)
    os.close(controller)
    try:
        assert process.wait(BUSY) == 130
    finally:
        process.kill()
    found = facts(place / "runs", "all")
    found.must_agree()
    assert {record.status for record in found.records} == {"interrupted"}
    assert json.loads((found.folder / "search.json").read_text())["ended"] == "interrupted"
