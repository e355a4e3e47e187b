"""What a run writes down of where it comes from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hksd import provenance
from hksd.config.run import config_hash
from hksd.data import DataSet
from hksd.fit import fit

Make = Callable[..., Any]


def stop(report: Any) -> str:
    return "stop"


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / provenance.FILE).read_text())
    return found


def test_a_run_says_what_it_is_made_of_when_it_starts(make_config: Make, digits: DataSet, tmp_path: Path) -> None:
    config = make_config(seed=7, data={"seed": 5})
    seen: list[dict[str, Any]] = []
    fit(config, data=digits, out_dir=tmp_path, on_epoch=lambda report: seen.append(read(tmp_path)))
    found = read(tmp_path)
    assert seen == [found] * 2
    assert found["config_hash"] == config_hash(config)
    assert found["seeds"] == {"run": 7, "data": 5, "teacher": None}
    assert found["data"]["fingerprint"] == digits.fingerprint
    for name, split in (("train", digits.train), ("validation", digits.validation)):
        digest = hashlib.sha256(split.index.tobytes()).hexdigest()
        assert found["data"]["splits"][name] == {"images": len(split), "index_sha256": digest}
    (session,) = found["sessions"]
    assert session["versions"]["torch"] == torch.__version__
    assert session["hardware"]["cores"] >= 1
    assert session["begins_after"] == {"epochs": 0, "steps": 0}
    assert "git" in session


def test_other_splits_of_the_same_images_have_other_hashes(digits: DataSet) -> None:
    turned = dataclasses.replace(digits, train=dataclasses.replace(digits.train, index=digits.train.index[::-1].copy()))
    one, two = (provenance.describe_data(data)["splits"] for data in (digits, turned))
    assert one["train"] != two["train"]
    assert one["validation"] == two["validation"]


def test_the_seed_of_the_teacher_is_told_where_there_is_one(make_config: Make, digits: DataSet) -> None:
    config = make_config(terms={"ce": {}, "kd": {}})
    assert provenance.describe_run(config, digits)["seeds"]["teacher"] == 0


def test_every_session_that_trains_is_told_and_one_that_does_not_is_not(
    make_config: Make, digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(train={"epochs": 3})
    fit(config, data=digits, out_dir=tmp_path, on_epoch=stop)
    asked = iter(range(2))
    elsewhere = {**provenance.provenance(), "hardware": {"processor": "another"}}
    monkeypatch.setattr(provenance, "provenance", lambda: elsewhere)
    fit(config, data=digits, out_dir=tmp_path, should_stop=lambda: next(asked, None) is None)
    for _ in range(2):  # the second finds the run finished
        fit(config, data=digits, out_dir=tmp_path)
    sessions = read(tmp_path)["sessions"]
    begins = [tuple(session["begins_after"].values()) for session in sessions]
    assert begins == [(0, 0), (1, 0), (1, 2)]
    assert [session["hardware"]["processor"] == "another" for session in sessions] == [False, True, True]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sessions": 3}', "\udcff"])
def test_a_damaged_file_costs_the_sessions_before_and_no_run(
    content: str, make_config: Make, digits: DataSet, tmp_path: Path
) -> None:
    config = make_config()
    fit(config, data=digits, out_dir=tmp_path, on_epoch=stop)
    (tmp_path / provenance.FILE).write_bytes(content.encode(errors="surrogateescape"))
    fit(config, data=digits, out_dir=tmp_path)
    assert len(read(tmp_path)["sessions"]) == 1
