"""What defines the terms on logits: standardised kd, dkd, dist, mlkd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hksd.models.taps import Out
from hksd.terms.dist import DistConfig, dist_loss
from hksd.terms.dkd import DecoupledConfig, dkd_loss
from hksd.terms.kd import DistillationConfig, kd_loss, standardize
from hksd.terms.mlkd import MultiLevelConfig, gram_distance, mlkd_loss


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(one: Tensor, other: Tensor | float, **tolerance: float) -> None:
    assert one.item() == pytest.approx(float(other), **(tolerance or {"rel": 1e-9}))


# --- standardised kd


def test_standardised_logits_have_mean_0_and_deviation_1() -> None:
    result = standardize(3 * random(5, 7) + 2)
    torch.testing.assert_close(result.mean(1), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(result.std(1), torch.ones(5, dtype=torch.float64), rtol=1e-6, atol=0)


def test_standardised_kd_does_not_see_shift_and_scale_of_either_network_and_plain_kd_does() -> None:
    student, teacher = random(4, 6), random(4, 6, seed=1)
    value = {
        (standard, moved): DistillationConfig(standardize=standard).build(None, None)(
            Out(5 * student + 3 if moved else student, student),
            Out(teacher / 2 - 1 if moved else teacher, teacher),
            None,
        )
        for standard in (True, False)
        for moved in (True, False)
    }
    close(value[True, True], value[True, False], rel=1e-5)
    assert abs(value[False, True] - value[False, False]) > 0.1


def test_equal_logits_are_standardised_to_0_with_finite_gradients() -> None:
    logits = torch.full((2, 5), 3.0, requires_grad=True)
    standardize(logits).sum().backward()
    assert standardize(logits).abs().max() == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


# --- dkd


def test_dkd_of_two_classes_is_kd_since_there_are_no_other_classes() -> None:
    student, teacher, target = random(5, 2), random(5, 2, seed=1), torch.tensor([0, 1, 0, 1, 1])
    for beta in (0.0, 8.0):
        close(dkd_loss(student, teacher, target, beta=beta, temperature=3), kd_loss(student, teacher, 3))


def test_dkd_weighted_by_the_teachers_doubt_is_kd() -> None:
    # The identity of the paper: KL = KL(target against rest) + (1 - p_target) KL(among the rest).
    student, teacher, target = random(1, 6), random(1, 6, seed=1), torch.tensor([2])
    doubt = 1 - (teacher / 4).softmax(1)[0, 2].item()
    close(dkd_loss(student, teacher, target, alpha=1, beta=doubt, temperature=4), kd_loss(student, teacher, 4))


def test_dkd_is_what_one_computes_by_hand() -> None:
    # The teacher says 1/2, 1/4, 1/4 of target and others; the student 1/3 each: the others agree.
    teacher, student = torch.tensor([[math.log(2), 0, 0]]), torch.zeros(1, 3)
    binary = 0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3))
    close(dkd_loss(student, teacher, torch.tensor([0]), alpha=3, beta=100, temperature=1), 3 * binary, rel=1e-5)
    # With another target, target against rest is 1/4 to 3/4, and the others are 2/3, 1/3 against 1/2, 1/2.
    binary = 0.25 * math.log(0.25 / (1 / 3)) + 0.75 * math.log(0.75 / (2 / 3))
    others = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    value = dkd_loss(student, teacher, torch.tensor([1]), alpha=1, beta=2, temperature=1)
    close(value, binary + 2 * others, rel=1e-5)


def test_the_second_part_of_dkd_does_not_see_the_targets_logit() -> None:
    student, teacher, target = random(4, 6), random(4, 6, seed=1), torch.tensor([0, 1, 2, 5])
    other = student + 9 * torch.nn.functional.one_hot(target, 6)
    parts = [dkd_loss(s, teacher, target, alpha=0, beta=1) for s in (student, other)]
    close(parts[0], parts[1])


def test_dkd_stays_finite_for_large_logits() -> None:
    large = torch.tensor([[3e4, -3e4, 0.0]], requires_grad=True)
    value = dkd_loss(large, -large.detach(), torch.tensor([0]), temperature=1)
    value.backward()
    assert value.isfinite()
    assert large.grad is not None
    assert large.grad.isfinite().all()


def test_dkd_makes_no_classifier_without_its_first_part() -> None:
    assert DecoupledConfig().tells_classes()
    assert not DecoupledConfig(alpha=0.0).tells_classes()
    assert DecoupledConfig().data_needs() == {"labels"}


# --- dist


def test_dist_of_two_classes_is_0_for_equal_preferences_and_2_for_opposite_ones() -> None:
    # Of two numbers the correlation is 1 or -1.
    teacher = torch.tensor([[3.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    agree, deny = torch.tensor([[9.0, 0.0], [8.0, 0.0]]).double(), torch.tensor([[0.0, 9.0], [0.0, 8.0]]).double()
    close(dist_loss(agree, teacher, gamma=0, temperature=1), 0, abs=1e-6)
    close(dist_loss(deny, teacher, gamma=0, temperature=1), 2, abs=1e-6)
    close(dist_loss(agree, teacher, beta=0, temperature=1), 0, abs=1e-3)
    close(dist_loss(deny, teacher, beta=0, temperature=1), 2, abs=1e-3)


def test_dist_over_images_does_not_see_their_order() -> None:
    student, teacher, order = random(6, 5), random(6, 5, seed=1), torch.randperm(6)
    close(dist_loss(student[order], teacher[order]), dist_loss(student, teacher))


def test_dist_sees_only_the_correlation_of_probabilities() -> None:
    p = (2 * random(4, 3)).softmax(1)
    q = 1 / 3 + 0.4 * (p - 1 / 3)
    close(dist_loss(q.log(), p.log(), temperature=1), 0, abs=1e-6)
    assert kd_loss(q.log(), p.log(), 1) > 0.01


def test_dist_is_0_for_equals_and_has_no_second_part_for_a_batch_of_one() -> None:
    student, teacher = random(7, 10), random(7, 10, seed=1)
    close(dist_loss(student, student, temperature=1), 0, abs=1e-5)  # the published epsilon keeps it from exactly 0
    close(dist_loss(student[:1], teacher[:1], beta=1, gamma=5), dist_loss(student[:1], teacher[:1], beta=1, gamma=0))
    assert dist_loss(student[:1], teacher[:1], beta=0).item() == 0


def test_dist_has_finite_gradients_where_all_probabilities_are_equal() -> None:
    student = torch.zeros(3, 4, requires_grad=True)
    value = dist_loss(student, random(3, 4).float())
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


# --- mlkd


def test_mlkd_without_similarities_is_kd_summed_over_its_temperatures() -> None:
    student, teacher = random(4, 6), random(4, 6, seed=1)
    value = mlkd_loss(student, teacher, temperatures=(2, 5), batch_weight=0, class_weight=0)
    close(value, kd_loss(student, teacher, 2) + kd_loss(student, teacher, 5))


def test_similarities_are_what_one_computes_by_hand() -> None:
    # Sure of one class each, against equally unsure of both: Gram matrices 1 0 / 0 1 against halves.
    sure, unsure = torch.eye(2), torch.full((2, 2), 0.5)
    close(gram_distance(sure, unsure), 4 * 0.25 / 2)
    close(gram_distance(sure.repeat(2, 1).T, unsure.repeat(2, 1).T), (2 * 1 + 2 * 1) / 2)


def test_similarities_of_images_ignore_the_names_of_classes_and_those_of_classes_the_order_of_images() -> None:
    p, q, order = random(4, 6).softmax(1), random(4, 6, seed=1).softmax(1), torch.tensor([3, 0, 5, 1, 2, 4])
    close(gram_distance(p[:, order], q), gram_distance(p, q))
    turned = torch.tensor([2, 0, 3, 1])
    close(gram_distance(p[turned].T, q.T), gram_distance(p.T, q.T))
    assert gram_distance(p[:, order].T, q.T).item() != pytest.approx(gram_distance(p.T, q.T).item())


def test_temperatures_are_positive_and_there_is_one() -> None:
    from hksd.schema import check

    for wrong in ([], [0.0], [2, -1]):
        _, problems = check(MultiLevelConfig, {"temperatures": wrong})
        assert problems
        assert problems[0].path[0] == "temperatures"
    assert check(MultiLevelConfig, {"temperatures": [1, 2.5]})[0] == MultiLevelConfig(temperatures=(1.0, 2.5))


@pytest.mark.parametrize("config", [DistillationConfig(), DecoupledConfig(), DistConfig(), MultiLevelConfig()])
def test_terms_on_logits_alone_make_a_classifier(config: DistillationConfig) -> None:
    assert config.tells_classes()
