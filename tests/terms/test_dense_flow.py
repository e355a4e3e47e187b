"""Dense flow: spans, flows by hand, and discriminators that play fair."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hksd.errors import UserError
from hksd.models.taps import Out
from hksd.terms.dense_flow import DenseFlow, DenseFlowConfig, FlowDiscriminators, spans
from hksd.terms.fsp import fsp_matrix

Make = Callable[..., Any]
TARGET = torch.zeros(3, dtype=torch.int64)


def build(make_taps: Make, same: bool = False, **knobs: Any) -> tuple[DenseFlow, Out, Out]:
    student = make_taps(seed=0)
    teacher = make_taps(seed=1) if same else make_taps(channels=(5, 7, 9), seed=1)
    torch.manual_seed(0)
    return DenseFlowConfig(**{"hidden": 16, **knobs}).build(student[0], teacher[0]), student[1], teacher[1]


def test_spans_are_neighbours_and_with_overlap_all_pairs_the_short_ones_first() -> None:
    assert spans(3, False) == [(0, 1), (1, 2)]
    assert spans(3, True) == [(0, 1), (1, 2), (0, 2)]
    assert spans(4, True) == [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 3)]


def test_the_flow_is_the_mean_product_of_channels_over_the_smaller_grid() -> None:
    first, second = torch.zeros(1, 2, 2, 2), torch.tensor([[[[3.0]], [[5.0]]]])
    first[0, 0] = torch.tensor([[1.0, 2.0], [3.0, 6.0]])  # its mean is 3
    assert fsp_matrix(first, second).tolist() == [[[9, 15], [0, 0]]]
    other = torch.randn(1, 3, 2, 2)
    expected = sum(torch.outer(first[0, :, i, j], other[0, :, i, j]) for i in range(2) for j in range(2)) / 4
    torch.testing.assert_close(fsp_matrix(first, other)[0], expected)


@pytest.mark.parametrize("name", ["same_size", "other_size"])
def test_without_overlap_and_game_it_is_the_fsp_of_published_code(name: str, vectors: Path) -> None:
    with np.load(vectors / f"{name}.npz") as data:
        mine, goal = ([torch.from_numpy(data[f"feat_{side}{i}"]) for i in range(3)] for side in "st")
        expected = data["expected/fsp_per_pair"]
    channels = tuple(one.shape[1] for one in mine)
    term = DenseFlow(DenseFlowConfig(overlap=False, adversarial_weight=0), channels, channels)
    ours, theirs = term.flows(Out(mine[0], mine[0], mine), Out(goal[0], goal[0], goal))
    found = [(a - b).square().mean().item() for a, b in zip(ours, theirs, strict=True)]
    assert found == pytest.approx(expected, rel=1e-6)


def test_equal_networks_have_no_distance_and_equal_channels_no_adaptor(make_taps: Make) -> None:
    term, student, _ = build(make_taps, same=True, adversarial_weight=0.0)
    assert term(student, student, TARGET).item() == 0
    assert not list(term.parameters())
    assert len(list(build(make_taps)[0].adaptors.parameters())) == 3


def test_the_value_is_the_distance_and_the_game_times_its_weight(make_taps: Make) -> None:
    values = {}
    for weight in (0.0, 0.1, 0.5):
        term, student, teacher = build(make_taps, same=True, adversarial_weight=weight)
        values[weight] = term(student, teacher, TARGET).item()
    assert values[0.5] - values[0.0] == pytest.approx(5 * (values[0.1] - values[0.0]), rel=1e-3)
    assert values[0.1] > values[0.0]


@pytest.mark.parametrize("shared", [False, True])
def test_there_is_a_discriminator_for_each_span_or_one_for_all(shared: bool) -> None:
    module = FlowDiscriminators([6, 8, 10], 4, shared)
    assert len(module.bodies) == (1 if shared else 3)
    scores = module(*(torch.randn(6, size) for size in (6, 8, 10)))
    assert scores.shape == (3, 6)


@pytest.mark.parametrize("knobs", [{}, {"shared": True}, {"loss": "hinge"}, {"loss": "least_squares"}], ids=str)
def test_the_discriminators_learn_to_tell_and_touch_no_student(knobs: dict[str, Any], make_taps: Make) -> None:
    term, student, teacher = build(make_taps, lr=1e-2, **knobs)
    before = [p.detach().clone() for p in term.adaptors.parameters()]
    found = [term.own_step(student, teacher, TARGET)["discriminator_accuracy"].item() for _ in range(80)]
    assert found[-1] > 0.95
    assert all(torch.equal(a, b) for a, b in zip(before, term.adaptors.parameters(), strict=True))
    assert all(p.grad is None for p in term.adaptors.parameters())
    assert all(stage.grad is None for stage in student.stages)


def test_a_student_step_moves_adaptors_and_no_discriminator(make_taps: Make) -> None:
    term, student, teacher = build(make_taps)
    term(student, teacher, TARGET).backward()
    assert all(p.grad is None for p in term.discriminators.parameters())
    assert all(p.grad.abs().max() > 0 for p in term.joint_parameters())


def test_the_student_learns_to_be_taken_for_a_teacher(make_taps: Make) -> None:
    term, student, teacher = build(make_taps, lr=1e-2)
    for _ in range(40):
        term.own_step(student, teacher, TARGET)

    def fooled() -> Tensor:
        ours, theirs = term.flows(student, teacher)
        both = [torch.cat([goal, mine]) for mine, goal in zip(ours, theirs, strict=True)]
        return term.discriminators(*both)[:, 3:].mean()

    before = fooled().item()
    optimizer = torch.optim.Adam([*student.stages, *term.joint_parameters()], lr=0.05)
    for _ in range(30):
        value = term(student, teacher, TARGET)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert fooled().item() > before + 1


def test_a_single_stage_is_an_error_with_a_cure(make_taps: Make) -> None:
    shapes, _ = make_taps()
    with pytest.raises(UserError, match=r"terms.dense_flow .*only 1 stage.*at least 2"):
        DenseFlowConfig(stages=1).build(shapes, shapes)


def test_knobs_of_the_game_are_dead_without_it() -> None:
    assert DenseFlowConfig(adversarial_weight=0).dead_knobs() == {"shared", "loss", "hidden", "lr"}
    assert not DenseFlowConfig().dead_knobs()
