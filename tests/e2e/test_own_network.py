"""A search over a network of the user's own, with a loaded teacher, both named relative to the working directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hksd import models
from hksd.models import weights

Make = Callable[..., Any]
NETWORK = """
from torch import nn

def small(num_classes, in_channels, width=1.0):
    features = round(8 * width)
    layers = nn.Sequential(nn.Conv2d(in_channels, features, 3, 2, 1), nn.BatchNorm2d(features), nn.ReLU())
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, num_classes))
"""


def test_trials_find_the_module_and_the_checkpoint_where_the_search_was_started(
    hksd: Make, write_space: Make, tmp_path: Path
) -> None:
    (tmp_path / "own_networks.py").write_text(NETWORK)
    teacher = models.build("resnet8", in_channels=1, classes=10, width=0.5, image_size=8)
    weights.save(tmp_path / "teacher.safetensors", teacher, {})
    write_space(
        tmp_path / "space.yaml",
        teacher={"checkpoint": "teacher.safetensors"},
        student={"model": "own_networks:small", "taps": ["0"]},
        terms={"logits": {"weight": {"log_uniform": [0.5, 5]}}, "squeeze": {"weight": 0.1, "depth": 1}},
        train={"epochs": 1},
        search={"trials": 3},
    )
    program = hksd("search", "space.yaml", "--name", "own", "--runs", "runs", "--json", cwd=tmp_path)
    assert program.process.returncode == 0, program.err
    assert program.json()["trials"]["complete"] == 3
    program = hksd("evaluate", "runs/own/export", "--json", cwd=tmp_path)
    assert program.process.returncode == 0, program.err
