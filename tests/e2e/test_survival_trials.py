"""Trials that hang, die or raise: each is told from the others, and the search goes on.

Their networks are the user's own, and their teacher is a file of his: both are named relative to the working directory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hksd import models
from hksd.models import weights
from hksd_search.backend.guards import LAST_WORDS, STRIKES
from hksd_search.study.records import Record

Make = Callable[..., Any]
ROLES = {2: "hangs", 3: "is killed", 4: "raises", 5: "meets a broken disk"}
# What a student does in the middle of its second epoch depends on its width; each time is noted in a file.
NETWORK = f"""
import os, signal, time
from pathlib import Path
from torch import nn

ROLES = {ROLES!r}
STEP = 8  # of steps of 50 images, six an epoch; the first one of a trial that is tried again, from its second epoch

class Bad(nn.Module):
    def __init__(self, role):
        super().__init__()
        self.role, self.steps = role, 0

    def forward(self, images):
        self.steps += self.training and len(images) == 50
        if self.role and self.steps == (1 if Path(__file__).with_name(self.role).exists() else STEP):
            self.behave()
        return images

    def behave(self):
        times = Path(__file__).with_name(self.role)
        times.open("a").write("x")
        first = times.stat().st_size == 1
        if self.role == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.role == "raises":
            raise ValueError("as it always does")
        elif not first:
            return
        elif self.role == "hangs":
            time.sleep(1e6)  # here it hangs
        elif self.role == "meets a broken disk":
            raise OSError(5, "Input/output error")

def net(num_classes, in_channels, width):
    layers = nn.Sequential(Bad(ROLES.get(int(width))), nn.Conv2d(in_channels, 4 + int(width), 3, 2, 1), nn.ReLU())
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 + int(width), num_classes))
"""
GOES_ON = ("fine", "hangs", "meets a broken disk")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, write_space: Make, hksd: Make) -> Path:
    """Folder of a search of one student of each kind, which has ended."""
    folder = tmp_path_factory.mktemp("trials")
    (folder / "bad.py").write_text(NETWORK)
    teacher = models.build("resnet8", in_channels=1, classes=10, width=0.5, image_size=8)
    weights.save(folder / "teacher.safetensors", teacher, {})
    write_space(
        folder / "space.yaml",
        teacher={"checkpoint": "teacher.safetensors", "expected_accuracy": 0},
        student={"model": "bad:net", "width": {"choice": list(range(1, 6))}, "taps": ["0"]},
        terms={"logits": {"weight": 1.0}, "squeeze": {"weight": 0.1, "depth": 1}},
        train={"epochs": 2, "batch_size": 50, "lr": 0.1, "precision": "float32"},
        search={"trials": 5, "arms": "none", "scheduler": "none", "epoch_timeout": 10, "concurrent": 2},
    )
    program = hksd("search", "space.yaml", "--name", "bad", "--json", cwd=folder)
    assert program.process.returncode == 0, program.err
    assert "Traceback" not in program.err
    (folder / "said").write_text(program.err)
    return folder


@pytest.fixture(scope="module")
def ended(place: Path, facts: Make) -> dict[str, Record]:
    """How each kind of student ended; the books agree."""
    found = facts(place / "runs", "bad")
    found.must_agree()
    return {ROLES.get(int(record.config["student"]["width"]), "fine"): record for record in found.trained}


def times(place: Path, role: str) -> int:
    """How often a student behaved in its way."""
    return (place / role).stat().st_size


def test_what_the_machine_did_to_a_trial_is_tried_again_and_the_trial_completes(
    place: Path, ended: dict[str, Record]
) -> None:
    assert Counter(record.status for record in ended.values()) == {"complete": 3, "failed": 2}
    for role in GOES_ON:
        assert ended[role].status == "complete", ended[role]
        folder = place / "runs" / "bad" / "trials" / f"{ended[role].number:03d}"
        assert json.loads((folder / "result.json").read_text())["resumed_at"] == (0 if role == "fine" else 1)
        assert not (folder / LAST_WORDS).exists()


def test_a_trial_whose_process_dies_again_and_again_has_failed(place: Path, ended: dict[str, Record]) -> None:
    assert times(place, "is killed") == STRIKES
    assert ended["is killed"].status == "failed"
    assert f"{STRIKES} times, the last time: the worker process died" in str(ended["is killed"].reason)


def test_the_log_of_each_trial_says_what_happened_to_it(place: Path, ended: dict[str, Record], inside: Make) -> None:
    told = {}
    for role, record in ended.items():
        code, out, _ = inside("logs", "bad", record.number, "--json", cwd=place)
        assert code == 0
        told[role] = json.loads(out)
        notes = " ".join(told[role]["log"])
        assert "begins in process" in notes
        assert ("leaves off after epoch 2 of 2" in notes) == (record.status == "complete")
        assert told[role]["mlflow"]["run"]
        assert len(told[role]["nodes"]) == (record.epoch > 0)
    assert told["fine"]["strikes"] == []
    assert told["fine"]["fault"] is None
    assert "no epoch ended in 10 s (search.epoch_timeout)" in told["hangs"]["strikes"][0]
    assert any("goes on in process" in line for line in told["hangs"]["log"])
    assert "Input/output error" in told["meets a broken disk"]["strikes"][0]
    assert sum("in process" in line for line in told["is killed"]["log"]) == STRIKES
    assert told["raises"]["fault"].endswith("ValueError: as it always does")
    assert any("fault: ValueError: as it always does" in line for line in told["raises"]["log"])


def test_an_error_of_the_users_own_network_is_not_tried_again(place: Path, ended: dict[str, Record]) -> None:
    assert times(place, "raises") == 1
    assert (ended["raises"].status, ended["raises"].reason) == ("failed", "ValueError: as it always does")


def test_people_are_told_what_happened_and_where_it_hung(place: Path) -> None:
    said = "".join((place / "said").read_text().split())  # it is wrapped
    line = NETWORK.splitlines().index("            time.sleep(1e6)  # here it hangs") + 1
    assert f"noepochendedin10s(search.epoch_timeout);ithungin{place / 'bad.py'}:{line}(behave);itistriedagain" in said
    assert "OSError:[Errno5]Input/outputerror;itistriedagainfromitslastcheckpoint" in said


def test_trials_and_the_export_find_the_network_and_the_checkpoint_where_the_search_was_started(
    place: Path, ended: dict[str, Record], hksd: Make
) -> None:
    assert {record.config["teacher"]["checkpoint"] for record in ended.values()} == {"teacher.safetensors"}
    assert {role for role, record in ended.items() if record.status == "complete"} == set(GOES_ON)
    program = hksd("evaluate", "runs/bad/export", "--json", cwd=place)
    assert program.process.returncode == 0, program.err
