"""Terms with a state of their own in the real loop: they learn, and a resume cannot be told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hksd.data import DataSet
from hksd.fit import fit
from hksd.run.loop import Result
from hksd.run.objective import verify

Make = Callable[..., Any]
RUNS: dict[str, dict[str, Any]] = {
    "review": {"review": {"channels": 8, "embedding": True}},
    "crd": {"crd": {"negatives": 32, "dims": 16}},
    "knowledge_representing": {"knowledge_representing": {"drops": [3]}},
    "dense_flow": {"dense_flow": {"hidden": 8}},
    "kdgan": {"kdgan": {"hidden": 8}},
    "adversarial": {
        "squeeze": {},
        "adversarial": {"input": "descriptor", "hidden": 8, "every": 2, "warmup_epochs": 0, "student_dropout": 0.2},
    },
}


def stop(_: Any) -> str:
    return "stop"


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run_stopped_in_the_middle_and_resumed_ends_bit_identically(
    name: str, make_config: Make, digits: DataSet, cache_dir: Path, tmp_path: Path
) -> None:
    config = make_config(terms={"ce": {}, **RUNS[name]})

    def run(**arguments: Any) -> Result:
        return fit(config, data=digits, cache_dir=cache_dir, **arguments)

    whole = run()
    assert run(out_dir=tmp_path, on_epoch=stop).stopped
    resumed = run(out_dir=tmp_path)
    assert resumed.resumed_at == 1
    one, two = whole.student.state_dict(), resumed.student.state_dict()
    assert all(torch.equal(one[path], two[path]) for path in one)
    assert [(r.terms, r.diagnostics) for r in whole.history] == [(r.terms, r.diagnostics) for r in resumed.history]
    assert whole.history[-1].terms[name] != whole.history[0].terms[name]


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run_is_verified_without_memory_before_anything_is_trained(name: str, make_config: Make) -> None:
    verify(make_config(terms={"ce": {}, **RUNS[name]}), in_channels=1, classes=10, image_size=8)
