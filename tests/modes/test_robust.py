"""Training on attacked images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hksd import models
from hksd.config.run import RunConfig
from hksd.data import DataSet
from hksd.data.augment import batches_of
from hksd.fit import fit
from hksd.modes import Robust, RobustConfig

Make = Callable[..., RunConfig]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def student() -> models.TappedNet:
    torch.manual_seed(0)
    return models.build("resnet8", width=0.25, in_channels=1, classes=10, image_size=8)


def pixels(images: Tensor, data: DataSet) -> Tensor:
    return images * data.std[0] + data.mean[0]


def first(data: DataSet, make_config: Make, count: int = 32) -> Any:
    return next(batches_of(data.validation, data, make_config().data, CPU, augment=False).plain(count))


@pytest.mark.parametrize("epsilon", [0.03, 0.5])
def test_an_attack_raises_the_loss_and_stays_in_the_box_and_in_the_range_of_pixels(
    epsilon: float, digits: DataSet, student: models.TappedNet, make_config: Make
) -> None:
    batch = first(digits, make_config)
    robust = Robust(RobustConfig(epsilon=epsilon), digits, CPU)
    student.train()
    before = {name: value.clone() for name, value in student.state_dict().items()}

    def loss(images: Tensor) -> Tensor:
        return F.cross_entropy(student(images), batch.labels)

    attacked = robust.attack(student, batch.images, loss, 7)
    changed, original = pixels(attacked, digits), pixels(batch.images, digits)
    assert (changed - original).abs().max() <= epsilon + 1e-5
    assert (changed - original).abs().max() > epsilon / 2
    assert changed.min() >= -1e-5
    assert changed.max() <= 1 + 1e-5
    student.eval()
    assert loss(attacked) > loss(batch.images)
    assert not attacked.requires_grad
    # The attack leaves no trace on the student.
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert all(p.grad is None for p in student.parameters())


def test_the_mode_of_the_student_is_put_back(digits: DataSet, student: models.TappedNet, make_config: Make) -> None:
    batch, robust = first(digits, make_config, 4), Robust(RobustConfig(), digits, CPU)
    for training in (True, False):
        student.train(training)
        robust.attack(student, batch.images, lambda images: student(images).sum(), 1)
        assert student.training is training


def test_robust_training_withstands_the_attack_that_plain_training_does_not(
    make_config: Make, make_data: Callable[..., DataSet]
) -> None:
    data = make_data(train=800, validation=200)
    train = {"epochs": 8, "lr": 0.1}
    settings: dict[str, Any] = {"epsilon": 0.15, "steps": 5}
    hard = fit(make_config(teacher=None, train=train, robust=settings), data=data)
    plain = fit(make_config(teacher=None, train=train), data=data)
    judge = Robust(RobustConfig(**settings), data, CPU)
    validation = batches_of(data.validation, data, make_config().data, CPU, augment=False)
    reported = hard.history[-1].diagnostics["robust/val_accuracy"]
    assert reported == judge.accuracy(hard.student, validation, 512)
    assert reported > judge.accuracy(plain.student, validation, 512) + 0.1
    assert "robust/val_accuracy" not in hard.history[0].diagnostics


@pytest.mark.parametrize(("evaluate", "epochs"), [("last", [2]), ("every", [1, 2]), ("never", [])])
def test_the_accuracy_under_attack_is_reported_when_it_is_asked_for(
    evaluate: str, epochs: list[int], make_config: Make, digits: DataSet
) -> None:
    result = fit(make_config(teacher=None, robust={"steps": 1, "evaluate": evaluate}), data=digits)
    assert [r.epoch for r in result.history if "robust/val_accuracy" in r.diagnostics] == epochs


@pytest.mark.parametrize("robust", [{"attack": "total"}, {"teacher_view": "attacked"}])
def test_attack_and_view_compose_with_terms_and_resume_bit_identically(
    robust: dict[str, Any], make_config: Make, digits: DataSet, tmp_path: Path, cache_dir: Path
) -> None:
    terms: dict[str, Any] = {"ce": {}, "kd": {}, "squeeze": {}, "adversarial": {"warmup_epochs": 0}}
    config = make_config(terms=terms, robust={"steps": 2, **robust})
    whole = fit(config, data=digits, cache_dir=cache_dir)
    fit(config, data=digits, cache_dir=cache_dir, out_dir=tmp_path, on_epoch=lambda report: "stop")
    resumed = fit(config, data=digits, cache_dir=cache_dir, out_dir=tmp_path)
    assert resumed.resumed_at == 1
    for (name, one), two in zip(whole.student.state_dict().items(), resumed.student.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    other = fit(make_config(terms=terms, robust={"steps": 2}), data=digits, cache_dir=cache_dir)
    assert other.history[-1].train_loss != whole.history[-1].train_loss
