"""Adversarial distillation: a discriminator tells teachers from students, the student learns to fool it.

KSANC (CONFIRMED-SHOT): the discriminator reads logits through BN, FC, BN+ReLU, FC, BN+ReLU, FC and has 1 + C outputs,
teacher/student and category; it is held back by an L1, an L2 and an adversarial regulariser. RECONSTRUCTED: layer
widths; the sign of the category loss for the student (both players raise the right class, as in auxiliary-classifier
GANs; the printed sign would fight classification); three separate factors in place of the paper's one mu; the
non-saturating student loss. Both inputs pass the discriminator in one call, in both players' steps, because separate
calls would let its batch statistics alone tell them apart.

ANC (arXiv 1803.10750) reads the features before the logits, with dropout 0.5 on the student's side (SECONDARY). Reading
the squeezed vectors of `squeeze` is our addition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from hksd import bounds
from hksd.attention import HierarchicalAttention, join
from hksd.models.taps import Out, TapShapes
from hksd.terms.base import NeedsByKnob, OffFraction, Term, TermConfig, WarmupEpochs, Weight, require_teacher
from hksd.terms.squeeze import Squeeze, SqueezeConfig, descriptor_size

Game = Literal["nonsaturating", "hinge", "least_squares"]
STUDENT_NEEDS = {"logits": {"logits"}, "embedding": {"embedding"}, "descriptor": {"embedding", "blocks"}}
TEACHER_NEEDS = {"logits": {"logits"}, "embedding": {"embedding"}, "descriptor": {"squeezed"}}


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(TermConfig):
    """Usual weight 0.1 (RECONSTRUCTED; lambda_2 and mu of the paper are unknown, and so are the weights of ANC)."""

    weight: Weight = 0.1
    warmup_epochs: WarmupEpochs = 10.0
    off_fraction: OffFraction = 0.05
    input: Annotated[
        Literal["logits", "embedding", "descriptor"],
        Field(
            description="what the discriminator reads: logits (KSANC), the vector before them (ANC), squeezed vectors"
        ),
    ] = "logits"
    loss: Annotated[Game, Field(description="form of the game between the two")] = "nonsaturating"
    category_weight: Annotated[
        float, Field(ge=0, le=bounds.WEIGHT, description="weight of the category head in both players' losses")
    ] = 1.0
    hidden: Annotated[
        int, Field(ge=1, le=bounds.FEATURES, description="width of the discriminator's hidden layers")
    ] = 128
    layers: Annotated[int, Field(ge=1, le=4, description="number of hidden layers")] = 2
    batch_norm: Annotated[bool, Field(description="batch normalisation in the discriminator, as in the paper")] = True
    optimizer: Annotated[Literal["adam", "sgd"], Field(description="optimiser of the discriminator")] = "adam"
    lr: Annotated[
        float, Field(ge=bounds.RATE_LEAST, le=bounds.RATE, description="learning rate of the discriminator")
    ] = 1e-3
    steps: Annotated[int, Field(ge=1, le=bounds.STEPS, description="discriminator steps at a time")] = 1
    every: Annotated[int, Field(ge=1, le=bounds.STEPS, description="student steps from one time to the next")] = 1
    l1: Annotated[
        float, Field(ge=0, le=bounds.WEIGHT, description="mu1: factor on |w|_1 of the discriminator (sum over weights)")
    ] = 1e-5
    l2: Annotated[
        float,
        Field(ge=0, le=bounds.WEIGHT, description="mu2: factor on ||w||_2^2 of the discriminator (sum over weights)"),
    ] = 1e-4
    confusion: Annotated[
        float, Field(ge=0, lt=1, description="mu3: also call students teachers this much (nonsaturating only)")
    ] = 0.3
    student_dropout: Annotated[
        float, Field(ge=0, lt=1, description="dropout on what the discriminator reads of the student; 0.5 in ANC")
    ] = 0.0

    student_needs: ClassVar[frozenset[str]] = cast(
        Any, NeedsByKnob(frozenset({"logits"}), lambda config: frozenset(STUDENT_NEEDS[config.input]))
    )
    teacher_needs: ClassVar[frozenset[str]] = cast(
        Any, NeedsByKnob(frozenset({"logits"}), lambda config: frozenset(TEACHER_NEEDS[config.input]))
    )

    def dead_knobs(self) -> frozenset[str]:
        """`confusion` exists in the non-saturating game only."""
        return frozenset() if self.loss == "nonsaturating" else frozenset({"confusion"})

    def data_needs(self) -> frozenset[str]:
        """The category head learns from labels."""
        return frozenset({"labels"}) if self.category_weight else frozenset()

    def tells_classes(self) -> bool:
        """With a category head that reads logits; from other inputs the deployed classifier learns nothing."""
        return self.category_weight > 0 and self.input == "logits"

    def companions(self) -> frozenset[str]:
        """Squeezed vectors are made for `squeeze`."""
        return frozenset({"squeeze"}) if self.input == "descriptor" else frozenset()

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`; alone, squeezed vectors are those of the default `squeeze`."""
        assert teacher is not None
        return Adversarial(self, student, teacher)

    def build_beside(self, student: TapShapes, teacher: TapShapes | None, earlier: Mapping[str, Term]) -> Term:
        """See `TermConfig.build_beside`; squeezed vectors are those of the `squeeze` of the run."""
        squeeze = earlier.get("squeeze")
        assert teacher is not None
        return Adversarial(self, student, teacher, squeeze if isinstance(squeeze, Squeeze) else None)


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


def told_apart(kind: str, teacher: Tensor, student: Tensor) -> Tensor:
    """Share of scores (N,) on the right side of the middle, for the log: 1 is a perfect discriminator."""
    middle = 0.5 if kind == "least_squares" else 0.0
    return ((teacher > middle).float().mean() + (student < middle).float().mean()).detach() / 2


class Discriminator(nn.Module):
    """Vectors (N, inputs) -> (teacher score (N,), category logits (N, categories)).

    Batch normalisation uses the statistics of the batch at hand and keeps none: the discriminator is never evaluated,
    and a student step must leave it bit-identical.

    Args:
        inputs: size of the vectors.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        batch_norm: normalise the input and every hidden layer.
        categories: size of the category head; None means `inputs`, as for logits.
    """

    def __init__(self, inputs: int, hidden: int, layers: int, batch_norm: bool, categories: int | None = None):
        super().__init__()
        sizes = [inputs, *[hidden] * layers]
        body: list[nn.Module] = [self._norm(inputs)] if batch_norm else []
        for before, after in pairwise(sizes):
            body.append(nn.Linear(before, after))
            body.extend([self._norm(after)] if batch_norm else [])
            body.append(nn.ReLU())
        self.body = nn.Sequential(*body, nn.Linear(hidden, 1 + (inputs if categories is None else categories)))

    @staticmethod
    def _norm(size: int) -> nn.Module:
        return nn.BatchNorm1d(size, track_running_stats=False)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """vectors: (N, inputs)."""
        result = self.body(vectors)
        return result[:, 0], result[:, 1:]

    def penalised(self) -> list[Tensor]:
        """Weight matrices, without biases and normalisation: what L1 and L2 act on."""
        return [module.weight for module in self.modules() if isinstance(module, nn.Linear)]


def frozen(module: nn.Module, *inputs: Tensor) -> Any:
    """Call `module` with its parameters as constants, so that they gather no gradient."""
    constants = {name: value.detach() for name, value in module.named_parameters()}
    return functional_call(module, constants, inputs)


class Adversarial(Term):
    """The game: `own_step` trains the discriminator, `forward` is the student's loss against it.

    Embeddings of unlike size: a linear map takes the student's to the teacher's size and learns with the student.
    """

    def __init__(
        self, config: AdversarialConfig, student: TapShapes, teacher: TapShapes, squeeze: Squeeze | None = None
    ):
        super().__init__()
        self.config, self.calls = config, 0
        inputs = {"logits": student.classes, "embedding": teacher.embedding}.get(config.input, 0)
        self.adaptor: nn.Module = nn.Identity()
        if config.input == "embedding" and student.embedding != teacher.embedding:
            self.adaptor = nn.Linear(student.embedding, teacher.embedding)
        if config.input == "descriptor":
            knobs = squeeze.config if squeeze else SqueezeConfig()
            if squeeze is None:
                self.adaptor = HierarchicalAttention(student, teacher.stages, knobs.attention(), knobs.depth)
            estimators = squeeze.estimators if squeeze else cast(HierarchicalAttention, self.adaptor)
            self.shared = (estimators,)  # in a tuple: they are the other term's, not a module of this one
            self.depth, self.stages = knobs.depth, len(estimators.taps)
            inputs = descriptor_size(knobs, teacher, estimators)
        self.discriminator = Discriminator(inputs, config.hidden, config.layers, config.batch_norm, student.classes)
        self.optimizer: torch.optim.Optimizer
        if config.optimizer == "adam":
            self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=config.lr, betas=(0.5, 0.999))
        else:
            self.optimizer = torch.optim.SGD(self.discriminator.parameters(), lr=config.lr, momentum=0.9)

    def joint_parameters(self) -> list[nn.Parameter]:
        """Those of the student's adaptor, if there is one: the discriminator has its own optimiser."""
        return list(self.adaptor.parameters())

    def get_extra_state(self) -> dict[str, Any]:
        """State of the discriminator's optimiser and the count of calls, so that a resumed run repeats every step."""
        return {"optimizer": self.optimizer.state_dict(), "calls": self.calls}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See `get_extra_state`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.calls = state["calls"]

    def read(self, student: Out, teacher: Out) -> Tensor:
        """What the discriminator sees, the teacher's part without gradients: (2N, inputs), teachers first.

        Squeezed vectors are compared as unit vectors, since `squeeze` leaves their length free.
        """
        if self.config.input == "logits":
            real, fake = teacher.logits, student.logits
        elif self.config.input == "embedding":
            real, fake = teacher.embedding, self.adaptor(student.embedding)
        else:
            real = F.normalize(join(teacher.squeezed, self.depth, self.stages), dim=1)
            fake = F.normalize(join(self.shared[0](student), self.depth), dim=1)
        noisy = F.dropout(fake, self.config.student_dropout) if self.config.student_dropout else fake
        return torch.cat([real.detach(), noisy])

    def own_step(self, student: Out, teacher: Out | None, target: Tensor) -> dict[str, Tensor]:
        """Train the discriminator when it is its turn; returns its loss and its accuracy on this batch."""
        config, count = self.config, len(target)
        self.calls += 1
        if (self.calls - 1) % config.every:
            return {}
        with torch.no_grad():
            both = self.read(student, require_teacher(teacher))
        for _ in range(config.steps):
            score, category = self.discriminator(both)
            loss = discriminator_loss(config.loss, score[:count], score[count:], config.confusion)
            loss = loss + config.category_weight * F.cross_entropy(category, target.repeat(2))
            for weight in self.discriminator.penalised():
                loss = loss + config.l1 * weight.abs().sum() + config.l2 * weight.square().sum()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return {
            "discriminator_loss": loss.detach(),
            "discriminator_accuracy": told_apart(config.loss, score[:count], score[count:]),
        }

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """The student's loss; the discriminator's weights are constants here and gather no gradient."""
        config, count = self.config, len(target)
        score, category = frozen(self.discriminator, self.read(student, require_teacher(teacher)))
        loss = generator_loss(config.loss, score[count:])
        return loss + config.category_weight * F.cross_entropy(category[count:], target)
