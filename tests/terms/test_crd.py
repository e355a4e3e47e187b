"""Contrastive distillation: the loss by hand, who is a negative, and a memory that is written once per batch."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hksd.errors import UserError
from hksd.models.taps import Out, TapShapes
from hksd.terms.base import Setting
from hksd.terms.crd import Contrastive, ContrastiveConfig, Negatives, nce_loss

SHAPES = TapShapes(4, 5, (), ())
LABELS = torch.arange(24) % 4


def build(seed: int = 0, labels: Tensor = LABELS, **knobs: Any) -> Contrastive:
    torch.manual_seed(seed)
    term = ContrastiveConfig(**{"dims": 6, "negatives": 7, **knobs}).build(SHAPES, SHAPES)
    term.meet(Setting(labels, None))
    return term


def batch(*index: int, seed: int = 0) -> tuple[Out, Out, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    at = torch.tensor(index)
    student, teacher = (torch.randn(len(at), 5, generator=draw) for _ in range(2))
    return Out(teacher, student.requires_grad_(), index=at), Out(teacher, teacher), LABELS[at]


# --- the loss


def test_the_loss_is_the_formula_of_the_paper() -> None:
    images, negatives, z = 50, 3, 7.0
    scores = torch.tensor([[1.2, -0.3, 0.5, 0.1], [0.2, 0.3, -1.5, 2.0]], dtype=torch.float64)
    p, noise = scores.exp() / z, negatives / images
    by_hand = -(p[:, 0] / (p[:, 0] + noise)).log() - (noise / (p[:, 1:] + noise)).log().sum(1)
    log_z = torch.tensor(math.log(z), dtype=torch.float64)
    assert nce_loss(scores, log_z, images).item() == pytest.approx(by_hand.mean().item(), rel=1e-12)


def test_the_loss_falls_as_the_own_image_comes_nearer_and_others_go_away() -> None:
    scores = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    nce_loss(scores, torch.tensor(0.0), 10).backward()
    assert scores.grad[0, 0] < 0
    assert (scores.grad[0, 1:] > 0).all()


def test_no_temperature_makes_the_loss_overflow() -> None:
    term = build(temperature=1e-3)
    student, teacher, target = batch(0, 1, 2)
    value = term(student, teacher, target)
    value.backward()
    assert value.isfinite()
    assert student.embedding.grad.isfinite().all()


def test_both_directions_are_what_one_computes_by_gathering_rows() -> None:
    term = build()
    student, teacher, target = batch(3, 8, 14)
    term.own_step(student, teacher, target)
    torch.manual_seed(5)
    value = term(student, teacher, target)
    torch.manual_seed(5)
    wanted = torch.cat([student.index[:, None], term.negatives.draw(student.index)], 1)
    mine = F.normalize(term.of_student(student.embedding), dim=1)
    goal = F.normalize(term.of_teacher(teacher.embedding), dim=1)
    expected = torch.zeros(())
    for vector, memory, log_z in ((mine, term.teacher_memory, 0), (goal, term.student_memory, 1)):
        scores = torch.stack([memory[rows] @ one for rows, one in zip(wanted, vector, strict=True)]) / 0.07
        expected = expected + nce_loss(scores, term.log_z[log_z], len(LABELS))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


# --- negatives


@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=40).filter(lambda labels: len(set(labels)) > 1),
    st.integers(1, 60),
    st.integers(0, 1000),
)
def test_negatives_are_distinct_and_never_of_the_anchors_class(labels: list[int], wanted: int, seed: int) -> None:
    torch.manual_seed(seed)
    every = torch.tensor(labels)
    found = Negatives(every, wanted).draw(torch.arange(len(labels)))
    assert found.shape[1] == min(wanted, min(len(labels) - labels.count(label) for label in labels))
    assert (every[found] != every[:, None]).all()
    assert all(len(set(row.tolist())) == found.shape[1] for row in found)


def test_negatives_are_drawn_evenly_over_all_images_of_other_classes() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0] * 3 + [1] * 5 + [2] * 8)
    negatives, index = Negatives(labels, 4), torch.tensor([0, 4, 4, 15])
    counts = torch.zeros(4, 16)
    for _ in range(3000):
        counts.scatter_add_(1, negatives.draw(index), torch.ones(4, 4))
    for row, anchor in zip(counts / 3000, index, strict=True):
        others = labels != labels[anchor]
        assert (row[~others] == 0).all()
        assert row[others].sub(4 / others.sum()).abs().max() < 0.04


# --- memories


def test_a_batch_is_written_into_the_memories_once_at_the_next_step_and_nowhere_else() -> None:
    term = build(momentum=0.25)
    first, second = batch(2, 5, seed=1), batch(7, 9, 11, seed=2)
    start = term.student_memory.clone(), term.teacher_memory.clone()
    term.own_step(*first)
    term(*first)
    term(*first)
    assert torch.equal(term.student_memory, start[0])
    expected = [
        F.normalize(0.25 * memory[first[0].index] + 0.75 * F.normalize(project(out.embedding), dim=1), dim=1)
        for memory, project, out in ((start[0], term.of_student, first[0]), (start[1], term.of_teacher, first[1]))
    ]
    term.own_step(*second)
    untouched = [row for row in range(24) if row not in (2, 5)]
    for memory, before, rows in zip((term.student_memory, term.teacher_memory), start, expected, strict=True):
        torch.testing.assert_close(memory[first[0].index], rows)
        assert torch.equal(memory[untouched], before[untouched])
    term(*second)
    assert torch.equal(term.student_memory[untouched], start[0][untouched])


def test_rows_of_the_memories_become_unit_vectors() -> None:
    term = build()
    for _ in range(2):
        term.own_step(*batch(0, 1, 2))
    torch.testing.assert_close(term.teacher_memory[:3].norm(dim=1), torch.ones(3))


def test_z_is_estimated_on_the_first_batch_and_kept() -> None:
    term = build()
    student, teacher, target = batch(0, 1, 2)
    torch.manual_seed(4)
    term.own_step(student, teacher, target)
    torch.manual_seed(4)
    wanted = torch.cat([student.index[:, None], term.negatives.draw(student.index)], 1)
    mine = F.normalize(term.of_student(student.embedding), dim=1)
    mean = (mine @ term.teacher_memory.T / 0.07).gather(1, wanted).exp().mean()
    assert term.log_z[0].item() == pytest.approx((mean * 24).log().item(), rel=1e-5)
    kept = term.log_z.clone()
    term.own_step(*batch(3, 4, 5, seed=9))
    assert torch.equal(term.log_z, kept)


def test_calling_the_term_writes_nothing() -> None:
    term = build()
    term.own_step(*batch(0, 1))
    before = copy.deepcopy((term.state_dict(), term.get_extra_state()))
    term(*batch(2, 3)).backward()
    after = (term.state_dict(), term.get_extra_state())
    torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_memories_go_on_bit_identically_after_a_resume_between_batches(tmp_path: Any) -> None:
    one, two = build(), build(seed=7)
    for step in range(3):
        one.own_step(*batch(step, step + 4, seed=step))
    torch.save(one.state_dict(), tmp_path / "state.pt")
    two.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for term in (one, two):
        torch.manual_seed(0)
        term.own_step(*batch(8, 9, seed=5))
    assert torch.equal(one.student_memory, two.student_memory)
    assert torch.equal(one.teacher_memory, two.teacher_memory)
    assert torch.equal(one.log_z, two.log_z)


def test_the_memories_are_in_the_checkpoint_with_the_size_that_is_documented() -> None:
    state = build().state_dict()
    sizes = [state[name].nbytes for name in ("student_memory", "teacher_memory")]
    assert sum(sizes) == 8 * 24 * 6
    assert "46 MB" in (Contrastive.__doc__ or "")
    assert round(8 * 45_000 * 128 / 1e6) == 46


# --- errors, and whether it works at all


def test_images_without_an_index_and_a_run_without_other_classes_are_errors_with_a_cure() -> None:
    student, teacher, target = batch(0, 1)
    with pytest.raises(UserError, match=r"terms.crd .*no index.*take the term away"):
        build().own_step(Out(student.logits, student.embedding), teacher, target)
    for labels in (torch.zeros(5, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)):
        with pytest.raises(UserError, match=r"terms.crd .*other classes.*take the term away"):
            build(labels=labels)
    assert ContrastiveConfig().data_needs() == {"labels", "index"}


def test_a_student_learns_to_be_told_apart_like_its_teacher() -> None:
    """Rows of one image come near to each other, those of other classes go away."""
    term = build(negatives=16)
    draw = torch.Generator().manual_seed(0)
    goal = F.one_hot(LABELS, 5).float() + 0.1 * torch.randn(24, 5, generator=draw)
    mine = torch.randn(24, 5, generator=draw).requires_grad_()
    optimizer = torch.optim.Adam([mine, *term.joint_parameters()], lr=0.05)
    at, values = torch.arange(24), []
    for _ in range(60):
        student, teacher = Out(mine, mine, index=at), Out(goal, goal)
        term.own_step(student, teacher, LABELS)
        value = term(student, teacher, LABELS)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    near = term.of_student(mine).detach() @ term.teacher_memory.T
    same = LABELS[:, None] == LABELS
    assert near[same].mean() > near[~same].mean() + 0.3
    assert values[-1] < 0.5 * values[1]


def test_memories_come_from_the_seed_in_single_precision() -> None:
    one, two = build(seed=0), build(seed=1)
    assert not torch.equal(one.student_memory, two.student_memory)
    assert one.student_memory.dtype == torch.float32
