"""A signal to the whole process group under commands beside `hksd search`: saved, said how to go on, nothing left."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hksd.fit import RESULT_FILE
from hksd.run.checkpoint import LAST

Make = Callable[..., Any]
SIGNALS = [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGHUP]
BUSY = 40  # seconds
RUN = {
    "data": {"name": "digits", "limit": 400, "validation": 0.25},
    "student": {"model": "resnet8", "width": 0.25},
    "terms": {"ce": {"weight": 1.0}},
    "train": {"epochs": 400, "batch_size": 16, "lr": 0.1, "device": "cpu"},
}


def must_have_stopped(program: Any, number: int) -> None:
    """Send a signal to the whole group and look at how it ends."""
    os.killpg(program.process.pid, number)
    assert program.wait(BUSY) == 130, program.err
    assert "Traceback" not in program.err + program.out
    assert program.left() == [], "processes are left"


def resume_command(said: str) -> list[str]:
    program, *words = shlex.split(said.split("Resume with:\n")[1].splitlines()[0])
    assert program == "hksd"
    return words


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_saves_and_goes_on_where_it_stood(number: int, tmp_path: Path, start: Make) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    checkpoint = tmp_path / "my run" / LAST
    program = start("train", "run.yaml", "--out", "my run", cwd=tmp_path)
    program.wait_until(checkpoint.exists)
    must_have_stopped(program, number)
    before = checkpoint.stat().st_mtime_ns
    again = start(*resume_command(program.err), cwd=tmp_path)
    again.wait_until(lambda: checkpoint.stat().st_mtime_ns > before)
    must_have_stopped(again, number)
    first, second = (int(one.err.split("stopped after ")[1].split()[0]) for one in (program, again))
    assert 0 < first < second, "it began anew"


@pytest.mark.parametrize("number", SIGNALS)
def test_an_estimate_leaves_nothing(number: int, tmp_path: Path, write_space: Make, start: Make) -> None:
    write_space(tmp_path / "space.yaml")
    own = tmp_path / "temporary"
    own.mkdir()
    program = start("estimate", "space.yaml", "--json", cwd=tmp_path, TMPDIR=str(own))
    program.wait_until(lambda: len(program.processes()) > 1)  # its workers
    must_have_stopped(program, number)
    assert program.json()["exit_code"] == 130
    assert not list(own.glob("hksd-*"))
    assert not (tmp_path / "runs" / "space").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_confirmation_saves_and_goes_on_where_it_stood(
    number: int, tmp_path: Path, write_space: Make, start: Make, hksd: Make
) -> None:
    write_space(
        tmp_path / "space.yaml",
        terms={"squeeze": {"weight": 0}},
        train={"epochs": 30, "batch_size": 16},
        search={"trials": 1, "scheduler": "none"},
    )
    assert hksd("search", "space.yaml", "--name", "one", cwd=tmp_path).process.returncode == 0
    folder = tmp_path / "runs" / "one" / "confirm"
    program = start("confirm", "one", "--seeds", "2", cwd=tmp_path)
    program.wait_until(lambda: any(folder.rglob(LAST)))
    must_have_stopped(program, number)
    assert not (folder / "confirm.json").exists()
    assert not list(folder.rglob(RESULT_FILE)), "nothing was in the middle"
    again = hksd(*resume_command(program.err), "--json", cwd=tmp_path)
    assert again.process.returncode == 0, again.err
    assert again.json()["trained_now"] == 2
    resumed = [json.loads(file.read_text())["resumed_at"] for file in folder.rglob(RESULT_FILE)]
    assert len(resumed) == 2
    assert any(resumed), "it began anew"
