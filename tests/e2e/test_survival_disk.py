"""The disk fills up under a search: it says so, stops, and goes on when there is room again.

Once while it trains, and once in the moment between the last checkpoint of a trial and its student.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Any]
EPOCHS = 12
# In a mount namespace of its own, with a small file system below `runs`: fills it once two epochs are through.
SCRIPT = """
set -u
mkdir -p runs && mount -t tmpfs -o size=24m tmpfs runs || exit 77
python() { "$PYTHON" -m hksd_search.cli search "$@"; }
python space.yaml --name full > out.1 2> err.1 &
search=$!
reports() { cat runs/full/study.journal 2> /dev/null | grep -c '"progress"'; }
while kill -0 $search && [ "$(reports)" -lt 3 ]; do sleep 0.1; done
cat /dev/zero > runs/filler 2> /dev/null
wait $search
echo $? > code.1
rm -f runs/filler
cp -r runs stopped
python full --resume --json > out.2 2> err.2
echo $? > code.2
cp -r runs finished
"""
# The same, where the network of the user fills the disk, once: when its student is about to be written.
SCRIPT_AT_THE_END = """
set -u
mkdir -p runs && mount -t tmpfs -o size=24m tmpfs runs || exit 77
python() { "$PYTHON" -m hksd_search.cli search "$@"; }
python space.yaml --name full > out.1 2> err.1
echo $? > code.1
ls -l runs > filled
rm -f runs/filler
cp -r runs stopped
python full --resume --json > out.2 2> err.2
echo $? > code.2
cp -r runs finished
"""
NETWORK = """
from pathlib import Path
from torch import nn

EPOCHS = 2

class Filling(nn.Module):
    def __init__(self):
        super().__init__()
        self.saved = 0  # once an epoch in a checkpoint, then as the student

    def _save_to_state_dict(self, *arguments):
        self.saved += 1
        filler = Path("runs/filler")
        if self.training is False and self.saved > EPOCHS and not Path("once").exists():
            Path("once").touch()
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass
        super()._save_to_state_dict(*arguments)

    def forward(self, images):
        return images

def net(num_classes, in_channels):
    layers = nn.Sequential(Filling(), nn.Conv2d(in_channels, 40, 3, 2, 1), nn.ReLU(), nn.Conv2d(40, 40, 3, 1, 1))
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, num_classes))
"""


def can_mount() -> bool:
    """Whether a user may have a file system of his own here."""
    try:
        command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs `unshare -Urm mount`, which is not allowed here")
def test_a_search_whose_disk_is_full_stops_and_goes_on_when_there_is_room_again(
    tmp_path: Path, write_space: Make, facts: Make
) -> None:
    write_space(
        tmp_path / "space.yaml",
        train={"epochs": EPOCHS, "batch_size": 16},
        terms={"squeeze": {"weight": 0}},
        search={"trials": 4, "arms": "none", "scheduler": "none", "concurrent": 2},
    )
    environment = {**os.environ, "PYTHON": sys.executable}
    for name in ("HKSD_RUNS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        environment.pop(name, None)
    subprocess.run(["unshare", "-Urm", "sh", "-c", SCRIPT], cwd=tmp_path, env=environment, check=True, timeout=400)

    said = (tmp_path / "err.1").read_text()
    assert (tmp_path / "code.1").read_text() == "1\n", said
    assert "Traceback" not in said
    assert "failed: the disk is full: " in said
    assert "resume with:\n  hksd search full --resume" in said
    stopped = facts(tmp_path / "stopped", "full").records
    assert {record.status for record in stopped} <= {"interrupted", "complete"}, "a trial was blamed for the disk"

    assert (tmp_path / "code.2").read_text() == "0\n", (tmp_path / "err.2").read_text()
    assert json.loads((tmp_path / "out.2").read_text())["trials"]["complete"] == 4
    finished = facts(tmp_path / "finished", "full")
    finished.must_agree()
    assert [record.status for record in finished.records] == ["complete"] * 4
    done = [record for record in stopped if record.status == "complete"]
    assert [record for record in finished.records if record.number in {old.number for old in done}] == done


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs `unshare -Urm mount`, which is not allowed here")
def test_a_trial_whose_student_found_no_room_is_not_complete_and_its_search_comes_to_an_end(
    tmp_path: Path, write_space: Make, facts: Make
) -> None:
    (tmp_path / "own.py").write_text(NETWORK)
    write_space(
        tmp_path / "space.yaml",
        teacher={"epochs": 1},
        student={"model": "own:net", "width": 1.0, "taps": ["0"]},
        train={"epochs": 2, "batch_size": 50, "precision": "float32"},
        terms={"squeeze": {"weight": 0}},
        search={"trials": 2, "arms": "none", "scheduler": "none"},
    )
    environment = {**os.environ, "PYTHON": sys.executable}
    for name in ("HKSD_RUNS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        environment.pop(name, None)
    shell = ["unshare", "-Urm", "sh", "-c", SCRIPT_AT_THE_END]
    subprocess.run(shell, cwd=tmp_path, env=environment, check=True, timeout=400)

    said = (tmp_path / "err.1").read_text()
    assert (tmp_path / "code.1").read_text() == "1\n", said
    assert "filler" in (tmp_path / "filled").read_text()
    assert "student.safetensors: the result cannot be written: No space left on device" in " ".join(said.split())
    assert "resume with:\n  hksd search full --resume" in said
    stopped = facts(tmp_path / "stopped", "full")
    assert [record.status for record in stopped.records] == ["interrupted"]
    assert stopped.records[0].epoch == 2

    assert (tmp_path / "code.2").read_text() == "0\n", (tmp_path / "err.2").read_text()
    finished = facts(tmp_path / "finished", "full")
    finished.must_agree()
    assert [record.status for record in finished.records] == ["complete"] * 2
    assert finished.epochs(0) == [1, 2]
