"""Distillation without images."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hksd import models
from hksd.config.run import RunConfig, config_hash
from hksd.data import DataSet
from hksd.errors import ConfigError
from hksd.fit import fit
from hksd.models.taps import Out
from hksd.modes import DataFreeConfig
from hksd.modes.data_free import Generated, Generator, generator_loss

Make = Callable[..., RunConfig]
FREE: dict[str, Any] = {"steps_per_epoch": 6, "channels": 8, "latent": 16}


@pytest.mark.parametrize("size", [8, 28, 30, 32])
def test_generated_images_have_the_shape_of_the_data_and_unit_scale(size: int) -> None:
    torch.manual_seed(0)
    images = Generator(16, 8, 3, size)(torch.randn(32, 16))
    assert images.shape == (32, 3, size, size)
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(images.std((0, 2, 3)), torch.ones(3), atol=1e-2)


def test_the_generator_losses_are_what_one_computes_by_hand() -> None:
    teacher = Out(torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]]), torch.tensor([[1.0, -3.0], [0.0, 2.0]]))
    student = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    weights = {"one_hot": 2.0, "entropy": 3.0, "activation": 5.0, "disagreement": 7.0}
    one_hot, entropy, activation = -math.log(0.75), math.log10(0.5), (1 + 3 + 0 + 2) / 4
    distance = (1 + math.log(3) + math.log(3) + 0) / 4
    dafl = 2 * one_hot + 3 * entropy - 5 * activation
    for method, expected in (("dafl", dafl), ("dfad", -7 * distance), ("two_step", dafl - 7 * distance)):
        config = DataFreeConfig(method=method, **weights)  # type: ignore[arg-type]
        assert generator_loss(config, student, teacher).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", ["dafl", "dfad", "two_step"])
def test_only_the_generator_learns_from_its_loss_and_learns_to_lower_it(method: str) -> None:
    torch.manual_seed(0)
    shape = {"in_channels": 1, "classes": 5, "image_size": 8}
    teacher, student = models.build("resnet8", width=0.25, **shape).eval(), models.build("resnet8", width=0.25, **shape)
    config = DataFreeConfig(
        method=method, student_steps=1, steps_per_epoch=15, **{k: FREE[k] for k in ("channels", "latent")}
    )  # type: ignore[arg-type]
    source = Generated(config, teacher, student, 4, in_channels=1, image_size=8, device=torch.device("cpu"))
    weights = [p.clone() for net in (teacher, student) for p in net.parameters()]
    start = None
    for epoch in range(2):
        for batch in source.batches(epoch, 16):
            assert torch.is_grad_enabled()
            assert not batch.images.requires_grad
            assert batch.index is None
            assert torch.equal(batch.labels, teacher(batch.images).argmax(1))
        start = source.scalars()["data_free/generator_loss"] if start is None else start
    assert source.scalars()["data_free/generator_loss"] < start
    now = [p for net in (teacher, student) for p in net.parameters()]
    assert all(torch.equal(one, two) for one, two in zip(weights, now, strict=True))
    assert all(p.grad is None for p in now)


def test_in_two_steps_the_generator_learns_first_and_is_frozen_then(make_config: Make, digits: DataSet) -> None:
    terms = {"logits": {}, "adversarial": {"category_weight": 0, "warmup_epochs": 0, "hidden": 8}}
    free = {**FREE, "method": "two_step", "generator_fraction": 0.5}
    result = fit(make_config(terms=terms, data_free=free, train={"epochs": 4}), data=digits)
    learned = ["data_free/generator_loss" in report.diagnostics for report in result.history]
    assert learned == [True, True, False, False]
    assert all("adversarial/discriminator_loss" in report.diagnostics for report in result.history)


def test_a_student_learns_without_any_image(make_config: Make, cache_dir: Path) -> None:
    config = make_config(
        teacher={"model": "resnet8", "width": 0.5, "epochs": 10},
        student={"width": 0.5},
        terms={"logits": {}},
        data_free={"channels": 16},
        train={"epochs": 8, "lr": 0.1},
    )
    result = fit(config, cache_dir=cache_dir)
    assert result.val_accuracy > 0.4  # guessing gives 0.1


def test_a_resumed_run_is_bit_identical(make_config: Make, digits: DataSet, tmp_path: Path, cache_dir: Path) -> None:
    config = make_config(terms={"kd": {}}, data_free=FREE, train={"epochs": 3})
    whole = fit(config, data=digits, cache_dir=cache_dir)
    fit(config, data=digits, cache_dir=cache_dir, out_dir=tmp_path, on_epoch=lambda report: "stop")
    resumed = fit(config, data=digits, cache_dir=cache_dir, out_dir=tmp_path)
    assert resumed.resumed_at == 1
    for one, two in zip(whole.student.parameters(), resumed.student.parameters(), strict=True):
        assert torch.equal(one, two)


def test_no_real_training_image_is_looked_at(
    make_config: Make, digits: DataSet, make_data: Callable[..., DataSet]
) -> None:
    import dataclasses

    from hksd.teacher import prepare as teachers

    config = make_config(terms={"kd": {}}, data_free=FREE)
    teacher = teachers.prepare(config, digits)
    other = dataclasses.replace(digits, train=make_data(start=500).train)
    assert not (other.train.images == digits.train.images).all()
    one, two = (fit(config, data=data, teacher=teacher).history[-1].train_loss for data in (digits, other))
    assert one == two


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"ce": {}, "kd": {}}, "terms.ce needs labels"),
        ({"kd": {}, "adversarial": {}}, "terms.adversarial needs labels"),
        ({"kd": {}, "squeeze": {"task_weight": 1.0}}, "terms.squeeze needs labels"),
    ],
)
def test_terms_that_need_data_are_refused_before_training(
    terms: dict[str, Any], message: str, make_config: Make
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(terms=terms, data_free=FREE)
    make_config(
        terms={**terms, "ce": {"weight": 0}, "adversarial": {"category_weight": 0}, "squeeze": {}, "kd": {}},
        data_free=FREE,
    )


def test_weights_of_what_a_method_has_not_are_dead(make_config: Make) -> None:
    def digest(**free: Any) -> str:
        return config_hash(make_config(terms={"kd": {}}, data_free=free))

    assert digest(method="dfad", entropy=1.0) == digest(method="dfad")
    assert digest(method="dafl", disagreement=2.0) == digest(method="dafl")
    assert digest(method="two_step", disagreement=2.0) != digest(method="two_step")
