"""The batch script for Slurm, really run: Ray, workers and a search; Slurm's own programs are imitated."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hksd_search.cluster import files
from hksd_search.study.reading import open_search

BATCH = 5
NETWORK = f"""
import os, time
from pathlib import Path
from torch import nn

class Slow(nn.Module):
    def forward(self, images):
        pause = Path(__file__).with_name("pause")
        if self.training and len(images) == {BATCH} and pause.exists():
            pause.with_name(f"stepped-{{os.getpid()}}").touch()
            time.sleep(0.6)
        return images

def net(num_classes, in_channels):
    layers = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(Slow(), layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""
# They write down what they were asked. A step runs on this machine, as if on a node of its own.
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$ASKED"
case "$1 $2" in "show hostnames") printf 'n1\\nn2\\n';; esac
"""
SRUN = """#!/bin/bash
echo "srun $*" >> "$ASKED"
while [[ $1 == --* ]]; do shift; done
SLURM_JOB_ID=$SLURM_JOB_ID-2 exec "$@"
"""
USUAL_PORTS = (6379, 8265, 10001, 44217, 44227, 52365)  # of Ray, which another job on the node may have
JOB = "4242"


@pytest.fixture
def usual_ports_taken() -> Iterator[None]:
    with contextlib.ExitStack() as held:
        for port in USUAL_PORTS:
            with contextlib.suppress(OSError):  # then they are taken already
                held.enter_context(socket.create_server(("", port)))
        yield


@pytest.fixture
def place(tmp_path: Path, write_space: Callable[..., Path]) -> Path:
    """The folder that a job is submitted from, with the script, and a search whose epochs take 36 seconds."""
    (tmp_path / "slow.py").write_text(NETWORK)
    (tmp_path / "pause").touch()
    write_space(
        tmp_path / "space.yaml",
        teacher={"epochs": 1},
        student={"model": "slow:net", "width": 1.0, "taps": ["1"]},
        terms={"squeeze": {"weight": 0}},
        train={"epochs": 2, "batch_size": BATCH, "precision": "float32"},
        search={"trials": 3, "scheduler": "none", "concurrent": 2},
    )
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    text = files.compose(
        "slurm", files.Asked(name="first", space="./space.yaml", shared=str(tmp_path / "runs")), tmp_path, "3.11.7"
    )
    (tmp_path / "job.sh").write_text(text)
    return tmp_path


@pytest.fixture
def submit(place: Path, start: Callable[..., Any]) -> Callable[..., Any]:
    """submit(..): what sbatch starts on the first node."""
    environment = {
        "PATH": f"{place / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "ASKED": str(place / "asked"),
        "SLURM_JOB_ID": JOB,
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_CPUS_PER_TASK": "1",
    }
    return lambda *words, **more: start(place / "job.sh", *words, cwd=place, program="bash", **(environment | more))


def secrets_open_to_others(place: Path) -> list[Path]:
    return [path for path in (place / "runs" / ".slurm").rglob("*") if path.stat().st_mode & 0o077]


@pytest.mark.usefixtures("usual_ports_taken")
def test_a_job_whose_time_is_over_saves_goes_into_the_queue_again_and_ends_its_search(
    place: Path, submit: Callable[..., Any]
) -> None:
    job = submit("--trials", "2")
    job.wait_until(lambda: len(list(place.glob("stepped-*"))) == 2, timeout=240)  # a trial on each node
    assert secrets_open_to_others(place) == []
    (token,) = (place / "runs" / ".slurm").rglob("auth_token")
    assert re.fullmatch("[0-9a-f]{64}", secret := token.read_text())
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [command for command in commands if secret.encode() in command]
    job.process.send_signal(signal.SIGTERM)  # to the batch script alone, as #SBATCH --signal=B:TERM asks
    assert job.wait(timeout=240) == 130, job.err
    assert job.left() == []
    assert not token.exists()
    assert "--nodes=1 --ntasks=1 --ntasks-per-node=1" in (asked := (place / "asked").read_text())
    assert asked.splitlines()[-1] == f"scontrol requeue {JOB}"

    (place / "pause").unlink()
    (place / "asked").unlink()
    again = submit("--trials", "2", SLURM_RESTART_COUNT="1")
    assert again.wait(timeout=360) == 0, again.err
    assert again.left() == []
    assert "requeue" not in (place / "asked").read_text()
    found = open_search(place / "runs", "first")
    assert [(record.number, record.status) for record in found.records] == [(0, "complete"), (1, "complete")]
    assert list(Path("/tmp").glob(f"hksd-{JOB}*")) == []
    assert (place / "runs" / "mlflow-first.db").exists()


def test_outside_of_slurm_the_script_says_how_it_is_used(place: Path, submit: Callable[..., Any]) -> None:
    job = submit(SLURM_JOB_ID="")
    assert job.wait() != 0
    assert "this is a batch script, for sbatch" in job.err


def test_a_node_without_hksd_is_told(place: Path, submit: Callable[..., Any]) -> None:
    job = submit(PATH=f"{place / 'bin'}:/usr/bin:/bin")
    assert job.wait() == 2
    assert "there is no hksd in" in job.err
