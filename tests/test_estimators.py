"""Attention estimators that learn together with the teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hksd.config.run import RunConfig, config_hash
from hksd.data import DataSet
from hksd.errors import ConfigError
from hksd.fit import fit
from hksd.teacher import prepare as teachers
from hksd.teacher.teacher import Teacher

Make = Callable[..., RunConfig]


def with_mode(make_config: Make, mode: str, **teacher: Any) -> RunConfig:
    section = {"width": 0.5, "epochs": 4, "lr": 0.1, **teacher, "attention": {"mode": mode, "epochs": 2}}
    return make_config(terms={"ce": {}, "squeeze": {}}, teacher=section)


def same(one: Teacher, two: Teacher) -> bool:
    assert one.attention is not None
    assert two.attention is not None
    pairs = ((one.model, two.model), (one.attention, two.attention))
    return all(
        torch.equal(a, b)
        for x, y in pairs
        for a, b in zip(x.state_dict().values(), y.state_dict().values(), strict=True)
    )


def test_teacher_and_estimators_learn_together_and_are_frozen_then(
    make_config: Make, make_data: Callable[..., DataSet]
) -> None:
    seen: list[tuple[str, int]] = []
    data = make_data(train=800, validation=200)
    joint = teachers.prepare(
        with_mode(make_config, "joint", epochs=8), data, on_progress=lambda what, epoch, *_: seen.append((what, epoch))
    )
    task = teachers.prepare(with_mode(make_config, "task", epochs=8), data)
    assert seen == [("teacher and attention", epoch) for epoch in range(1, 9)]
    assert joint.accuracy > 0.8
    assert len(joint.attention_accuracy) == 3
    assert min(joint.attention_accuracy) > 0.6
    assert not same(joint, task)
    assert joint.attention is not None
    for network in (joint.model, joint.attention):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())


def test_a_joint_teacher_is_cached_and_half_a_cache_is_made_whole_with_the_same_bits(
    make_config: Make, digits: DataSet, tmp_path: Path
) -> None:
    config = with_mode(make_config, "joint")
    first = teachers.prepare(config, digits, cache_dir=tmp_path)
    again = teachers.prepare(config, digits, cache_dir=tmp_path)
    assert (first.cached, again.cached) == (False, True)
    assert same(first, again)
    for file in tmp_path.glob("*/attention-*"):
        file.unlink()
    mended = teachers.prepare(config, digits, cache_dir=tmp_path)
    assert not mended.cached
    assert same(first, mended)


def test_other_estimators_make_another_joint_teacher_and_not_another_task_teacher(
    make_config: Make, digits: DataSet
) -> None:
    def key(mode: str, **squeeze: Any) -> str:
        section = {"width": 0.25, "epochs": 1, "attention": {"mode": mode, "epochs": 1}}
        return teachers.prepare(make_config(terms={"ce": {}, "squeeze": squeeze}, teacher=section), digits).key

    assert key("joint") != key("joint", compatibility="gap")
    assert key("task") == key("task", compatibility="gap")
    # Without a term that reads them there is nothing to learn together with.
    plain = [make_config(terms={"kd": {}}, teacher={"attention": {"mode": mode}}) for mode in ("joint", "task")]
    assert teachers.prepare(plain[0], digits).key == teachers.prepare(plain[1], digits).key


def test_a_student_learns_from_a_joint_teacher(make_config: Make, digits: DataSet, tmp_path: Path) -> None:
    result = fit(with_mode(make_config, "joint"), data=digits, cache_dir=tmp_path)
    assert result.history[-1].terms["squeeze"] > 0


def test_knobs_of_the_estimators_alone_are_dead_and_a_loaded_teacher_cannot_learn_jointly(
    make_config: Make, tmp_path: Path
) -> None:
    def digest(mode: str, epochs: int) -> str:
        attention = {"mode": mode, "epochs": epochs}
        return config_hash(make_config(terms={"ce": {}, "squeeze": {}}, teacher={"attention": attention}))

    assert digest("joint", 2) == digest("joint", 3)
    assert digest("task", 2) != digest("task", 3)
    with pytest.raises(ConfigError, match="joint trains the teacher here; leave checkpoint"):
        with_mode(make_config, "joint", checkpoint=str(tmp_path / "x.safetensors"))
