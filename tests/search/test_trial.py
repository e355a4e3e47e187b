"""A worker process trains many trials: each ends as if it had had the process to itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hksd.config.run import dump

Make = Callable[..., Any]

# A network whose author sets whatever can be set, and draws noise from everywhere.
CARELESS = """
import os, random
import numpy as np
import torch
from torch import nn

def small(num_classes, in_channels):
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    torch.manual_seed(99)
    os.chdir("/")
    features = 4 + random.randrange(3) + int(np.random.randint(3))
    layers = [nn.Conv2d(in_channels, features, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(features, num_classes))

def broken(num_classes, in_channels):
    torch.set_default_dtype(torch.float64)
    torch.set_autocast_enabled("cpu", True)
    torch.set_grad_enabled(False)
    raise RuntimeError("not built")
"""

# Trains the trials of each order one after the other in a fresh process, and says how each of them ended.
WORKER = """
import hashlib, json, os, sys
from pathlib import Path
import torch
from safetensors.numpy import load_file
from hksd_search.backend import trial
from hksd_search.study.records import trial_folder
from hksd.config.run import from_tree
from hksd.data import load

home, cache, configs, orders = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
data = load(from_tree(configs[0]).data)

def train(number, search):
    reports = []
    trial.tune.report = reports.append
    assignment = {"number": number, "config": json.dumps(configs[number])}
    shared = json.dumps(configs[0])
    trial.run_trial(assignment, data=data, search=str(search), cache_dir=cache, home=str(home), shared=shared)
    weights = trial_folder(search, number) / "student.safetensors"
    tensors = sorted(load_file(weights).items()) if weights.exists() else []
    digest = hashlib.sha256(b"".join(value.tobytes() for _, value in tensors)).hexdigest() if tensors else None
    return number, digest, [{k: v for k, v in r.items() if k not in ("seconds", "images_per_s")} for r in reports]

sys.path.insert(0, str(home))
torch.optim.SGD([torch.zeros(1)], lr=1)  # imports what torch imports late, once for all forks
for place, order in enumerate(orders):
    if os.fork() == 0:
        print(json.dumps([train(number, home / f"search-{place}-{turn}") for turn, number in enumerate(order)]))
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def ended(child: Make, make_config: Make, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each worker says: the first trained all trials, forwards and backwards, each other one a single trial."""
    home = tmp_path_factory.mktemp("home")
    (home / "careless.py").write_text(CARELESS)
    precise, attacked = {"precision": "float32"}, {"steps": 1, "evaluation_steps": 2}
    sections: list[dict[str, Any]] = [
        {"terms": {"ce": {}, "squeeze": {"depth": 2}, "adversarial": {"warmup_epochs": 1}}, "seed": 3},
        {"student": {"model": "careless:small", "width": 1.0}, "seed": 4},
        {
            "terms": {"ce": {}, "kd": {}},
            "train": {"threads": 2, **precise},
            "robust": attacked,
        },
        {"terms": {"ce": {}}, "train": {"lr": 1e12}},
        {"student": {"model": "careless:broken", "width": 1.0}},
        {"terms": {"ce": {}, "crd": {}}, "train": {"batch_size": 32}},
    ]
    data = {"limit": 300, "validation": 0.25}
    configs = [dump(make_config(**{**section, "data": data})) for section in sections]
    turns = list(range(len(configs)))
    orders = [[*turns, *reversed(turns)], *([turn] for turn in turns)]
    process = child(WORKER, home, cache_dir, json.dumps(configs), json.dumps(orders))
    out, complaint = process.communicate(timeout=240)
    assert process.returncode == 0, complaint
    return [json.loads(line) for line in out.splitlines()]


def test_trials_that_share_a_process_end_as_they_do_alone_bit_for_bit(ended: list[Any]) -> None:
    together, *alone = ended
    by_number = {number: (digest, reports) for [[number, digest, reports]] in alone}
    assert len(by_number) == 6
    assert len(together) == 12
    for number, digest, reports in together:
        assert (digest, reports) == by_number[number], number


def test_what_was_compared_are_trained_trials_and_two_with_faults(ended: list[Any]) -> None:
    faults = {number: [r["fault"] for r in reports if "fault" in r] for number, _, reports in ended[0]}
    assert faults.pop(3)[0].startswith("NonFiniteLossError")
    assert "not built" in faults.pop(4)[0]
    assert not any(faults.values()), faults
    assert all(digest for number, digest, _ in ended[0] if number not in (3, 4))
