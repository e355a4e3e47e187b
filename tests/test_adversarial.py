"""The game between discriminator and student: who learns in which step, and what each of them wants."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hksd.attention import HierarchicalAttention, join
from hksd.config.run import Terms
from hksd.errors import ConfigError
from hksd.models.taps import Out, TapShapes
from hksd.run.objective import Objective
from hksd.terms.adversarial import Adversarial, AdversarialConfig, Discriminator, discriminator_loss, generator_loss
from hksd.terms.ce import CrossEntropyConfig
from hksd.terms.squeeze import SqueezeConfig

CLASSES, TARGET = 5, torch.tensor([0, 1, 2, 3])
SHAPES = TapShapes(CLASSES, 1, (), ())
LOSSES = ("nonsaturating", "hinge", "least_squares")


def build(seed: int = 0, **knobs: Any) -> Adversarial:
    torch.manual_seed(seed)
    return AdversarialConfig(hidden=16, **knobs).build(SHAPES, SHAPES)


def logits(seed: int, requires_grad: bool = False) -> Out:
    values = torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(seed))
    return Out(values.requires_grad_(requires_grad), torch.zeros(4, 1))


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    everything = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: value.detach().clone() for name, value in everything.items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class TinyStudent(nn.Module):
    """Linear and batch normalisation: parameters and buffers that a stray step would change."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))

    def forward(self, images: Tensor) -> Out:
        values = self.layers(images)
        return Out(values, values)


IMAGES = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
GAMES = [{"loss": loss, "optimizer": optimizer} for loss in LOSSES for optimizer in ("adam", "sgd")] + [
    {"batch_norm": False},
    {"student_dropout": 0.5},
    {"steps": 3},
    {"layers": 1},
    {"layers": 4},
    {"category_weight": 0.0},
]


@pytest.mark.parametrize("knobs", GAMES, ids=str)
def test_a_discriminator_step_leaves_the_student_bit_identical_and_changes_the_discriminator(
    knobs: dict[str, Any],
) -> None:
    term, student = build(**knobs), TinyStudent()
    out, before, opponent = student(IMAGES), tensors(student), tensors(term)
    before = tensors(student)
    term.own_step(out, logits(1), TARGET)
    assert equal(tensors(student), before)
    assert all(p.grad is None for p in student.parameters())
    assert not equal(tensors(term), opponent)


@pytest.mark.parametrize("knobs", GAMES, ids=str)
def test_a_student_step_leaves_the_discriminator_bit_identical_and_without_gradients(knobs: dict[str, Any]) -> None:
    term, student = build(**knobs), TinyStudent()
    for p in term.parameters():
        p.grad = None
    before, was, state = tensors(term), tensors(student), copy.deepcopy(term.optimizer.state_dict())
    optimizer = torch.optim.SGD(
        [*student.parameters(), *term.joint_parameters()], lr=0.1, momentum=0.9, weight_decay=0.1
    )
    loss = term(student(IMAGES), logits(1), TARGET)
    loss.backward()
    optimizer.step()
    assert equal(tensors(term), before)
    assert all(p.grad is None for p in term.parameters())
    assert repr(term.optimizer.state_dict()) == repr(state)
    assert not equal(tensors(student), was)
    assert all(p.grad is not None for p in student.parameters())


def test_the_graph_of_the_student_survives_the_discriminators_step() -> None:
    term, student = build(steps=3), TinyStudent()
    out = student(IMAGES)
    term.own_step(out, logits(1), TARGET)
    term(out, logits(1), TARGET).backward()


def test_the_teacher_gathers_no_gradient_in_either_step() -> None:
    term, teacher = build(), logits(1, requires_grad=True)
    term.own_step(logits(2), teacher, TARGET)
    term(logits(2, requires_grad=True), teacher, TARGET).backward()
    assert teacher.logits.grad is None


@pytest.mark.parametrize("steps", [1, 3])
def test_both_logits_pass_the_discriminator_in_one_call_in_both_steps(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    term, student, teacher = build(steps=steps), logits(2, requires_grad=True), logits(1)
    seen: list[Tensor] = []
    forward = Discriminator.forward

    def spy(self: Discriminator, given: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(given.detach().clone())
        return forward(self, given)

    monkeypatch.setattr(Discriminator, "forward", spy)
    both = torch.cat([teacher.logits, student.logits]).detach()
    term.own_step(student, teacher, TARGET)
    assert len(seen) == steps
    term(student, teacher, TARGET)
    assert len(seen) == steps + 1
    assert all(torch.equal(given, both) for given in seen)


def test_dropout_acts_on_the_students_logits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    term, student, teacher = build(student_dropout=0.5), Out(torch.ones(4, CLASSES), torch.zeros(4, 1)), logits(1)
    seen: list[Tensor] = []
    forward = Discriminator.forward
    monkeypatch.setattr(
        Discriminator, "forward", lambda self, given: (seen.append(given.detach()), forward(self, given))[1]
    )
    term.own_step(student, teacher, TARGET)
    term(student, teacher, TARGET)
    for given in seen:
        assert torch.equal(given[:4], teacher.logits)
        assert set(given[4:].unique().tolist()) == {0.0, 2.0}


def test_the_discriminator_keeps_no_statistics_and_cannot_be_told_by_its_mode() -> None:
    term = build()
    assert not list(term.buffers())
    given = torch.randn(8, CLASSES)
    assert torch.equal(term.train().discriminator(given)[0], term.eval().discriminator(given)[0])


def test_the_form_of_the_discriminator_is_that_of_the_paper() -> None:
    body = Discriminator(CLASSES, 16, 2, batch_norm=True).body
    assert [type(module).__name__ for module in body] == [
        "BatchNorm1d",
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
    ]
    assert body[-1].out_features == 1 + CLASSES
    plain = Discriminator(CLASSES, 16, 3, batch_norm=False).body
    assert [type(module).__name__ for module in plain] == ["Linear", "ReLU"] * 3 + ["Linear"]


# --- what the two want


def settle(loss: Callable[[Tensor], Tensor]) -> float:
    """The score that minimises `loss`."""
    score = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([score], lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        loss(score).backward()
        optimizer.step()
    return score.item()


@pytest.mark.parametrize("confusion", [0.1, 0.3, 0.9])
def test_confusion_makes_the_discriminator_call_students_teachers_with_mu_over_1_plus_mu(confusion: float) -> None:
    teacher = torch.tensor([0.0])
    score = settle(lambda score: discriminator_loss("nonsaturating", teacher, score, confusion))
    assert torch.sigmoid(torch.tensor(score)).item() == pytest.approx(confusion / (1 + confusion), abs=1e-3)


def test_without_confusion_the_discriminator_calls_no_student_a_teacher() -> None:
    score = settle(lambda score: discriminator_loss("nonsaturating", torch.tensor([0.0]), score))
    assert torch.sigmoid(torch.tensor(score)).item() < 0.05


def test_confusion_reaches_the_discriminators_step_and_only_the_nonsaturating_game() -> None:
    for loss in LOSSES:
        values = []
        for confusion in (0.0, 0.9):
            term = build(loss=loss, confusion=confusion)
            term.own_step(logits(2), logits(1), TARGET)
            values.append(tensors(term))
        assert equal(*values) == (loss != "nonsaturating")


@pytest.mark.parametrize(
    ("loss", "teacher", "student", "theirs", "ours"),
    [
        ("nonsaturating", 0.0, 0.0, 2 * 0.6931471805599453, 0.6931471805599453),
        ("nonsaturating", 2.0, -1.0, 0.126928011 + 0.313261688, 1.313261688),
        ("hinge", 0.5, 0.25, 0.5 + 1.25, -0.25),
        ("hinge", 3.0, -2.0, 0.0, 2.0),
        ("least_squares", 0.5, 0.25, 0.25 + 0.0625, 0.5625),
        ("least_squares", 1.0, 0.0, 0.0, 1.0),
    ],
)
def test_the_three_games_have_the_values_that_one_computes_by_hand(
    loss: str, teacher: float, student: float, theirs: float, ours: float
) -> None:
    one, two = torch.tensor([teacher, teacher]), torch.tensor([student, student])
    assert discriminator_loss(loss, one, two).item() == pytest.approx(theirs, rel=1e-5, abs=1e-7)
    assert generator_loss(loss, two).item() == pytest.approx(ours, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_discriminator_pulls_the_scores_apart_and_the_student_wants_a_high_one(loss: str) -> None:
    teacher, student = torch.zeros(3, requires_grad=True), torch.full((3,), 0.2, requires_grad=True)
    discriminator_loss(loss, teacher, student).backward()
    assert (teacher.grad < 0).all()
    assert (student.grad > 0).all()
    student.grad = None
    generator_loss(loss, student).backward()
    assert (student.grad < 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_discriminator_learns_to_tell_two_clear_kinds_apart(loss: str) -> None:
    # Batch normalisation over both kinds together keeps them apart: a sharp teacher, a flat student.
    term, target = build(loss=loss, lr=1e-2), torch.arange(64) % CLASSES
    sharp = 8 * nn.functional.one_hot(target, CLASSES).float()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        student = Out(0.1 * torch.randn(64, CLASSES, generator=generator), torch.zeros(1))
        values = term.own_step(student, Out(sharp, torch.zeros(1)), target)
    assert values["discriminator_accuracy"].item() > 0.95
    assert set(values) == {"discriminator_loss", "discriminator_accuracy"}


class Reader(nn.Module):
    """Stands for a discriminator whose score is constant and whose category head reads the logits as they are."""

    def forward(self, given: Tensor) -> tuple[Tensor, Tensor]:
        return given[:, 0] * 0, given


def test_the_students_category_loss_raises_the_right_class_and_lowers_the_others() -> None:
    term, student = build(category_weight=2.0), logits(2, requires_grad=True)
    term.discriminator = Reader()
    term(student, logits(1), TARGET).backward()
    gradient = student.logits.grad
    assert gradient is not None
    right = nn.functional.one_hot(TARGET, CLASSES).bool()
    assert (gradient[right] < 0).all()
    assert (gradient[~right] > 0).all()
    expected = 2.0 * (student.logits.detach().softmax(1) - right.float()) / 4
    torch.testing.assert_close(gradient, expected)


def test_the_discriminators_category_loss_raises_the_right_class_for_teachers_and_students() -> None:
    term, target = build(lr=1e-2, category_weight=5.0, l1=0, l2=0), torch.arange(60) % CLASSES
    one_hot = nn.functional.one_hot(target, CLASSES).float()
    teacher, student = Out(one_hot, torch.zeros(1)), Out(-one_hot, torch.zeros(1))
    for _ in range(80):
        term.own_step(student, teacher, target)
    _, category = term.discriminator(torch.cat([teacher.logits, student.logits]))
    assert (category.argmax(1) == target.repeat(2)).all()


# --- the discriminator's regularisation


@pytest.mark.parametrize("batch_norm", [True, False])
def test_l1_and_l2_act_on_weight_matrices_and_on_nothing_else(batch_norm: bool) -> None:
    term = build(batch_norm=batch_norm)
    names = {
        name for name, p in term.discriminator.named_parameters() for one in term.discriminator.penalised() if p is one
    }
    linear = {f"{name}.weight" for name, module in term.discriminator.named_modules() if isinstance(module, nn.Linear)}
    assert names == linear
    for knob in ("l1", "l2"):
        gradients = {}
        for strength in (0.0, 0.5):
            term = build(batch_norm=batch_norm, **{"l1": 0.0, "l2": 0.0, knob: strength})
            weights = {name: p.detach().clone() for name, p in term.discriminator.named_parameters()}
            term.own_step(logits(2), logits(1), TARGET)
            gradients[strength] = {name: p.grad.clone() for name, p in term.discriminator.named_parameters()}
        for name, with_it in gradients[0.5].items():
            difference = with_it - gradients[0.0][name]
            expected = 0.5 * (weights[name].sign() if knob == "l1" else 2 * weights[name])
            torch.testing.assert_close(
                difference, expected if name in linear else torch.zeros_like(difference), rtol=1e-4, atol=1e-6
            )


def test_l1_drives_weights_to_small_values() -> None:
    sizes = []
    for strength in (0.0, 0.1):
        term = build(l1=strength, l2=0.0)
        for _ in range(50):
            term.own_step(logits(2), logits(1), TARGET)
        sizes.append(sum(weight.abs().sum().item() for weight in term.discriminator.penalised()))
    assert sizes[1] < 0.8 * sizes[0]


# --- weight and schedule


def test_the_weight_rises_over_the_warm_up_and_ends_before_the_last_epochs() -> None:
    config = AdversarialConfig(warmup_epochs=4, off_fraction=0.25)
    factors = [config.factor(epoch, 20) for epoch in (0, 1, 2, 4, 10, 14.99, 15, 19.9)]
    assert factors == pytest.approx([0, 0.25, 0.5, 1, 1, 1, 0, 0])
    assert AdversarialConfig(warmup_epochs=0, off_fraction=0).factor(0, 20) == 1
    assert AdversarialConfig(warmup_epochs=0, off_fraction=0).factor(19.99, 20) == 1
    assert AdversarialConfig(warmup_epochs=0.5).factor(0.25, 20) == 0.5


def test_the_schedule_reaches_loss_and_discriminator(make_taps: Callable[..., Any]) -> None:
    shapes, _ = make_taps()
    terms = Terms(
        {
            "ce": CrossEntropyConfig(),
            "adversarial": AdversarialConfig(weight=2.0, warmup_epochs=2, off_fraction=0.5, hidden=8),
        }
    )
    torch.manual_seed(0)
    objective = Objective(terms, shapes, shapes, 8)
    student, teacher = logits(2), logits(1)
    values = {}
    for epoch in (0.0, 1.0, 3.0, 4.0, 7.5):
        total, found = objective(student, teacher, TARGET, epoch)
        values[epoch] = (total - found["ce"]).item()
        assert ("adversarial" in found) == (epoch in (1.0, 3.0))
        if "adversarial" in found:
            factor = {1.0: 0.5, 3.0: 1.0}[epoch]
            assert values[epoch] == pytest.approx(2.0 * factor * found["adversarial"].item(), rel=1e-5)
        before = tensors(objective)
        diagnostics = objective.own_steps(student, teacher, TARGET, epoch)
        # The opponent learns from the very first step, so that it has something to say when its weight rises.
        assert equal(tensors(objective), before) == (epoch >= 4.0)
        assert all(name.startswith("adversarial/") for name in diagnostics)
        assert bool(diagnostics) == (epoch < 4.0)


def test_a_weight_of_0_builds_no_discriminator(make_taps: Callable[..., Any]) -> None:
    shapes, _ = make_taps()
    objective = Objective(
        Terms({"ce": CrossEntropyConfig(), "adversarial": AdversarialConfig(weight=0.0)}), shapes, shapes, 8
    )
    assert not any(isinstance(module, Discriminator) for module in objective.modules())
    assert not list(objective.parameters())


def test_the_discriminator_is_not_optimised_with_the_student(make_taps: Callable[..., Any]) -> None:
    shapes, _ = make_taps()
    objective = Objective(Terms({"adversarial": AdversarialConfig(hidden=8)}), shapes, shapes, 8)
    assert list(objective.parameters())
    assert objective.joint_parameters() == []


# --- what the discriminator reads


def vectors(size: int, seed: int) -> Out:
    draw = torch.Generator().manual_seed(seed)
    return Out(torch.randn(4, CLASSES, generator=draw), torch.randn(4, size, generator=draw))


def test_the_embedding_is_read_as_it_is_where_sizes_agree_and_through_a_joint_map_where_not() -> None:
    student, teacher = vectors(6, 1), vectors(6, 2)
    term = AdversarialConfig(input="embedding").build(TapShapes(CLASSES, 6, (), ()), TapShapes(CLASSES, 6, (), ()))
    assert term.joint_parameters() == []
    assert torch.equal(term.read(student, teacher), torch.cat([teacher.embedding, student.embedding]))
    assert term.discriminator.body[-1].out_features == 1 + CLASSES
    term = AdversarialConfig(input="embedding").build(TapShapes(CLASSES, 6, (), ()), TapShapes(CLASSES, 9, (), ()))
    teacher, before = vectors(9, 2), [p.detach().clone() for p in term.joint_parameters()]
    assert len(before) == 2
    term.own_step(student, teacher, TARGET)
    assert all(p.grad is None for p in term.joint_parameters())
    term(student, teacher, TARGET).backward()
    assert all(p.grad.abs().max() > 0 for p in term.joint_parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, term.joint_parameters(), strict=True))


def run_of(make_taps: Callable[..., Any], squeeze: dict[str, Any]) -> tuple[Objective, Out, Out, SqueezeConfig]:
    """An objective with `squeeze` and a game on its vectors, a student, and a teacher with its squeezed vectors."""
    student, teacher = make_taps(seed=0), make_taps(channels=(5, 7, 9), seed=1, blocks=4)
    config = SqueezeConfig(**squeeze)
    terms = {"squeeze": config, "adversarial": AdversarialConfig(input="descriptor", warmup_epochs=0, hidden=8)}
    torch.manual_seed(0)
    estimators = HierarchicalAttention(teacher[0], teacher[0].stages, config.attention())
    with torch.no_grad():
        known = dataclasses.replace(teacher[1], squeezed=estimators(teacher[1]))
    return Objective(Terms(terms), student[0], teacher[0], 5), student[1], known, config


SQUEEZES = [{}, {"depth": 1}, {"depth": 1, "blocks": 2}, {"depth": 3, "top_dim": 6}, {"compatibility": "gap"}]


@pytest.mark.parametrize("squeeze", SQUEEZES, ids=str)
def test_the_descriptor_is_the_vector_of_the_squeeze_of_the_run(
    squeeze: dict[str, Any], make_taps: Callable[..., Any]
) -> None:
    objective, student, teacher, config = run_of(make_taps, squeeze)
    game, estimators = objective.terms["adversarial"], objective.terms["squeeze"].estimators
    both = game.read(student, teacher)
    expected = join(teacher.squeezed, config.depth), join(estimators(student), config.depth)
    torch.testing.assert_close(both, torch.cat([nn.functional.normalize(one, dim=1) for one in expected]))
    assert not game.joint_parameters()
    assert not any("estimators" in name or "adaptor" in name for name in game.state_dict())
    target = torch.zeros(3, dtype=torch.int64)
    game.own_step(student, teacher, target)
    assert all(p.grad is None for p in estimators.parameters())
    game(student, teacher, target).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in estimators.parameters())
    copied = copy.deepcopy(objective)
    assert copied.terms["adversarial"].shared[0] is copied.terms["squeeze"].estimators
    assert objective.teacher_needs == {"squeezed"}


def test_needs_follow_the_input_and_those_of_the_class_are_the_defaults() -> None:
    found = {kind: AdversarialConfig(input=kind) for kind in ("logits", "embedding", "descriptor")}
    assert {kind: set(config.teacher_needs) for kind, config in found.items()} == {
        "logits": {"logits"},
        "embedding": {"embedding"},
        "descriptor": {"squeezed"},
    }
    assert found["descriptor"].student_needs == {"embedding", "blocks"}
    assert AdversarialConfig.teacher_needs == AdversarialConfig.student_needs == {"logits"}
    assert [config.tells_classes() for config in found.values()] == [True, False, False]


def test_a_game_on_squeezed_vectors_without_squeeze_is_an_error_with_a_cure(make_config: Callable[..., Any]) -> None:
    game = {"input": "descriptor"}
    for squeeze in ({}, {"squeeze": {"weight": 0}}):
        with pytest.raises(ConfigError, match=r"terms.adversarial .*terms.squeeze makes.*above 0, or change"):
            make_config(terms={"ce": {}, "adversarial": game, **squeeze})
    make_config(terms={"ce": {}, "adversarial": game, "squeeze": {}})
    make_config(terms={"ce": {}, "adversarial": {**game, "weight": 0}})


def test_dropout_of_the_student_acts_on_embeddings_too() -> None:
    term = AdversarialConfig(input="embedding", student_dropout=0.5).build(
        TapShapes(CLASSES, 6, (), ()), TapShapes(CLASSES, 6, (), ())
    )
    student, teacher = Out(torch.ones(4, CLASSES), torch.ones(4, 6)), vectors(6, 2)
    both = term.read(student, teacher)
    assert torch.equal(both[:4], teacher.embedding)
    assert set(both[4:].unique().tolist()) == {0.0, 2.0}


def test_the_discriminator_may_rest_between_its_steps_also_over_a_resume() -> None:
    term, changed = build(every=3), []
    for step in range(7):
        before = tensors(term)
        scalars = term.own_step(logits(step), logits(100 + step), TARGET)
        changed.append(not equal(tensors(term), before))
        assert bool(scalars) == changed[-1]
    assert changed == [True, False, False, True, False, False, True]
    other = build(every=3)
    other.load_state_dict(term.state_dict())
    assert not other.own_step(logits(1), logits(2), TARGET)


# --- state


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_goes_on_bit_identically_after_its_state_was_saved_and_loaded(optimizer: str, tmp_path: Any) -> None:
    first = build(optimizer=optimizer, lr=1e-2)
    for step in range(5):
        first.own_step(logits(step), logits(100 + step), TARGET)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = build(seed=9, optimizer=optimizer, lr=1e-2)
    assert not equal(tensors(first), tensors(second))
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(5, 10):
        one = first.own_step(logits(step), logits(100 + step), TARGET)
        two = second.own_step(logits(step), logits(100 + step), TARGET)
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert equal(tensors(first), tensors(second))
    assert repr(first.optimizer.state_dict()) == repr(second.optimizer.state_dict())


def test_the_state_of_the_optimiser_matters() -> None:
    """The test above would pass with a forgotten optimiser state if that state had no influence."""
    first = build(lr=1e-2)
    for step in range(5):
        first.own_step(logits(step), logits(100 + step), TARGET)
    second = build(lr=1e-2)
    second.discriminator.load_state_dict(first.discriminator.state_dict())
    first.own_step(logits(5), logits(105), TARGET)
    second.own_step(logits(5), logits(105), TARGET)
    assert not equal(tensors(first), tensors(second))
