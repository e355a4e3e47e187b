"""Values of the terms on logits, against published code and against pencil and paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hksd.config.run import Terms
from hksd.models.taps import Out
from hksd.run.objective import Objective
from hksd.terms.ce import CrossEntropyConfig
from hksd.terms.kd import DistillationConfig, kd_loss
from hksd.terms.logits import LogitsConfig, logits_loss


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1, 4])
@pytest.mark.parametrize("name", ["same_size", "other_size"])
def test_kd_is_what_the_published_code_computes(name: str, temperature: int, vectors: Path) -> None:
    with np.load(vectors / f"{name}.npz") as data:
        student, teacher = torch.from_numpy(data["logits_s"]), torch.from_numpy(data["logits_t"])
        expected = float(data[f"expected/kd_T{temperature}"])
    assert kd_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-6)
    term = DistillationConfig(temperature=temperature).build(None, None)
    assert term(Out(student, student), Out(teacher, teacher), None).item() == pytest.approx(expected, rel=1e-6)


def test_kd_of_two_classes_is_what_one_computes_by_hand() -> None:
    # The teacher says (3/4, 1/4), the student (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2).
    teacher, student = row(math.log(3), 0), row(5, 5)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kd_loss(student, teacher, 1).item() == pytest.approx(expected, rel=1e-12)


def test_kd_has_the_factor_temperature_squared_inside() -> None:
    # Logits that are T times larger give the same softened distributions, so only the factor is left.
    teacher, student = row(math.log(3), 0, 1), row(0.2, 0.1, -1)
    for temperature in (0.5, 2.0, 4.0, 10.0):
        ratio = kd_loss(temperature * student, temperature * teacher, temperature) / kd_loss(student, teacher, 1)
        assert ratio.item() == pytest.approx(temperature**2, rel=1e-12)


def test_kd_at_a_high_temperature_is_half_the_variance_of_the_difference_over_classes() -> None:
    # Hinton et al. 2015, section 2.1: T^2 keeps the gradient; KL -> var(z_T - z_S) / 2 as T grows.
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, 5, dtype=torch.float64)
    expected = (teacher - student).var(1, correction=0).mean() / 2
    assert kd_loss(student, teacher, 1e4).item() == pytest.approx(expected.item(), rel=1e-3)


def test_kd_is_the_mean_over_the_batch_not_over_classes() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, 5, dtype=torch.float64)
    alone = torch.stack([kd_loss(student[i : i + 1], teacher[i : i + 1], 4) for i in range(6)])
    assert kd_loss(student, teacher, 4).item() == pytest.approx(alone.mean().item(), rel=1e-12)
    p, q = (teacher[0] / 4).softmax(0), (student[0] / 4).softmax(0)
    assert alone[0].item() == pytest.approx((16 * (p * (p.log() - q.log())).sum()).item(), rel=1e-9)


def test_kd_goes_from_teacher_to_student() -> None:
    # KL is not symmetric: a student that denies what the teacher holds possible pays without bound, not the reverse.
    sure, open_ = row(30, 0), row(0, 0)
    assert kd_loss(sure, open_, 1).item() > 10
    assert kd_loss(open_, sure, 1).item() < 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kd_is_zero_for_equal_logits_and_does_not_see_a_shift(temperature: float) -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert kd_loss(logits, logits, temperature).item() == 0
    assert kd_loss(logits + 3, logits, temperature).item() == pytest.approx(0, abs=1e-12)


def test_kd_stays_finite_for_large_logits() -> None:
    assert kd_loss(row(1e4, -1e4).float(), row(-1e4, 1e4).float(), 1).isfinite()


def test_logits_is_what_one_computes_by_hand_and_a_mean_over_classes_and_batch() -> None:
    student = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    teacher = torch.tensor([[0.0, 4.0], [0.0, 3.0]])
    assert logits_loss(student, teacher).item() == pytest.approx((1 + 4 + 0 + 9) / 4)
    assert LogitsConfig().build(None, None)(Out(student, student), Out(teacher, teacher), None).item() == pytest.approx(
        3.5
    )
    assert logits_loss(student.repeat(1, 3), teacher.repeat(1, 3)).item() == pytest.approx(3.5)


def test_ce_is_what_one_computes_by_hand() -> None:
    out = Out(row(math.log(3), 0), row(0))
    term = CrossEntropyConfig().build(None, None)
    assert term(out, None, torch.tensor([0])).item() == pytest.approx(-math.log(0.75), rel=1e-12)
    assert term(out, None, torch.tensor([1])).item() == pytest.approx(-math.log(0.25), rel=1e-12)
    smooth = CrossEntropyConfig(label_smoothing=0.2).build(None, None)
    expected = -0.9 * math.log(0.75) - 0.1 * math.log(0.25)
    assert smooth(out, None, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-12)


def test_the_loss_is_the_weighted_sum_and_the_values_are_unweighted(make_taps: Callable) -> None:
    shapes, student = make_taps()
    _, teacher = make_taps(seed=1)
    configs = {
        "ce": CrossEntropyConfig(weight=0.5),
        "kd": DistillationConfig(weight=3.0),
        "logits": LogitsConfig(weight=2.0),
    }
    target = torch.tensor([0, 1, 2])
    total, values = Objective(Terms(configs), shapes, shapes, 5)(student, teacher, target, 0.0)
    alone = {name: config.build(shapes, shapes)(student, teacher, target) for name, config in configs.items()}
    assert list(values) == list(configs)
    assert all(values[name].item() == alone[name].item() and not values[name].requires_grad for name in values)
    assert total.item() == pytest.approx(sum(configs[name].weight * alone[name].item() for name in configs), rel=1e-6)


def test_an_objective_asks_for_what_its_terms_need_alone(make_taps: Callable, make_config: Callable) -> None:
    shapes, _ = make_taps()
    needs = [
        Objective(make_config(terms=terms).terms, shapes, shapes, 5).teacher_needs
        for terms in ({"ce": {}}, {"ce": {}, "kd": {}}, {"kd": {}, "squeeze": {}}, {"kd": {}, "squeeze": {"weight": 0}})
    ]
    assert needs == [frozenset(), {"logits"}, {"logits", "squeezed"}, {"logits"}]
