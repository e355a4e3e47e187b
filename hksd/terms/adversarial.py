"""Adversarial distillation: a discriminator tells teacher logits from student logits, the student learns to fool it.

KSANC (CONFIRMED-SHOT): the discriminator reads logits through BN, FC, BN+ReLU, FC, BN+ReLU, FC and has 1 + C outputs,
teacher/student and category; it is held back by an L1, an L2 and an adversarial regulariser. RECONSTRUCTED: layer
widths; the sign of the category loss for the student (both players raise the right class, as in auxiliary-classifier
GANs; the printed sign would fight classification); three separate factors in place of the paper's one mu; the
non-saturating student loss. Both logits pass the discriminator in one call, in both players' steps, because separate
calls would let its batch statistics alone tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from hksd.models.taps import Out, TapShapes
from hksd.terms.base import OffFraction, Term, TermConfig, WarmupEpochs, Weight, require_teacher


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(TermConfig):
    """Usual weight 0.1 (RECONSTRUCTED; the paper's lambda_2 and mu are unknown)."""

    weight: Weight = 0.1
    warmup_epochs: WarmupEpochs = 10.0
    off_fraction: OffFraction = 0.05
    loss: Annotated[
        Literal["nonsaturating", "hinge", "least_squares"], Field(description="form of the game between the two")
    ] = "nonsaturating"
    category_weight: Annotated[
        float, Field(ge=0, description="weight of the category head in both players' losses")
    ] = 1.0
    hidden: Annotated[int, Field(ge=1, description="width of the discriminator's hidden layers")] = 128
    layers: Annotated[int, Field(ge=1, le=4, description="number of hidden layers")] = 2
    batch_norm: Annotated[bool, Field(description="batch normalisation in the discriminator, as in the paper")] = True
    optimizer: Annotated[Literal["adam", "sgd"], Field(description="optimiser of the discriminator")] = "adam"
    lr: Annotated[float, Field(gt=0, description="learning rate of the discriminator")] = 1e-3
    steps: Annotated[int, Field(ge=1, description="discriminator steps per student step")] = 1
    l1: Annotated[float, Field(ge=0, description="mu1: factor on |w|_1 of the discriminator (sum over weights)")] = 1e-5
    l2: Annotated[
        float, Field(ge=0, description="mu2: factor on ||w||_2^2 of the discriminator (sum over weights)")
    ] = 1e-4
    confusion: Annotated[
        float, Field(ge=0, lt=1, description="mu3: also call students teachers this much (nonsaturating only)")
    ] = 0.3
    student_dropout: Annotated[float, Field(ge=0, lt=1, description="dropout on the student's logits in the game")] = (
        0.0
    )

    def dead_knobs(self) -> frozenset[str]:
        """`confusion` exists in the non-saturating game only."""
        return frozenset() if self.loss == "nonsaturating" else frozenset({"confusion"})

    def data_needs(self) -> frozenset[str]:
        """The category head learns from labels."""
        return frozenset({"labels"}) if self.category_weight else frozenset()

    def tells_classes(self) -> bool:
        """With a category head."""
        return self.category_weight > 0

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        return Adversarial(self, student.classes)


def discriminator_loss(kind: str, teacher: Tensor, student: Tensor, confusion: float = 0.0) -> Tensor:
    """What the discriminator minimises, from its scores (N,) for teachers and students (high = teacher).

    ``confusion`` mu3 adds ``mu3 softplus(-d_S)``: the optimum for students is then the probability mu3 / (1 + mu3)
    of being called a teacher, in place of 0.
    """
    if kind == "hinge":
        return F.relu(1 - teacher).mean() + F.relu(1 + student).mean()
    if kind == "least_squares":
        return (teacher - 1).square().mean() + student.square().mean()
    return F.softplus(-teacher).mean() + F.softplus(student).mean() + confusion * F.softplus(-student).mean()


def generator_loss(kind: str, student: Tensor) -> Tensor:
    """What the student minimises, from the discriminator's scores (N,) for it."""
    if kind == "hinge":
        return -student.mean()
    if kind == "least_squares":
        return (student - 1).square().mean()
    return F.softplus(-student).mean()


class Discriminator(nn.Module):
    """Logits (N, C) -> (teacher score (N,), category logits (N, C)).

    Batch normalisation uses the statistics of the batch at hand and keeps none: the discriminator is never evaluated,
    and a student step must leave it bit-identical.
    """

    def __init__(self, classes: int, hidden: int, layers: int, batch_norm: bool):
        super().__init__()
        sizes = [classes, *[hidden] * layers]
        body: list[nn.Module] = [self._norm(classes)] if batch_norm else []
        for inputs, outputs in pairwise(sizes):
            body.append(nn.Linear(inputs, outputs))
            body.extend([self._norm(outputs)] if batch_norm else [])
            body.append(nn.ReLU())
        self.body = nn.Sequential(*body, nn.Linear(hidden, 1 + classes))

    @staticmethod
    def _norm(size: int) -> nn.Module:
        return nn.BatchNorm1d(size, track_running_stats=False)

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """logits: (N, C)."""
        result = self.body(logits)
        return result[:, 0], result[:, 1:]

    def penalised(self) -> list[Tensor]:
        """Weight matrices, without biases and normalisation: what L1 and L2 act on."""
        return [module.weight for module in self.modules() if isinstance(module, nn.Linear)]


class Adversarial(Term):
    """The game: `own_step` trains the discriminator, `forward` is the student's loss against it."""

    def __init__(self, config: AdversarialConfig, classes: int):
        super().__init__()
        self.config = config
        self.discriminator = Discriminator(classes, config.hidden, config.layers, config.batch_norm)
        self.optimizer: torch.optim.Optimizer
        if config.optimizer == "adam":
            self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=config.lr, betas=(0.5, 0.999))
        else:
            self.optimizer = torch.optim.SGD(self.discriminator.parameters(), lr=config.lr, momentum=0.9)

    def joint_parameters(self) -> list[nn.Parameter]:
        """None: the discriminator has its own optimiser."""
        return []

    def get_extra_state(self) -> dict[str, Any]:
        """State of the discriminator's optimiser, so that a resumed run repeats every step."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See `get_extra_state`."""
        self.optimizer.load_state_dict(state)

    def own_step(self, student: Out, teacher: Out | None, target: Tensor) -> dict[str, Tensor]:
        """Train the discriminator on detached logits; returns its loss and its accuracy on this batch."""
        config, count = self.config, len(target)
        real, fake = require_teacher(teacher).logits.detach(), self._noisy(student.logits.detach())
        for _ in range(config.steps):
            score, category = self.discriminator(torch.cat([real, fake]))
            loss = discriminator_loss(config.loss, score[:count], score[count:], config.confusion)
            loss = loss + config.category_weight * F.cross_entropy(category, target.repeat(2))
            for weight in self.discriminator.penalised():
                loss = loss + config.l1 * weight.abs().sum() + config.l2 * weight.square().sum()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        middle = 0.5 if config.loss == "least_squares" else 0.0
        right = (score[:count] > middle).float().mean() + (score[count:] < middle).float().mean()
        return {"discriminator_loss": loss.detach(), "discriminator_accuracy": right.detach() / 2}

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """The student's loss; the discriminator's weights are constants here and gather no gradient."""
        config, count = self.config, len(target)
        both = torch.cat([require_teacher(teacher).logits.detach(), self._noisy(student.logits)])
        constants = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        score, category = functional_call(self.discriminator, constants, (both,))
        loss = generator_loss(config.loss, score[count:])
        return loss + config.category_weight * F.cross_entropy(category[count:], target)

    def _noisy(self, logits: Tensor) -> Tensor:
        return F.dropout(logits, self.config.student_dropout) if self.config.student_dropout else logits
