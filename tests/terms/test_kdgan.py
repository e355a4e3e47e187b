"""KDGAN: three players, of whom the frozen teacher is none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hksd import models
from hksd.config.run import Terms
from hksd.errors import UserError
from hksd.models.taps import Out, TappedNet
from hksd.run.objective import Objective
from hksd.terms.base import Setting
from hksd.terms.kd import kd_loss
from hksd.terms.kdgan import Kdgan, KdganConfig, concrete, mimic_loss

CLASSES = 4
IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(3))
TARGET = torch.arange(8) % CLASSES


@pytest.fixture
def network() -> TappedNet:
    torch.manual_seed(0)
    made = models.build("resnet8", width=0.25, in_channels=1, classes=CLASSES, image_size=8)
    return made.eval().requires_grad_(False)


def build(network: TappedNet, seed: int = 1, **knobs: Any) -> Kdgan:
    torch.manual_seed(seed)
    term = KdganConfig(**{"hidden": 16, **knobs}).build(network.shapes, network.shapes)
    term.meet(Setting(TARGET, network))
    return term


def outs(network: TappedNet, seed: int = 2) -> tuple[Out, Out]:
    logits = torch.randn(8, CLASSES, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    with torch.no_grad():
        return Out(logits, logits, images=IMAGES), network.taps(IMAGES)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict(keep_vars=False).items() if torch.is_tensor(value)}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_shared_teacher_is_never_touched_while_its_copy_learns(network: TappedNet) -> None:
    before, term = tensors(network), build(network, teacher_lr=1e-2)
    start = tensors(term.trained)
    assert equal(start, before)
    student, teacher = outs(network)
    for _ in range(3):
        term.own_step(student, teacher, TARGET)
        term(student, teacher, TARGET).backward()
    assert equal(tensors(network), before)
    assert not network.training
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    after = tensors(term.trained)
    assert all(not torch.equal(after[name], start[name]) for name, _ in term.trained.named_parameters())
    assert not {id(p) for p in term.parameters()} & {id(p) for p in network.parameters()}


def test_the_students_step_changes_no_other_player_nor_their_statistics(network: TappedNet) -> None:
    term, (student, teacher) = build(network), outs(network)
    term.own_step(student, teacher, TARGET)
    for p in term.parameters():
        p.grad = None
    before = tensors(term)
    term.train()
    term(student, teacher, TARGET).backward()
    assert equal(tensors(term), before)
    assert all(p.grad is None for p in term.parameters())
    assert student.logits.grad.abs().max() > 0
    assert term.joint_parameters() == []


def test_an_own_step_leaves_the_student_alone(network: TappedNet) -> None:
    term, (student, teacher) = build(network), outs(network)
    before = student.logits.detach().clone()
    scalars = term.own_step(student, teacher, TARGET)
    assert student.logits.grad is None
    assert torch.equal(student.logits, before)
    assert set(scalars) == {"discriminator_loss", "discriminator_accuracy", "teacher_loss", "teacher_accuracy"}


def test_the_discriminator_learns_which_labels_are_true(network: TappedNet) -> None:
    """Its students and teachers draw the class after the right one; images differ by a clear embedding."""
    term = build(network, lr=1e-2)
    wrong = 12 * F.one_hot((TARGET + 1) % CLASSES, CLASSES).float()
    clear = 4 * F.one_hot(TARGET, network.shapes.embedding).float()
    with torch.no_grad():
        for p in term.trained.classifier.parameters():
            p.zero_()
        term.trained.classifier.bias.fill_(0)
    term.config = KdganConfig(hidden=16, alpha=1.0, gamma=0.0)
    for _ in range(150):
        found = term.own_step(Out(wrong, wrong, images=IMAGES), Out(wrong, clear), TARGET)
    image = term._image(Out(wrong, clear))
    true, false = (
        term.discriminator(torch.cat([image, label], 1))[0]
        for label in (F.one_hot(TARGET, CLASSES).float(), torch.softmax(wrong, 1))
    )
    assert (true > 0).all()
    assert (false < 0).all()
    assert found["discriminator_loss"] < 0.5


def test_the_copy_learns_to_imitate_the_student_and_the_student_the_copy(network: TappedNet) -> None:
    term, (student, teacher) = build(network, alpha=1.0, teacher_lr=1e-2), outs(network)
    losses = [term.own_step(student, teacher, TARGET)["teacher_loss"].item() for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    term = build(network, alpha=0.0)
    with torch.no_grad():
        goal = term.trained.eval()(IMAGES)
    assert term(student, teacher, TARGET).item() == pytest.approx(F.mse_loss(student.logits, goal).item(), rel=1e-6)


def test_the_weights_of_the_game_are_those_of_the_docstring(network: TappedNet) -> None:
    student, teacher = outs(network)
    values = {}
    for alpha, beta in ((1.0, 0.0), (0.0, 1.0), (0.5, 3.0)):
        torch.manual_seed(7)
        term = build(network, alpha=alpha, beta=beta)
        torch.manual_seed(8)
        values[alpha, beta] = term(student, teacher, TARGET).item()
    assert values[0.5, 3.0] == pytest.approx(0.5 * values[1.0, 0.0] + 3 * values[0.0, 1.0], rel=1e-5)


def test_imitation_is_a_squared_distance_or_the_kd_loss() -> None:
    one, two = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mimic_loss(one, two, "squared", 3), F.mse_loss(one, two))
    assert torch.equal(mimic_loss(one, two, "kl", 3), kd_loss(one, two, 3))


def test_relaxed_draws_are_distributions_whose_largest_entries_are_drawn_from_the_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log().repeat(20_000, 1)
    drawn = concrete(logits, 0.5)
    torch.testing.assert_close(drawn.sum(1), torch.ones(len(drawn)))
    share = F.one_hot(drawn.argmax(1), 3).float().mean(0)
    assert share.tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.015)
    assert concrete(logits[:100], 0.01).amax(1).mean() > 0.97
    assert concrete(logits[:100], 100.0).amax(1).mean() < 0.4


def test_training_goes_on_bit_identically_after_its_state_was_saved_and_loaded(
    network: TappedNet, tmp_path: Any
) -> None:
    one, two = build(network), build(network, seed=9)
    for step in range(3):
        one.own_step(*outs(network, step), TARGET)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    two.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert equal(tensors(one), tensors(two))
    for term in (one, two):
        torch.manual_seed(4)
        term.own_step(*outs(network, 5), TARGET)
    assert equal(tensors(one), tensors(two))
    assert repr(one.get_extra_state()) == repr(two.get_extra_state())


def test_a_run_without_the_network_of_the_teacher_is_an_error_with_a_cure(network: TappedNet) -> None:
    term = KdganConfig().build(network.shapes, network.shapes)
    with pytest.raises(UserError, match=r"terms.kdgan trains a copy of the teacher network.*take the term away"):
        term.meet(Setting(TARGET, None))
    assert KdganConfig().data_needs() == {"labels"}
    assert KdganConfig().tells_classes()
    assert not KdganConfig(alpha=0, beta=0).tells_classes()


def test_the_copy_belongs_to_the_state_of_the_objective(network: TappedNet) -> None:
    objective = Objective(Terms({"kdgan": KdganConfig()}), network.shapes, network.shapes, 5)
    objective.meet(Setting(TARGET, network))
    state = copy.deepcopy(objective.state_dict())
    assert any(name.startswith("terms.kdgan.trained.") for name in state)
    assert objective.joint_parameters() == []
