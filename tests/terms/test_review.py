"""Knowledge Review: the loss of published code, and who is fused with whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hksd.config.run import Terms
from hksd.errors import UserError
from hksd.run.objective import Objective
from hksd.terms.review import BatchNorm, Fusion, Review, ReviewConfig, hcl

Make = Callable[..., tuple]


def test_hcl_is_what_the_published_code_computes(vectors: Path) -> None:
    with np.load(vectors / "same_size.npz") as data:
        pairs = [(torch.from_numpy(data[f"feat_s{i}"]), torch.from_numpy(data[f"feat_t{i}"])) for i in range(3)]
        expected = float(data["expected/reviewkd_hcl_sum_over_stages"])
    assert sum(hcl(one, two).item() for one, two in pairs) == pytest.approx(expected, rel=1e-6)


def test_hcl_by_hand_where_only_the_mean_differs_and_where_only_the_detail_differs() -> None:
    # A constant difference of 2 survives every pooling, so that the weights cancel: 4.
    base = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert hcl(base + 2, base).item() == pytest.approx(4, rel=1e-12)
    # A checkerboard of +-1 has mean square 1 and vanishes under every pooling: 1 / (1 + 1/2 + 1/4 + 1/8).
    board = ((torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2 - 1).double().expand(2, 3, 8, 8)
    assert hcl(base + board, base).item() == pytest.approx(8 / 15, rel=1e-12)


@pytest.mark.parametrize(("size", "total"), [(1, 1), (2, 1.5), (4, 1.75), (5, 1.875)])
def test_hcl_leaves_out_poolings_that_are_not_smaller_than_the_map(size: int, total: float) -> None:
    # One pixel of value 1: its mean square at full size is 1 / size^2; the smallest pooling left says the rest.
    one = torch.zeros(1, 1, size, size, dtype=torch.float64)
    one[0, 0, 0, 0] = 1
    expected, weight = 1 / size**2, 1.0
    for pooled in (4, 2, 1):
        if pooled < size:
            weight /= 2
            cells = torch.nn.functional.adaptive_avg_pool2d(one, pooled)
            expected += weight * cells.square().mean().item()
    assert hcl(one, torch.zeros_like(one)).item() == pytest.approx(expected / total, rel=1e-12)


def build(make_taps: Make, **knobs: object) -> tuple[Review, tuple, tuple]:
    student = make_taps(channels=(4, 6, 8), seed=0)
    teacher = make_taps(channels=(5, 7, 9), seed=1, embedding=11)
    torch.manual_seed(0)
    return ReviewConfig(channels=8, **knobs).build(student[0], teacher[0]), student, teacher


def gradients_of(term: Review, student: tuple, teacher: tuple, level: int) -> list[bool]:
    """For the fused map of `level` alone: which stages (and the embedding) of the student it hangs on."""
    found: list[Tensor] = []
    for number, fusion in enumerate(term.fusions):
        fusion.register_forward_hook(
            lambda module, given, result, number=number: found.append(result[0]) if number == level else None
        )
    term(student[1], teacher[1], torch.zeros(3, dtype=torch.long))
    inputs = [*student[1].stages, student[1].embedding]
    grads = torch.autograd.grad(found[0].square().sum(), inputs, allow_unused=True)
    return [grad is not None and bool(grad.abs().max() > 0) for grad in grads]


def test_a_level_is_fused_with_all_above_it_and_with_none_below(make_taps: Make) -> None:
    assert gradients_of(*build(make_taps), 0) == [True, True, True, False]
    assert gradients_of(*build(make_taps), 1) == [False, True, True, False]
    assert gradients_of(*build(make_taps), 2) == [False, False, True, False]


def test_the_embedding_is_the_uppermost_level_where_it_is_asked_for(make_taps: Make) -> None:
    assert gradients_of(*build(make_taps, embedding=True), 0) == [True, True, True, True]
    assert gradients_of(*build(make_taps, embedding=True), 3) == [False, False, False, True]
    config = ReviewConfig(embedding=True)
    assert config.student_needs == config.teacher_needs == {"stages", "embedding"}
    assert ReviewConfig().student_needs == ReviewConfig.teacher_needs == {"stages"}


def test_the_last_stages_are_compared_where_a_number_is_given(make_taps: Make) -> None:
    term, student, teacher = build(make_taps, stages=1)
    term(student[1], teacher[1], torch.zeros(3, dtype=torch.long)).backward()
    assert [stage.grad is not None for stage in student[1].stages] == [False, False, True]


def test_the_attention_mixes_the_stage_and_what_is_above_it_by_shares_of_each_position() -> None:
    fusion = Fusion(2, 3, 4, top=False).double()
    stage, above = torch.randn(2, 2, 4, 4).double(), torch.randn(2, 3, 2, 2).double()
    with torch.no_grad():
        fusion.attention.weight.zero_()
        fusion.attention.bias.copy_(torch.tensor([0.0, 100.0]))  # shares: half of the stage, all of what is above
    result, passed = fusion(stage, above, (8, 8))
    mixed = fusion.enter(stage) / 2 + above.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(passed, mixed.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert result.shape == (2, 4, 8, 8)


def test_batch_normalisation_standardises_keeps_no_state_and_takes_a_single_value() -> None:
    norm = BatchNorm(3)
    result = norm(5 + 3 * torch.randn(8, 3, 4, 4))
    torch.testing.assert_close(result.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    assert not list(norm.buffers())
    assert torch.equal(norm(torch.randn(1, 3, 1, 1)), torch.zeros(1, 3, 1, 1))


def test_a_student_with_the_fusions_learns_to_look_like_its_teacher(make_taps: Make) -> None:
    term, student, teacher = build(make_taps)
    maps = list(student[1].stages)
    optimizer = torch.optim.Adam([*maps, *term.parameters()], lr=0.05)
    values = []
    for _ in range(40):
        value = term(student[1], teacher[1], torch.zeros(3, dtype=torch.long))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.3 * values[0]


@pytest.mark.parametrize("term", ["review", "knowledge_representing", "dense_flow"])
def test_networks_that_do_not_pair_are_an_error_before_training(term: str, make_taps: Make) -> None:
    three, two, none = make_taps()[0], make_taps(channels=(4, 8))[0], make_taps(channels=())[0]
    configs = {name: kind(weight=1.0) for name, kind in Terms.section_types().items() if name == term}
    with torch.device("meta"):
        with pytest.raises(UserError, match=rf"terms.{term} pairs .* set terms.{term}.stages: 2"):
            Objective(Terms(configs), two, three, 5)
        with pytest.raises(UserError, match=rf"terms.{term} compares stages, but the teacher shows none"):
            Objective(Terms(configs), three, none, 5)
        Objective(Terms(configs), three, three, 5)
