"""Population based training as people run it: forks in study, store and folder, and repeated from scratch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hksd.fit import RESULT_FILE, WEIGHTS_FILE
from hksd.run.loop import CONFIG_FILE

Make = Callable[..., Any]


@pytest.mark.slow
def test_forks_take_the_place_of_the_worst_agree_in_all_books_and_repeat_from_their_configuration(
    tmp_path: Path, write_space: Make, hksd: Make, inside: Make, facts: Make
) -> None:
    pbt = {"grace_epochs": 2, "interval_epochs": 2, "population": 2, "quantile": 0.5}
    search = {"trials": 6, "arms": "none", "scheduler": {"pbt": pbt}, "concurrent": 2}
    write_space(
        tmp_path / "space.yaml",
        train={"epochs": 6},
        search=search,
        terms={"squeeze": {"weight": 0}},
        teacher={"epochs": 1},
    )
    program = hksd("search", "space.yaml", "--name", "forks", cwd=tmp_path)
    assert program.process.returncode == 0, program.err
    found = facts(tmp_path / "runs", "forks")
    found.must_agree()
    forks = [record for record in found.records if record.fork]
    assert forks
    assert not list(found.folder.glob("trials/*/epoch-*"))
    for record in forks:
        tags = found.children[record.number].data.tags
        assert (tags["hksd.parent"], tags["hksd.forked_at"]) == (str(record.fork.parent), str(record.fork.epoch))
        assert sum(other.reason == f"replaced by trial {record.number}" for other in found.records) == 1
    *_, record = (fork for fork in forks if fork.status == "complete")  # the last fork is replaced by none
    code, out, _ = inside("status", "forks", "--last", 0, cwd=tmp_path)
    assert code == 0, out
    assert "fork of" in " ".join(out.split())
    trial = found.folder / "trials" / f"{record.number:03d}"
    assert yaml.safe_load((trial / CONFIG_FILE).read_text())["changes"][-1]["epoch"] == record.fork.epoch
    result = json.loads((trial / RESULT_FILE).read_text())
    assert result["resumed_at"] == record.fork.epoch
    assert {one["epoch"]: one["val_accuracy"] for one in result["history"]} == record.accuracies
    again = hksd("train", trial / CONFIG_FILE, "--out", "again", "--json", cwd=tmp_path)
    assert again.process.returncode == 0, again.err
    assert again.json()["val_accuracy"] == record.val_accuracy
    ours, whole = load_file(trial / WEIGHTS_FILE), load_file(tmp_path / "again" / WEIGHTS_FILE)
    assert all(torch.equal(ours[name], whole[name]) for name in whole)
