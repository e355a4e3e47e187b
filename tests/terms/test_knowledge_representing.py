"""Knowledge Representing: a tube of learned width, an aggregate of layers, and two optimisers that alternate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hksd.errors import UserError
from hksd.models.taps import TapShapes
from hksd.terms.knowledge_representing import (
    Aggregation,
    KnowledgeRepresenting,
    KnowledgeRepresentingConfig,
    aggregation_loss,
    gate_penalty,
    identity_map,
    transport_weights,
    tube_penalty,
    weighted_mean,
)

Make = Callable[..., Any]
TARGET = torch.zeros(3, dtype=torch.int64)


def build(make_taps: Make, blocks: int = 4, **knobs: Any) -> tuple[KnowledgeRepresenting, Any, Any]:
    student, teacher = make_taps(seed=0), make_taps(channels=(5, 7, 9), blocks=blocks, seed=1)
    torch.manual_seed(0)
    return KnowledgeRepresentingConfig(**knobs).build(student[0], teacher[0]), student[1], teacher[1]


# --- the penalty


def test_the_penalties_are_what_one_computes_by_hand() -> None:
    residual, tau = torch.tensor([-3.0, -0.5, 0.0, 1.5]), torch.tensor(1.0)
    assert tube_penalty(residual, tau, 0.2).item() == pytest.approx((2 + 0.5) / 4 + 0.2)
    assert tube_penalty(residual, tau, 0.2, 2).item() == pytest.approx((4 + 0.25) / 4 + 0.2)
    tube = (2 + 0.5) / 4 + 0.2
    assert gate_penalty(residual, tau, 0.2, 1, 0.5).item() == pytest.approx(1.5 * (3 + 1.5) / 4 + tube)
    assert gate_penalty(residual, tau, 0.2, 2, 0.5).item() == pytest.approx(1.5 * (9 + 2.25) / 4 + tube)


def test_no_gradient_passes_inside_the_tube_and_the_gate_strengthens_it_outside() -> None:
    for penalty in (tube_penalty, gate_penalty):
        residual = torch.tensor([-3.0, -0.5, 0.25, 1.5], requires_grad=True)
        penalty(residual, torch.tensor(1.0), 0.3).backward()
        assert residual.grad.tolist() == [-0.25, 0, 0, 0.25]
    residual = torch.tensor([-3.0, -0.5], requires_grad=True)
    gate_penalty(residual, torch.tensor(1.0), 0.3, 2, kappa=1.0).backward()
    assert residual.grad.tolist() == [2 * -3.0, 0]


@pytest.mark.parametrize("nu", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("penalty", [tube_penalty, gate_penalty])
def test_the_learned_threshold_leaves_the_share_nu_outside(penalty: Callable[..., Tensor], nu: float) -> None:
    residual = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 3
    t = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([t], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        penalty(residual, F.softplus(t), nu).sum().backward()
        optimizer.step()
    assert (residual.abs() > F.softplus(t)).float().mean().item() == pytest.approx(nu, abs=0.02)


def test_a_threshold_without_its_price_would_run_away() -> None:
    """Why nu tau is there: the bare penalty falls with tau until everything is inside."""
    residual, tau = torch.randn(1000), torch.tensor(1.0, requires_grad=True)
    tube_penalty(residual, tau, 1e-9).backward()
    assert tau.grad < -0.2


# --- the aggregate


def test_the_identity_map_resizes_and_pads_or_cuts_channels() -> None:
    like = torch.zeros(2, 5, 4, 4)
    x = torch.randn(2, 3, 8, 8)
    found = identity_map(x, like)
    torch.testing.assert_close(found[:, :3], F.avg_pool2d(x, 2))
    assert (found[:, 3:] == 0).all()
    up = identity_map(torch.randn(2, 6, 2, 2), like)
    assert up.shape == like.shape
    same = torch.randn(2, 5, 4, 4)
    assert torch.equal(identity_map(same, like), same)


def test_layers_that_vary_more_weigh_more_by_their_standard_deviation() -> None:
    maps = [torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2), torch.tensor([-3.0, 3.0]).view(1, 1, 1, 2)]
    assert [weight.item() for weight in transport_weights(maps, 2.0)] == pytest.approx([1 + 2 * 0.5, 1 + 2 * 1.5])
    assert [weight.item() for weight in transport_weights(maps, 0.0)] == [1, 1]


def test_the_closed_form_is_the_minimum_of_the_aggregation_loss() -> None:
    maps = [torch.randn(2, 3, 4, 4, dtype=torch.float64) * scale for scale in (1, 2, 3)]
    weights = transport_weights(maps, 1.5)
    best = weighted_mean(maps, weights).requires_grad_()
    aggregation_loss(best, maps, weights).backward()
    assert best.grad.abs().max() < 1e-7  # weights are in single precision
    least = aggregation_loss(best, maps, weights)
    for _ in range(5):
        assert aggregation_loss(best + 0.1 * torch.randn_like(best), maps, weights) > least


def test_the_aggregation_starts_as_the_mean_and_its_loss_does_not_see_the_scale() -> None:
    maps = [torch.randn(2, 3, 4, 4) for _ in range(3)]
    torch.testing.assert_close(Aggregation(3, 3)(maps), sum(maps) / 3)
    weights = [torch.ones(())] * 3
    one = aggregation_loss(sum(maps) / 3, maps, weights)
    many = aggregation_loss(50 * sum(maps) / 3, [50 * m for m in maps], weights)
    assert many.item() == pytest.approx(one.item(), rel=1e-4)


def test_the_trained_aggregation_learns_in_its_own_step_alone(make_taps: Make) -> None:
    term, student, teacher = build(make_taps, transport=5.0)
    for stage in teacher.blocks:
        stage[-1].data *= 4  # layers that vary unequally, so that the mean is not what the aggregation wants
    joint = [p.detach().clone() for p in term.adaptors.parameters()]
    losses = [term.own_step(student, teacher, TARGET)["aggregation_loss"].item() for _ in range(60)]
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(a, b) for a, b in zip(joint, term.adaptors.parameters(), strict=True))
    for p in term.parameters():
        p.grad = None
    before = copy.deepcopy(term.aggregations.state_dict())
    term(student, teacher, TARGET).backward()
    assert all(p.grad is None for p in term.aggregations.parameters())
    assert all(p.grad is not None for p in term.joint_parameters())
    assert all(torch.equal(before[name], value) for name, value in term.aggregations.state_dict().items())


def test_windows_end_at_the_end_of_a_stage_and_reach_into_the_one_below(make_taps: Make) -> None:
    term, _, teacher = build(make_taps, blocks=2, neighbours=3)
    assert [list(window) for window in term.windows] == [[0, 1], [1, 2, 3], [3, 4, 5]]
    groups = term._groups(teacher)
    assert [[tuple(one.shape[1:]) for one in maps] for maps in groups] == [
        [(5, 8, 8)] * 2,
        [(7, 4, 4)] * 3,
        [(9, 2, 2)] * 3,
    ]
    assert torch.equal(groups[1][-1], teacher.blocks[1][-1])
    assert [list(window) for window in build(make_taps, stages=1, neighbours=2)[0].windows] == [[10, 11]]


def test_the_first_thresholds_are_the_mean_distance_of_the_first_batch(make_taps: Make) -> None:
    term, student, teacher = build(make_taps, aggregate="mean_std")
    term.own_step(student, teacher, TARGET)
    sizes = [one.abs().mean().item() for one in term._residuals(student, term._groups(teacher))]
    assert F.softplus(term.thresholds).tolist() == pytest.approx(sizes, rel=1e-4)
    kept = term.thresholds.detach().clone()
    term.own_step(student, teacher, TARGET)
    assert torch.equal(term.thresholds, kept)


def test_the_rate_of_the_aggregation_falls_after_its_drops(make_taps: Make) -> None:
    term, student, teacher = build(make_taps, lr=0.1, drops=(2, 3))
    rates = []
    for _ in range(4):
        term.own_step(student, teacher, TARGET)
        rates.append(term.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_dead_knobs_are_those_of_the_other_form() -> None:
    assert KnowledgeRepresentingConfig().dead_knobs() == {"kappa"}
    assert KnowledgeRepresentingConfig(aggregate="mean_std", penalty="gate").dead_knobs() == {"lr", "drops"}


def test_a_teacher_without_blocks_is_an_error_with_a_cure() -> None:
    shapes = TapShapes(4, 5, (3, 4), ())
    with pytest.raises(UserError, match=r"terms.knowledge_representing .*no blocks; take the term away"):
        KnowledgeRepresentingConfig().build(shapes, shapes)
