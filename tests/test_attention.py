"""Squeezed attention: what the form of the paper does and does not do, and what the hierarchy reduces to."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hksd.attention import Attend, AttentionSpec, HierarchicalAttention, Squeezed, join, tapped
from hksd.errors import UserError
from hksd.models.taps import Out, TapShapes
from hksd.terms.squeeze import Squeeze, SqueezeConfig, squeeze_loss

Taps = Callable[..., tuple[TapShapes, Out]]
COMPATIBILITIES = ("dot", "additive_tanh", "additive_linear", "gap")
DOUBLE = torch.float64


def spec(**knobs: Any) -> AttentionSpec:
    return AttentionSpec(**knobs)


def attend(dims: int = 4, descriptor: int = 6, **knobs: Any) -> Attend:
    torch.manual_seed(5)
    return Attend(dims, descriptor, spec(**knobs)).double()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def estimators(
    own: TapShapes, target: tuple[int, ...], depth: int, seed: int = 7, **knobs: Any
) -> HierarchicalAttention:
    torch.manual_seed(seed)
    return HierarchicalAttention(own, target, spec(**knobs), depth).double()


def same(one: Squeezed, two: Squeezed, level: int) -> None:
    for first, second in zip(one[level - 1], two[level - 1], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)


# --- one estimator


@pytest.mark.parametrize("kind", COMPATIBILITIES)
def test_a_map_is_positive_and_sums_to_1_at_every_temperature(kind: str) -> None:
    for temperature in (0.1, 1.0, 10.0):
        _, attention = attend(compatibility=kind, temperature=temperature)(random(3, 4, 9), random(3, 6, seed=1))
        assert attention.shape == (3, 9)
        assert (attention > 0).all()
        torch.testing.assert_close(attention.sum(1), torch.ones(3, dtype=DOUBLE))


@pytest.mark.parametrize("kind", ["dot", "additive_tanh", "additive_linear"])
def test_a_high_temperature_flattens_the_map(kind: str) -> None:
    spread = [
        attend(compatibility=kind, temperature=temperature)(random(3, 4, 9), random(3, 6, seed=1))[1].std().item()
        for temperature in (0.5, 1.0, 5.0, 1e6)
    ]
    assert spread == sorted(spread, reverse=True)
    assert spread[0] > 0.05
    assert spread[-1] < 1e-6


def map_change(kind: str) -> float:
    module, items = attend(compatibility=kind), random(3, 4, 9)
    return (module(items, random(3, 6, seed=1))[1] - module(items, random(3, 6, seed=2))[1]).abs().max().item()


def test_the_descriptor_cannot_influence_the_map_of_a_linear_score() -> None:
    # The form of the paper: the descriptor adds one constant to all positions, which the softmax ignores.
    assert map_change("additive_linear") < 1e-12


@pytest.mark.parametrize("kind", ["dot", "additive_tanh"])
def test_the_descriptor_influences_the_map_of_the_other_scores(kind: str) -> None:
    assert map_change(kind) > 1e-2


@pytest.mark.parametrize(("kind", "reached"), [("additive_linear", False), ("dot", True), ("additive_tanh", True)])
def test_the_query_learns_through_the_map_unless_the_score_is_linear(kind: str, reached: bool) -> None:
    module = attend(compatibility=kind, attend="raw")
    pooled, _ = module(random(3, 4, 9), random(3, 6, seed=1))
    (pooled * random(3, 4, seed=3)).sum().backward()
    assert module.query is not None
    assert module.query.weight.grad is not None
    assert (module.query.weight.grad.abs().max().item() > 1e-4) == reached


def test_the_query_of_a_linear_score_learns_through_the_fused_map() -> None:
    module = attend(compatibility="additive_linear", attend="fused")
    module(random(3, 4, 9), random(3, 6, seed=1))[0].square().sum().backward()
    assert module.query is not None
    assert module.query.weight.grad is not None
    assert module.query.weight.grad.abs().max() > 1e-3


@pytest.mark.parametrize("attended", ["raw", "fused"])
@pytest.mark.parametrize("kind", ["dot", "additive_tanh", "additive_linear"])
@pytest.mark.parametrize("positions", [1024, 64, 1])
def test_the_sum_is_the_number_of_positions_times_the_mean(kind: str, attended: str, positions: int) -> None:
    module, items, g = attend(compatibility=kind, attend=attended), random(2, 4, positions), random(2, 6, seed=1)
    torch.testing.assert_close(module(items, g)[0], positions * module(items, g, mean=True)[0])


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", ["dot", "additive_tanh", "additive_linear"])
def test_the_fused_vector_is_the_raw_one_plus_the_query(kind: str, adapted: bool) -> None:
    raw, fused = (attend(compatibility=kind, attend=attended) for attended in ("raw", "fused"))
    items, g = random(3, 5 if adapted else 4, 9), random(3, 6, seed=1)
    adapt = random(4, 5, seed=2) if adapted else None
    assert raw.query is not None
    torch.testing.assert_close(fused(items, g, adapt)[0] - raw(items, g, adapt)[0], raw.query(g))


@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
@pytest.mark.parametrize("attended", ["raw", "fused"])
@pytest.mark.parametrize("kind", COMPATIBILITIES)
@pytest.mark.parametrize("adapted", [False, True], ids=["same", "adapted"])
def test_vector_and_map_are_what_the_formula_gives_with_the_adapted_map_in_full(
    kind: str, attended: str, mean: bool, adapted: bool
) -> None:
    module = attend(compatibility=kind, attend=attended, temperature=1.7)
    items, g = random(3, 5 if adapted else 4, 9).requires_grad_(), random(3, 6, seed=1).requires_grad_()
    adapt = random(4, 5, seed=2).requires_grad_() if adapted else None
    x = items if adapt is None else torch.einsum("of,nfp->nop", adapt, items)
    if module.query is None:
        attention, expected = torch.full((3, 9), 1 / 9, dtype=DOUBLE), x.mean(2)
    else:
        query = module.query(g)[:, :, None]
        fused = x + query
        if kind == "dot":
            scores = (x * query).sum(1) / math.sqrt(4)
        else:
            assert module.score is not None
            scores = (module.score[:, None] * (fused.tanh() if kind == "additive_tanh" else fused)).sum(1)
        attention = (scores / 1.7).softmax(1)
        expected = (attention[:, None] * (x if attended == "raw" else fused)).sum(2) / (9 if mean else 1)
    pooled, found = module(items, g, adapt, mean)
    torch.testing.assert_close(found, attention)
    torch.testing.assert_close(pooled, expected)
    leaves = [items, *([] if adapt is None else [adapt]), *([] if module.query is None else [g, *module.parameters()])]
    weights = random(3, 4, seed=4)
    for one, two in zip(
        torch.autograd.grad((pooled * weights).sum(), leaves, retain_graph=True),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


def test_a_position_that_answers_the_query_is_attended_to() -> None:
    module = attend(compatibility="dot")
    g = random(2, 6, seed=1)
    assert module.query is not None
    items = torch.zeros(2, 4, 9, dtype=DOUBLE)
    items[:, :, 3] = 500 * module.query(g).detach()
    pooled, attention = module(items, g)
    assert (attention.argmax(1) == 3).all()
    assert attention[:, 3].min() > 0.99
    torch.testing.assert_close(pooled, items[:, :, 3])


# --- which blocks are tapped


@pytest.mark.parametrize(
    ("count", "blocks", "expected"),
    [
        (3, "all", (0, 1, 2)),
        (18, 1, (17,)),
        (18, 3, (5, 11, 17)),
        (3, 3, (0, 1, 2)),
        (3, 2, (1, 2)),
        (18, 6, (2, 5, 8, 11, 14, 17)),
        (1, 1, (0,)),
        (5, 2, (2, 4)),
    ],
)
def test_taps_are_evenly_spaced_and_end_at_the_last_block(count: int, blocks: Any, expected: tuple[int, ...]) -> None:
    assert tapped(count, blocks) == expected


def test_any_number_of_taps_gives_that_many_different_blocks_with_even_gaps() -> None:
    for count in range(1, 20):
        for blocks in range(1, count + 1):
            taps = tapped(count, blocks)
            assert len(set(taps)) == blocks
            assert taps == tuple(sorted(taps))
            assert taps[-1] == count - 1
            gaps = [b - a for a, b in itertools.pairwise((-1, *taps))]
            assert max(gaps) - min(gaps) <= 1


def test_more_taps_than_blocks_is_a_users_error_with_a_cure(make_taps: Taps) -> None:
    with pytest.raises(UserError, match=r"squeeze\.blocks=4.*only 3 block.*'all' or at most 3"):
        tapped(3, 4)
    shapes, _ = make_taps(blocks=3)
    with pytest.raises(UserError, match="only 3 block"):
        SqueezeConfig(blocks=4).build(shapes, shapes)


# --- the hierarchy


@pytest.mark.parametrize("kind", COMPATIBILITIES)
@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_depth_2_with_one_tap_per_stage_is_depth_1(kind: str, pool: str, make_taps: Taps) -> None:
    shapes, out = make_taps(dtype=DOUBLE)
    levels = estimators(shapes, shapes.stages, 2, blocks=1, compatibility=kind, pool=pool)(out)
    for one, two in zip(levels[0], levels[1], strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("kind", COMPATIBILITIES)
def test_depth_3_with_one_stage_is_the_raised_vector_of_depth_2(kind: str, make_taps: Taps) -> None:
    shapes, out = make_taps(channels=(8,), blocks=3, dtype=DOUBLE)
    module = estimators(shapes, shapes.stages, 3, compatibility=kind, top_dim=5)
    levels = module(out)
    torch.testing.assert_close(levels[2][0], levels[1][0] @ module.rise[0].weight.T)


def test_gap_is_plain_average_pooling_at_every_level(make_taps: Taps) -> None:
    shapes, out = make_taps(blocks=3, dtype=DOUBLE)
    for pool in ("sum", "mean"):
        module = estimators(shapes, shapes.stages, 3, compatibility="gap", pool=pool, top_dim=5)
        levels = module(out)
        blocks = [torch.stack([block.mean((2, 3)) for block in stage], 2) for stage in out.blocks]
        for stage in range(3):
            torch.testing.assert_close(levels[0][stage], blocks[stage][:, :, -1])
            torch.testing.assert_close(levels[1][stage], blocks[stage].mean(2))
        risen = torch.stack([rise(vector) for rise, vector in zip(module.rise, levels[1], strict=True)], 2)
        torch.testing.assert_close(levels[2][0], risen.mean(2))


@pytest.mark.parametrize("pool", ["sum", "mean"])
@pytest.mark.parametrize("kind", COMPATIBILITIES)
def test_every_level_is_what_the_formulas_give(kind: str, pool: str, make_taps: Taps) -> None:
    own, out = make_taps(channels=(4, 6, 8), blocks=3, dtype=DOUBLE)
    module = estimators(own, (4, 9, 12), 3, compatibility=kind, pool=pool, top_dim=5)
    levels, maps = module.explain(out)
    g = out.embedding
    for stage in range(3):
        adapt = module.adapt[stage]
        assert (adapt is None) == (stage == 0)
        vectors = []
        for index, block in enumerate(out.blocks[stage]):
            x = block.flatten(2) if adapt is None else torch.einsum("of,nfp->nop", adapt, block.flatten(2))
            vector, attention = module.positions[stage][0](x, g, None, pool == "mean")
            vectors.append(vector)
            torch.testing.assert_close(maps[stage][index], attention)
        torch.testing.assert_close(levels[0][stage], vectors[-1])
        torch.testing.assert_close(levels[1][stage], module.blocks[stage](torch.stack(vectors, 2), g)[0])
    risen = torch.stack([rise(vector) for rise, vector in zip(module.rise, levels[1], strict=True)], 2)
    torch.testing.assert_close(levels[2][0], module.network(risen, g)[0])
    assert module.network.spec.compatibility == kind


def test_a_deeper_hierarchy_has_the_levels_of_the_shallower_one(make_taps: Taps) -> None:
    shapes, out = make_taps(blocks=3, dtype=DOUBLE)
    deep = estimators(shapes, shapes.stages, 3)
    for depth in (1, 2):
        shallow = estimators(shapes, shapes.stages, depth, seed=8)
        shallow.load_state_dict(
            {name: value for name, value in deep.state_dict().items() if name in shallow.state_dict()}
        )
        assert len(shallow(out)) == depth
        for level in range(1, depth + 1):
            same(shallow(out), deep(out), level)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_unlike_numbers_of_blocks_give_vectors_of_the_same_shape(depth: int, make_taps: Taps) -> None:
    # ResNet-164-like against ResNet-20-like: 18 blocks of 64, 128, 256 channels, 3 blocks of 16, 32, 64.
    teacher_shapes, teacher = make_taps(channels=(64, 128, 256), blocks=18, size=4, batch=2, embedding=256)
    student_shapes, student = make_taps(channels=(16, 32, 64), blocks=3, size=4, batch=2, embedding=64, seed=1)
    spec_ = AttentionSpec()
    theirs = HierarchicalAttention(teacher_shapes, teacher_shapes.stages, spec_)(teacher)
    mine = HierarchicalAttention(student_shapes, teacher_shapes.stages, spec_, depth)(student)
    assert len(theirs) == 3
    assert len(mine) == depth
    for level, dims in zip(range(1, depth + 1), (448, 448, 128), strict=False):
        assert join(theirs, level).shape == join(mine, level).shape == (2, dims)
    term = SqueezeConfig(depth=depth, levels="all").build(student_shapes, teacher_shapes)
    value = term(student, dataclasses.replace(teacher, squeezed=theirs), torch.tensor([0, 1]))
    value.backward()
    assert value.isfinite()


def test_training_only_parameters_are_as_many_as_the_design_says() -> None:
    def shapes(*channels: int, blocks: int) -> TapShapes:
        return TapShapes(10, 128, channels, tuple((count,) * blocks for count in channels))

    teacher, student = shapes(64, 128, 256, blocks=18), shapes(16, 32, 64, blocks=3)
    for depth, expected in ((1, (57, 79)), (2, (115, 136)), (3, (188, 210))):
        found = [
            sum(p.numel() for p in HierarchicalAttention(own, teacher.stages, AttentionSpec(), depth).parameters())
            / 1000
            for own in (teacher, student)
        ]
        assert found == pytest.approx(expected, abs=0.6)


def test_unlike_spatial_sizes_compare(make_taps: Taps) -> None:
    teacher_shapes, teacher = make_taps(size=16)
    student_shapes, student = make_taps(size=8, seed=1)
    theirs = HierarchicalAttention(teacher_shapes, teacher_shapes.stages, AttentionSpec())(teacher)
    for depth in (1, 2, 3):
        term = SqueezeConfig(depth=depth).build(student_shapes, teacher_shapes)
        assert term(student, dataclasses.replace(teacher, squeezed=theirs), torch.tensor([0, 1, 2])).isfinite()


@pytest.mark.parametrize(("more", "fewer"), [("teacher", "student"), ("student", "teacher")])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_with_unlike_numbers_of_stages_the_last_ones_are_paired(
    more: str, fewer: str, depth: int, make_taps: Taps
) -> None:
    taps = {more: make_taps(channels=(4, 6, 8)), fewer: make_taps(channels=(10, 12), seed=1)}
    (teacher_shapes, teacher), (student_shapes, student) = taps["teacher"], taps["student"]
    theirs = HierarchicalAttention(teacher_shapes, teacher_shapes.stages, AttentionSpec())(teacher)
    term = SqueezeConfig(depth=depth).build(student_shapes, teacher_shapes)
    assert isinstance(term, Squeeze)
    assert [len(v) for v in term.estimators(student)][:2] == [2, 2][:depth]
    assert [v.shape[1] for v in term.estimators(student)[0]] == list(teacher_shapes.stages[-2:])
    value = term(student, dataclasses.replace(teacher, squeezed=theirs), torch.tensor([0, 1, 2]))
    value.backward()
    assert value.isfinite()
    used = [any(block.grad is not None for block in stage) for stage in student.blocks]
    assert used == [False] * (len(used) - 2) + [True, True]


@pytest.mark.parametrize("taps", [1, 2])
def test_a_number_of_taps_pairs_blocks_one_to_one_at_depth_1(taps: int, make_taps: Taps) -> None:
    teacher_shapes, teacher = make_taps(blocks=4, dtype=DOUBLE)
    student_shapes, student = make_taps(blocks=2, seed=1, dtype=DOUBLE)
    theirs = estimators(teacher_shapes, teacher_shapes.stages, 3, blocks=taps)
    mine = estimators(student_shapes, teacher_shapes.stages, 1, blocks=taps)
    one, two = theirs(teacher)[0], mine(student)[0]
    assert [v.shape[1] for v in one] == [v.shape[1] for v in two] == [taps * f for f in teacher_shapes.stages]
    for index, chosen in enumerate(tapped(4, taps)):
        block, f = teacher.blocks[1][chosen].flatten(2), teacher_shapes.stages[1]
        expected, _ = theirs.positions[1][0](block, teacher.embedding)
        torch.testing.assert_close(one[1][:, index * f : (index + 1) * f], expected)


def test_at_depth_1_with_all_blocks_only_the_last_one_of_a_stage_counts(make_taps: Taps) -> None:
    shapes, out = make_taps(blocks=3)
    join(HierarchicalAttention(shapes, shapes.stages, AttentionSpec(), 1)(out), 1).sum().backward()
    assert [[block.grad is not None for block in stage] for stage in out.blocks] == [[False, False, True]] * 3


def test_at_depth_2_every_block_counts(make_taps: Taps) -> None:
    shapes, out = make_taps(blocks=3)
    join(HierarchicalAttention(shapes, shapes.stages, AttentionSpec(), 2)(out), 2).sum().backward()
    assert all(block.grad is not None and block.grad.abs().max() > 0 for stage in out.blocks for block in stage)


def test_queries_of_their_own_cost_more_parameters_and_shared_ones_do_not_depend_on_the_blocks(make_taps: Taps) -> None:
    def count(depth_of_a_stage: int, **knobs: Any) -> int:
        shapes, _ = make_taps(blocks=depth_of_a_stage)
        return sum(p.numel() for p in HierarchicalAttention(shapes, shapes.stages, spec(**knobs), 2).parameters())

    query = 6 * (4 + 8 + 12)
    assert count(3, share_query=False) == count(3) + 2 * query
    assert count(3) == count(5)
    assert count(3, share_query=False, blocks=1) == count(3, blocks=1)


def test_a_query_of_its_own_belongs_to_its_block(make_taps: Taps) -> None:
    shapes, out = make_taps(blocks=2, dtype=DOUBLE)
    module = estimators(shapes, shapes.stages, 2, share_query=False, blocks=2)
    before = module(out)[0][0]
    with torch.no_grad():
        module.positions[0][1].query.weight.mul_(-3)
    after = module(out)[0][0]
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert (after[:, 4:] - before[:, 4:]).abs().max() > 1e-2


# --- the term


def pair(make_taps: Taps, config: SqueezeConfig) -> tuple[Squeeze, Out, Out]:
    """A term whose estimators are copies of the teacher's, a student, and a teacher that is the same network."""
    shapes, out = make_taps(blocks=2, dtype=DOUBLE)
    theirs = estimators(shapes, shapes.stages, 3, **dataclasses.asdict(config.attention()))
    term = config.build(shapes, shapes).double()
    assert isinstance(term, Squeeze)
    term.estimators.load_state_dict(
        {name: value for name, value in theirs.state_dict().items() if name in term.estimators.state_dict()}
    )
    return term, out, dataclasses.replace(out, squeezed=theirs(out))


@pytest.mark.parametrize("metric", ["l2", "smooth_l1", "cosine"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_loss_is_0_for_identical_networks_and_estimators(
    depth: int, normalize: bool, metric: str, make_taps: Taps
) -> None:
    term, student, teacher = pair(
        make_taps, SqueezeConfig(depth=depth, normalize=normalize, metric=metric, levels="all")
    )
    assert term(student, teacher, torch.tensor([0, 1, 2])).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_top_compares_the_top_level_and_all_every_level_with_its_decay(depth: int, make_taps: Taps) -> None:
    shapes, student = make_taps(dtype=DOUBLE)
    theirs = estimators(shapes, shapes.stages, 3)
    _, other = make_taps(seed=1, dtype=DOUBLE)
    teacher = dataclasses.replace(other, squeezed=theirs(other))
    values = {}
    for levels, decay in (("top", 1.0), ("top", 0.5), ("all", 1.0), ("all", 0.5)):
        torch.manual_seed(3)
        term = SqueezeConfig(depth=depth, levels=levels, level_decay=decay).build(shapes, shapes).double()
        assert isinstance(term, Squeeze)
        values[levels, decay] = term(student, teacher, torch.tensor([0, 1, 2])).item()
    mine = term.estimators(student)
    each = [squeeze_loss(join(mine, level), join(teacher.squeezed, level)).item() for level in range(1, depth + 1)]
    assert values["top", 1.0] == values["top", 0.5] == pytest.approx(each[-1])
    assert values["all", 1.0] == pytest.approx(sum(each))
    assert values["all", 0.5] == pytest.approx(sum(0.5**i * value for i, value in enumerate(each)))


@pytest.mark.parametrize(("scale", "value"), [(1.0, 0.0), (-1.0, 4.0), (3.0, 0.0), (-0.1, 4.0)])
def test_the_normalised_distance_reaches_from_0_for_the_same_direction_to_4_for_the_opposite(
    scale: float, value: float
) -> None:
    vectors = random(5, 8)
    assert squeeze_loss(scale * vectors, vectors).item() == pytest.approx(value, abs=1e-12)


def test_the_normalised_distance_stays_within_0_and_4_and_does_not_see_scales() -> None:
    for seed in range(50):
        one, two = random(3, 2 + seed, seed=seed), random(3, 2 + seed, seed=seed + 1000)
        value = squeeze_loss(one, two).item()
        assert 0 <= value <= 4
        assert squeeze_loss(1e3 * one, 1e-3 * two).item() == pytest.approx(value)


def test_cosine_is_half_of_the_normalised_squared_distance() -> None:
    for seed in range(20):
        one, two = random(3, 9, seed=seed), random(3, 9, seed=seed + 1000)
        assert squeeze_loss(one, two, metric="cosine").item() == pytest.approx(squeeze_loss(one, two).item() / 2)


def test_the_raw_distance_is_the_mean_over_dimensions_and_batch() -> None:
    one, two = torch.tensor([[0.0, 2.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 4.0]])
    assert squeeze_loss(one, two, normalize=False).item() == pytest.approx((4 + 9) / 4)
    assert squeeze_loss(one, two, normalize=False, metric="smooth_l1").item() == pytest.approx((1.5 + 2.5) / 4)


def test_distances_of_zero_vectors_are_finite_with_finite_gradients() -> None:
    for metric, normalize in itertools.product(("l2", "smooth_l1", "cosine"), (True, False)):
        one, two = torch.zeros(2, 4, requires_grad=True), torch.ones(2, 4)
        value = squeeze_loss(one, two, normalize=normalize, metric=metric)
        value.backward()
        assert value.isfinite()
        assert one.grad is not None
        assert one.grad.isfinite().all()


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("blocks", ["all", 2])
def test_a_task_weight_adds_the_loss_of_a_head_on_the_students_vectors(
    depth: int, blocks: Any, make_taps: Taps
) -> None:
    shapes, student = make_taps(blocks=3, dtype=DOUBLE)
    theirs = estimators(shapes, shapes.stages, 3, blocks=blocks, top_dim=10)
    teacher = dataclasses.replace(student, squeezed=theirs(student))
    target, terms = torch.tensor([0, 1, 2]), []
    for weight in (0.0, 0.5):
        torch.manual_seed(3)
        terms.append(
            SqueezeConfig(depth=depth, blocks=blocks, task_weight=weight, top_dim=10).build(shapes, shapes).double()
        )
    plain, helped = terms
    assert isinstance(plain, Squeeze)
    assert isinstance(helped, Squeeze)
    assert plain.head is None
    assert helped.head is not None
    head = torch.nn.functional.cross_entropy(helped.head(join(helped.estimators(student), depth)), target)
    difference = helped(student, teacher, target) - plain(student, teacher, target)
    assert difference.item() == pytest.approx(0.5 * head.item())
