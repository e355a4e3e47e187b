"""What defines the terms on stages: attention transfer, fitnet, fsp, nst, similarity, vid; and what they share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hksd.errors import UserError
from hksd.models.taps import TapShapes
from hksd.schema import check
from hksd.terms import TERMS
from hksd.terms.attention_transfer import attention_map, attention_transfer_loss
from hksd.terms.fitnet import BatchNorm, FitNetConfig, Regressor, hint_stage
from hksd.terms.fsp import fsp_loss, fsp_matrix
from hksd.terms.maps import full_precision, rows, same_grid, unit
from hksd.terms.nst import nst_loss
from hksd.terms.similarity import similarities, similarity_loss
from hksd.terms.vid import EPS, VariationalConfig, vid_loss

STAGED = ("attention_transfer", "fitnet", "fsp", "nst", "similarity", "vid")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(one: Tensor, other: Tensor | float, **tolerance: float) -> None:
    assert one.item() == pytest.approx(float(torch.as_tensor(other).detach()), **(tolerance or {"rel": 1e-9}))


# --- attention transfer


def test_the_attention_map_is_what_one_computes_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 2.0]], [[1.0, 2.0]]]])  # 2 channels, 1 x 2 positions: energies 1 and 4
    torch.testing.assert_close(attention_map(maps), torch.tensor([[1.0, 4.0]]) / math.sqrt(17))
    torch.testing.assert_close(attention_map(maps, 1), torch.tensor([[1.0, 2.0]]) / math.sqrt(5))
    # Against a flat map: ((1 - sqrt(17 / 2)) ^ 2 + ...) / 17, over two positions.
    flat = torch.ones(1, 3, 1, 2)
    expected = ((1 / math.sqrt(17) - math.sqrt(0.5)) ** 2 + (4 / math.sqrt(17) - math.sqrt(0.5)) ** 2) / 2
    close(attention_transfer_loss(maps, flat), expected, rel=1e-6)


def test_attention_transfer_sees_no_scale_no_sign_and_no_order_of_channels() -> None:
    student, teacher = random(3, 6, 4, 4), random(3, 9, 4, 4, seed=1)
    value = attention_transfer_loss(student, teacher)
    for moved in (7 * student, -student, student[:, torch.randperm(6)], student.repeat(1, 2, 1, 1)):
        close(attention_transfer_loss(moved, teacher), value)
    assert attention_transfer_loss(student.flip(3), teacher).item() != pytest.approx(value.item())


# --- fitnet


def test_the_hint_is_the_middle_stage_or_one_counted_from_the_last() -> None:
    shapes = {n: TapShapes(5, 6, tuple(range(1, n + 1)), ()) for n in (0, 1, 2, 3, 4)}
    middle = {n: shapes[n].stages[-hint_stage(shapes[n], shapes[n], "middle")] for n in (1, 2, 3, 4)}
    assert middle == {1: 1, 2: 1, 3: 2, 4: 2}
    assert hint_stage(shapes[2], shapes[4], 2) == 2
    with pytest.raises(UserError, match=r"fitnet\.stage=middle.*student has 2.*teacher has 4.*at most 2"):
        hint_stage(shapes[2], shapes[4], "middle")
    with pytest.raises(UserError, match=r"fitnet\.stage=3.*at most 2"):
        hint_stage(shapes[2], shapes[4], 3)
    with pytest.raises(UserError, match="the student shows none"):
        hint_stage(shapes[0], shapes[4], "middle")


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "last", None])
def test_a_stage_is_the_middle_or_a_whole_number(wrong: Any) -> None:
    _, problems = check(FitNetConfig, {"stage": wrong})
    assert len(problems) == 1
    assert "'middle' or a whole number from 1 to 1000" in problems[0].message


def test_a_plain_adaptor_stands_only_where_channels_are_unlike() -> None:
    narrow, wide = (TapShapes(5, 6, channels, ()) for channels in ((2, 3, 4), (2, 6, 4)))
    plain = FitNetConfig(adaptor="needed")
    assert not list(plain.build(narrow, narrow).parameters())
    assert [p.shape for p in plain.build(narrow, wide).parameters()] == [(6, 3, 1, 1)]
    assert len(list(FitNetConfig().build(narrow, narrow).parameters())) == 3


def test_without_an_adaptor_fitnet_is_0_for_equals_and_the_mean_square_otherwise(make_taps: Callable) -> None:
    shapes, student = make_taps()
    _, teacher = make_taps(seed=1)
    term = FitNetConfig(adaptor="needed").build(shapes, shapes)
    assert term(student, student, None).item() == 0
    close(term(student, teacher, None), (student.stages[1] - teacher.stages[1]).square().mean(), rel=1e-6)


def test_the_regressor_gives_what_normalisation_with_the_statistics_of_the_batch_gives() -> None:
    torch.manual_seed(0)
    regressor, reference = Regressor(3, 5), nn.BatchNorm2d(5)
    maps = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(regressor(maps), reference(regressor[0](maps)).relu())
    torch.testing.assert_close(regressor.eval()(maps), regressor.train()(maps))
    assert not list(regressor.buffers())


def test_a_single_value_per_channel_is_normalised_to_the_shift_with_finite_gradients() -> None:
    norm = BatchNorm(3)
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    one = torch.randn(1, 3, 1, 1, requires_grad=True)
    value = norm(one)
    value.sum().backward()
    assert value.flatten().tolist() == [1.0, 2.0, 3.0]
    assert one.grad is not None
    assert one.grad.abs().max() == 0


# --- fsp


def test_the_fsp_matrix_is_what_one_computes_by_hand() -> None:
    first = torch.tensor([[[[1.0, 2.0]]]])  # one channel, two positions
    second = torch.tensor([[[[3.0, 5.0]], [[1.0, 0.0]]]])
    torch.testing.assert_close(fsp_matrix(first, second), torch.tensor([[[(3 + 10) / 2, 1 / 2]]]))


def test_fsp_pools_the_larger_stage_and_sees_no_common_movement_of_positions() -> None:
    first, second = random(2, 3, 8, 8), random(2, 5, 4, 4, seed=1)
    torch.testing.assert_close(fsp_matrix(first, second), fsp_matrix(F.avg_pool2d(first, 2), second))
    torch.testing.assert_close(fsp_matrix(first.flip(2), second.flip(2)), fsp_matrix(first, second))
    close(fsp_loss(first, second, first.flip(3), second.flip(3)), 0, abs=1e-20)
    assert fsp_loss(first, second, first.flip(3), second) > 1e-3


def test_fsp_needs_two_stages() -> None:
    one, three = TapShapes(5, 6, (4,), ()), TapShapes(5, 6, (4, 5, 6), ())
    for student, knobs in ((one, {"stages": 1}), (three, {"stages": 1}), (one, {})):
        teacher = student if not knobs else three
        with pytest.raises(UserError, match=r"terms\.fsp\.stages to 2 or more"):
            TERMS["fsp"].config(**knobs).build(student, teacher)


def test_fsp_has_adaptors_only_where_channels_are_unlike_and_as_many_pairs_as_steps_between_stages() -> None:
    student, teacher = TapShapes(5, 6, (4, 5, 6), ()), TapShapes(5, 6, (4, 7, 6), ())
    term = TERMS["fsp"].config().build(student, teacher)
    assert {path: p.shape for path, p in term.named_parameters()} == {"adaptors.1.weight": (7, 5, 1, 1)}


# --- nst


def test_nst_of_single_channels_is_what_one_computes_by_hand() -> None:
    # Unit vectors (1, 0) and (3, 4) / 5: kernels 1, 1 and 0.36.
    one, other = torch.tensor([[[[2.0, 0.0]]]]), torch.tensor([[[[3.0, 4.0]]]])
    close(nst_loss(one, other), 1 + 1 - 2 * 0.36, rel=1e-6)
    # Two channels against one: E k(s, s') is the mean over the four pairs, (1 + 1 + 2 * 0.36) / 4.
    both = torch.cat([one, other], 1)
    close(nst_loss(both, one), 1 + (2 + 2 * 0.36) / 4 - 2 * (1 + 0.36) / 2, rel=1e-6)


@pytest.mark.parametrize("channels", [2, 40])  # fewer and more than half of the positions: both ways to compute it
def test_nst_sees_no_order_number_or_scale_of_channels(channels: int) -> None:
    student, teacher = random(3, channels, 5, 5), random(3, 7, 5, 5, seed=1)
    value = nst_loss(student, teacher)
    scale = 1 + random(1, channels, 1, 1, seed=2).abs()
    for moved in (student * scale, student[:, torch.randperm(channels)], student.repeat(1, 3, 1, 1)):
        close(nst_loss(moved, teacher), value)
    close(nst_loss(student.flip(2), teacher.flip(2)), value)
    close(nst_loss(student, student[:, torch.randperm(channels)]), 0, abs=1e-14)


@pytest.mark.parametrize("shape", [(2, 30, 3, 3), (2, 4, 6, 6)])
def test_both_ways_to_compute_nst_are_the_definition(shape: tuple[int, ...]) -> None:
    student, teacher = random(*shape), random(*shape, seed=1)
    s, t = (F.normalize(m.flatten(2), dim=2) for m in (student, teacher))
    kernel = [torch.einsum("nap,nbp->nab", a, b).square().mean() for a, b in ((t, t), (s, s), (s, t))]
    close(nst_loss(student, teacher), kernel[0] + kernel[1] - 2 * kernel[2])


# --- similarity


def test_similarity_is_what_one_computes_by_hand() -> None:
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0]])[:, :, None, None]  # G is diagonal: rows (1, 0) and (0, 1)
    teacher = torch.tensor([[3.0], [4.0]])[:, :, None, None]  # G = 9 12 / 12 16: rows (3, 4) / 5 twice
    close(similarity_loss(student, teacher), (0.4**2 + 0.8**2 + 0.6**2 + 0.2**2) / 4, rel=1e-6)


def test_similarity_sees_no_rotation_of_features_and_no_common_scale() -> None:
    student, teacher = random(5, 4, 2, 2), random(5, 9, 3, 3, seed=1)
    value = similarity_loss(student, teacher)
    turn = torch.linalg.qr(random(16, 16, seed=2))[0]
    turned = (student.flatten(1) @ turn).view(5, 4, 2, 2)
    for moved in (3 * student, turned, student.flip(1)):
        close(similarity_loss(moved, teacher), value)


def test_similarity_of_one_image_is_exactly_0_with_a_graph() -> None:
    student = torch.randn(1, 4, 2, 2, requires_grad=True)
    value = similarity_loss(student, torch.randn(1, 4, 2, 2))
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert student.grad.abs().max() == 0


def test_images_without_activation_leave_finite_gradients() -> None:
    for loss in (attention_transfer_loss, nst_loss, similarity_loss):
        dead = random(3, 4, 4, 4).float()
        dead[0] = 0
        dead[1, 2] = 0
        dead.requires_grad_()
        value = loss(dead, random(3, 4, 4, 4, seed=1).float())
        value.backward()
        assert value.isfinite()
        assert dead.grad is not None
        assert dead.grad.abs().max() < 1e3


# --- vid


def test_vid_is_the_likelihood_of_a_gaussian_without_its_constant() -> None:
    mean, teacher, raw = random(3, 4, 2, 2), random(3, 4, 2, 2, seed=1), random(4, seed=2)
    variance = (F.softplus(raw) + EPS)[None, :, None, None]
    density = torch.distributions.Normal(mean, variance.sqrt()).log_prob(teacher)
    close(vid_loss(mean, teacher, raw), -density.mean() - 0.5 * math.log(2 * math.pi))


def test_the_variance_starts_at_its_knob_and_the_best_one_is_the_squared_error() -> None:
    shapes = TapShapes(5, 6, (4, 8, 12), ())
    for start in (5.0, 0.01):
        term = VariationalConfig(initial_variance=start).build(shapes, shapes)
        for predictor in term.predictors:
            raw = predictor.raw_variance
            torch.testing.assert_close(F.softplus(raw) + EPS, torch.full_like(raw, start), rtol=1e-5, atol=0)
    raw = torch.tensor([math.log(math.expm1(0.25 - EPS))], dtype=torch.float64, requires_grad=True)
    vid_loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.5, -0.5]]]]), raw).backward()  # squared error 1/4
    assert raw.grad is not None
    assert raw.grad.item() == pytest.approx(0, abs=1e-6)


# --- what they share


@pytest.mark.parametrize("name", [name for name in STAGED if name not in ("fitnet", "similarity")])
def test_networks_of_unlike_numbers_of_stages_need_the_knob(name: str, make_taps: Callable) -> None:
    long_shapes, longer = make_taps(channels=(3, 4, 8, 12), size=16)
    shapes, taps = make_taps()
    config = TERMS[name].config
    with pytest.raises(UserError, match=rf"the student has 3 and the teacher has 4; set terms\.{name}\.stages: 3"):
        config().build(shapes, long_shapes)
    with pytest.raises(UserError, match=rf"terms\.{name}\.stages=4"):
        config(stages=4).build(shapes, long_shapes)
    torch.manual_seed(0)
    same_shapes, same = make_taps(channels=(4, 8, 12), size=8, seed=3)
    value = config(stages=2).build(shapes, long_shapes)(taps, longer, None)
    assert value.isfinite()
    values = []
    for other_shapes, stages in ((same_shapes, same.stages), (long_shapes, (longer.stages[0], *same.stages))):
        torch.manual_seed(0)
        other = type(same)(same.logits, same.embedding, stages)
        values.append(config(stages=3).build(shapes, other_shapes)(taps, other, None).item())
    assert values[0] == values[1]  # the first stage of four is not looked at


@pytest.mark.parametrize("name", STAGED)
def test_a_network_without_stages_is_refused(name: str) -> None:
    none, three = TapShapes(5, 6, (), ()), TapShapes(5, 6, (4, 5, 6), ())
    with pytest.raises(UserError, match=rf"terms\.{name} compares stages, but the teacher shows none"):
        TERMS[name].config().build(three, none)


@pytest.mark.parametrize("name", STAGED)
def test_channels_last_makes_no_difference(name: str, make_taps: Callable) -> None:
    (shapes, student), (_, teacher) = make_taps(), make_taps(seed=1)
    torch.manual_seed(0)
    term = TERMS[name].config().build(shapes, shapes)
    other = type(student)(
        student.logits, student.embedding, [m.contiguous(memory_format=torch.channels_last) for m in student.stages]
    )
    close(term(other, teacher, None), term(student, teacher, None), rel=1e-5)


def test_rows_are_views_of_the_maps_in_either_format() -> None:
    maps = random(3, 4, 2, 2)
    last = maps.contiguous(memory_format=torch.channels_last)
    assert rows(maps).data_ptr() == maps.data_ptr()
    assert rows(last).data_ptr() == last.data_ptr()
    torch.testing.assert_close(similarities(maps), similarities(last))


def test_maps_are_pooled_to_the_smaller_height_and_width() -> None:
    one, other = same_grid(random(1, 2, 8, 3), random(1, 5, 4, 6))
    assert one.shape == (1, 2, 4, 3)
    assert other.shape == (1, 5, 4, 3)
    maps = random(1, 2, 4, 4)
    assert same_grid(maps, maps)[0] is maps


def test_a_vector_without_length_stays_0_without_gradient() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    result = unit(vectors, 1)
    torch.testing.assert_close(result.detach(), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    result.sum().backward()
    assert vectors.grad is not None
    assert vectors.grad[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_taken_to_single_also_under_autocast(dtype: torch.dtype) -> None:
    @full_precision
    def product(one: Tensor, other: Tensor, scale: float = 1.0) -> Tensor:
        return one @ other * scale

    maps = random(4, 4).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert (maps.float() @ maps.float()).dtype == torch.bfloat16
        assert product(maps, maps, scale=2.0).dtype == torch.float32
        assert product(maps.double(), maps.double()).dtype == torch.float64
