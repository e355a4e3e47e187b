"""What defines the terms on relations among the embeddings of a batch: pkt, rkd, correlation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hksd.models.taps import Out, TapShapes
from hksd.terms.correlation import CorrelationConfig, correlation_loss
from hksd.terms.pkt import neighbours, pkt_loss
from hksd.terms.rkd import relations, rkd_loss

Loss = Callable[[Tensor, Tensor], Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(one: Tensor, other: Tensor | float, **tolerance: float) -> None:
    assert one.item() == pytest.approx(float(other), **(tolerance or {"rel": 1e-9}))


def turned(embedding: Tensor) -> Tensor:
    size = embedding.shape[1]
    return embedding @ torch.linalg.qr(random(size, size, seed=9))[0]


# --- pkt


def test_pkt_is_what_one_computes_by_hand() -> None:
    # Right angle: similarities 1 and 1/2, so 2/3 and 1/3. Opposite: 1 and 0.
    right, opposite = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double(), torch.tensor([[1.0], [-2.0]]).double()
    torch.testing.assert_close(neighbours(right), torch.tensor([[2, 1], [1, 2]]).double() / 3, rtol=1e-6, atol=0)
    close(pkt_loss(right, opposite), 2 * math.log(3 / 2) / 4, rel=1e-5)
    close(pkt_loss(turned(right), right), 0, abs=1e-12)


def test_pkt_sees_no_rotation_and_no_length_of_any_image() -> None:
    student, teacher = random(6, 5), random(6, 9, seed=1)
    value = pkt_loss(student, teacher)
    lengths = 1 + random(6, 1, seed=2).abs()
    for moved in (turned(student), lengths * student, torch.cat([student, 0 * student], 1)):
        close(pkt_loss(moved, teacher), value, rel=1e-5)
    assert pkt_loss(student + 3, teacher).item() != pytest.approx(value.item(), rel=1e-2)


# --- rkd


def test_relations_are_what_one_computes_by_hand() -> None:
    # A right triangle with sides 3, 4 and 5: the mean distance is 4.
    distance, cosine = relations(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]).double())
    torch.testing.assert_close(distance, torch.tensor([[0, 3, 4], [3, 0, 5], [4, 5, 0]]).double() / 4)
    assert cosine.shape == (3, 3, 3)
    assert cosine[0, 1, 2].item() == pytest.approx(0)
    assert cosine[1, 0, 2].item() == pytest.approx(0.6)
    assert cosine[2, 0, 1].item() == pytest.approx(0.8)
    assert cosine[0, 1, 1].item() == pytest.approx(1)
    assert cosine[0, 0, 1].item() == 0


def test_rkd_sees_no_rotation_shift_or_scale() -> None:
    student, teacher = random(6, 5), random(6, 9, seed=1)
    value = rkd_loss(student, teacher)
    for moved in (turned(student), student + 4, 0.1 * student):
        close(rkd_loss(moved, teacher), value, rel=1e-7)
    close(rkd_loss(student, 5 * turned(student) - 2), 0, abs=1e-12)


def test_the_weights_of_rkd_multiply_their_parts() -> None:
    student, teacher = random(6, 5), random(6, 9, seed=1)
    far, angle = rkd_loss(student, teacher, distance=1, angle=0), rkd_loss(student, teacher, distance=0, angle=1)
    close(rkd_loss(student, teacher, distance=25, angle=50), 25 * far + 50 * angle)


def test_equal_images_leave_finite_values_and_gradients_in_rkd() -> None:
    student = torch.ones(4, 3, requires_grad=True)  # all equal
    value = rkd_loss(student, random(4, 3).float())
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    some = random(4, 3).float()
    some[1] = some[0]
    some.requires_grad_()
    rkd_loss(some, random(4, 3, seed=1).float()).backward()
    assert some.grad is not None
    assert some.grad.abs().max() < 1e4


# --- correlation


def test_correlation_is_what_one_computes_by_hand() -> None:
    student = torch.tensor([[1.0, 0.0], [0.0, -2.0], [3.0, 1.0]])
    # Distances from 0 are |1 0|, |0 2|, |3 1|: products 0 + 0 and 0 + 2, two pairs.
    close(correlation_loss(student, torch.zeros(3, 2)), 1.0)


def test_correlation_sees_the_order_of_images_and_no_sign_of_the_difference() -> None:
    student, teacher = random(6, 5), random(6, 5, seed=1)
    value = correlation_loss(student, teacher)
    close(correlation_loss(teacher, student), value)
    close(correlation_loss(student + 7, teacher + 7), value)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert correlation_loss(student[order], teacher[order]).item() != pytest.approx(value.item())


def test_correlation_projects_both_embeddings_or_only_what_is_unlike() -> None:
    small, large = TapShapes(5, 6, (), ()), TapShapes(5, 9, (), ())
    shapes = {
        (dims, other.embedding): [tuple(p.shape) for p in CorrelationConfig(dims=dims).build(small, other).parameters()]
        for dims in (4, None)
        for other in (small, large)
    }
    assert shapes == {
        (4, 6): [(4, 6), (4,), (4, 6), (4,)],
        (4, 9): [(4, 6), (4,), (4, 9), (4,)],
        (None, 6): [],
        (None, 9): [(9, 6), (9,)],
    }
    embedding = random(4, 6)
    out = Out(embedding, embedding)
    assert CorrelationConfig(dims=None).build(small, small)(out, out, None).item() == 0


@pytest.mark.parametrize("loss", [pkt_loss, rkd_loss, correlation_loss])
def test_one_image_has_no_relations_the_value_is_exactly_0_with_a_graph(loss: Loss) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        student = random(1, 6).to(dtype).requires_grad_()
        value = loss(student, random(1, 6, seed=1).to(dtype))
        value.backward()
        assert value.item() == 0
        assert student.grad is not None
        assert student.grad.abs().max() == 0


@pytest.mark.parametrize("loss", [pkt_loss, rkd_loss])
def test_the_order_of_images_and_the_sizes_of_embeddings_do_not_matter(loss: Loss) -> None:
    student, teacher, order = random(6, 5), random(6, 11, seed=1), torch.tensor([3, 0, 5, 1, 4, 2])
    close(loss(student[order], teacher[order]), loss(student, teacher))
