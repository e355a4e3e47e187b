"""A machine that is about to go away says SIGTERM: a search and a run save inside their epoch and leave in time."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hksd import provenance
from hksd.fit import RESULT_FILE, WEIGHTS_FILE
from hksd.run import checkpoint, loop
from hksd_search.backend.stop_file import STOP_FILE
from hksd_search.interrupt import GRACE

Make = Callable[..., Any]
IN_TIME = 20  # seconds
BATCH, STEPS = 5, 60  # of an epoch of 300 images
# Its training steps take as long as the file next to it says, for as long as that file is there; each process that
# takes some leaves a file too.
NETWORK = """
import os, time
from pathlib import Path
from torch import nn

class Slow(nn.Module):
    def forward(self, images):
        pause = Path(__file__).with_name("pause")
        if self.training and len(images) == 5 and pause.exists():
            pause.with_name(f"stepped-{os.getpid()}").touch()
            time.sleep(float(pause.read_text()))
        return images

def net(num_classes, in_channels):
    layers = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(Slow(), layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""


@pytest.fixture
def place(tmp_path: Path, write_space: Make) -> Path:
    """Working directory with a space of two trials and a network whose epochs take 36 seconds."""
    (tmp_path / "slow.py").write_text(NETWORK)
    (tmp_path / "pause").write_text("0.6")
    write_space(
        tmp_path / "space.yaml",
        teacher={"epochs": 1},
        student={"model": "slow:net", "width": 1.0, "taps": ["1"]},
        terms={"squeeze": {"weight": 0}},
        train={"epochs": 2, "batch_size": BATCH, "precision": "float32"},
        search={"trials": 2, "scheduler": "none", "concurrent": 2},
    )
    return tmp_path


def stepping(place: Path) -> int:
    """Number of processes that are past the beginning of their first step."""
    return len(list(place.glob("stepped-*")))


def states(folder: Path) -> list[dict[str, Any]]:
    """The newest checkpoint of every trial that has one."""
    return [checkpoint.read(path) for path in sorted(folder.glob(f"trials/*/{checkpoint.LAST}"))]


def same_weights(one: Path, two: Path) -> bool:
    first, second = (load_file(folder / WEIGHTS_FILE) for folder in (one, two))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def train_anew(hksd: Make, run: Path, out: Path, place: Path) -> dict[str, Any]:
    """Repeat a run in one go, from its configuration."""
    program = hksd("train", run / loop.CONFIG_FILE, "--out", out, "--runs", "again", "--json", cwd=place)
    assert program.process.returncode == 0, program.err
    found: dict[str, Any] = program.json()
    return found


def test_a_search_that_gets_sigterm_saves_its_trials_inside_their_epochs_and_leaves_in_time(
    place: Path, start: Make, facts: Make
) -> None:
    folder = place / "runs" / "spot"
    command = "search", "space.yaml", "--name", "spot"
    program = start(*command, cwd=place)
    program.wait_until(lambda: stepping(place) == 2)
    program.process.send_signal(signal.SIGTERM)
    assert program.wait(IN_TIME) == 130, program.err
    assert "Traceback" not in program.err
    assert "Resume with:\n  hksd search" in program.err
    assert "finishes its step" in program.out
    assert program.left() == [], "processes are left"
    stopped = facts(place / "runs", "spot")
    stopped.must_agree()
    assert [record.status for record in stopped.records] == ["interrupted"] * 2
    steps = [state["tally"]["steps"] for state in states(folder)]
    assert len(steps) == 2
    assert all(0 < step < STEPS for step in steps)

    (place / "pause").unlink()
    again = start(*command, "--resume", "--json", cwd=place)
    assert again.wait() == 0, again.err
    assert not (folder / STOP_FILE).exists()
    finished = facts(place / "runs", "spot")
    finished.must_agree()
    assert [record.status for record in finished.records] == ["complete"] * 2
    for record, step in zip(finished.records, steps, strict=True):
        trial = folder / "trials" / f"{record.number:03d}"
        result = json.loads((trial / RESULT_FILE).read_text())
        assert (result["resumed_at"], result["resumed_step"]) == (0, step)
    for where in (folder, trial):
        origin = json.loads((where / provenance.FILE).read_text())
        assert origin["data"]["fingerprint"] == result["data_fingerprint"]
        assert len(origin["sessions"]) == 2


@pytest.mark.slow
def test_a_search_whose_trials_do_not_come_to_an_end_of_their_step_leaves_in_time_too(
    place: Path, start: Make, facts: Make
) -> None:
    (place / "pause").write_text(str(GRACE + 60))
    program = start("search", "space.yaml", "--name", "stuck", cwd=place)
    program.wait_until(lambda: stepping(place) == 2)
    program.process.send_signal(signal.SIGTERM)
    assert program.wait(IN_TIME) == 130, program.err
    assert "Traceback" not in program.err
    assert program.left() == [], "processes are left"
    stopped = facts(place / "runs", "stuck")
    stopped.must_agree()
    assert [record.status for record in stopped.records] == ["interrupted"] * 2


@pytest.mark.slow
def test_sigterm_while_the_teacher_trains_ends_a_search_in_time(place: Path, start: Make) -> None:
    change = "--set", "teacher.epochs=2000", "--set", "teacher.batch_size=1"
    program = start("search", "space.yaml", "--name", "early", *change, cwd=place)
    program.wait_until(lambda: (place / "runs" / "early" / "space.yaml").exists())
    program.process.send_signal(signal.SIGTERM)
    assert program.wait(IN_TIME) == 130, program.err
    assert "Resume with:\n  hksd search" in program.err
    assert program.left() == [], "processes are left"


def test_a_single_run_is_saved_after_its_step_and_the_printed_command_continues_it(
    place: Path, start: Make, hksd: Make
) -> None:
    tree = yaml.safe_load((place / "space.yaml").read_text())
    del tree["search"]
    tree |= {"terms": {"ce": {}}, "train": {**tree["train"], "lr": 0.1}}
    (place / "my run.yaml").write_text(yaml.safe_dump(tree))
    program = start("train", "my run.yaml", "--out", "out/1", "--seed", 3, cwd=place)
    program.wait_until(lambda: stepping(place) == 1)
    program.process.send_signal(signal.SIGTERM)
    assert program.wait(IN_TIME) == 130, program.err
    assert "Traceback" not in program.err
    (state,) = [checkpoint.read(path) for path in place.glob(f"out/1/{checkpoint.LAST}")]
    assert 0 < state["tally"]["steps"] < STEPS
    (place / "pause").unlink()
    words = shlex.split(program.err.split("Resume with:\n")[1])
    assert words[:2] == ["hksd", "train"]
    again = hksd(*words[1:], "--json", cwd=place)
    assert again.process.returncode == 0, again.err
    assert again.json()["resumed_step"] == state["tally"]["steps"]
    whole = train_anew(hksd, place / "out" / "1", place / "whole", place)
    assert whole["val_accuracy"] == again.json()["val_accuracy"]
    assert same_weights(place / "whole", place / "out" / "1")


def test_a_single_run_without_a_folder_says_that_nothing_was_kept(place: Path, start: Make) -> None:
    tree = {"data": {"name": "digits"}, "student": {"model": "slow:net"}, "terms": {"ce": {}}}
    (place / "run.yaml").write_text(yaml.safe_dump({**tree, "train": {"epochs": 2, "batch_size": BATCH}}))
    program = start("train", "run.yaml", cwd=place)
    program.wait_until(lambda: stepping(place) == 1)
    program.press_ctrl_c()
    assert program.wait(IN_TIME) == 130, program.err
    assert "nothing was kept" in program.err
    assert "--out" in program.err
    assert "Traceback" not in program.err
