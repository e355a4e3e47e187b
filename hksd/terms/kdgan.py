"""KDGAN: a classifier (the student), a teacher that is trained on, and a discriminator of (image, label) pairs.

Wang, Zhang, Sun and Qi 2018. Structure SECONDARY (public repository xiaojiew1/KDGAN, where a player moves for several
epochs at a time). RECONSTRUCTED: the value function, and that every player moves once per batch:

    discriminator   max  log d(x, y) + alpha log(1 - d(x, y_c)) + (1 - alpha) log(1 - d(x, y_t))
    classifier      min  alpha * game(d(x, y_c)) + beta  * mimic(z_c, z_t)
    teacher         min  (1 - alpha) * game(d(x, y_t)) + gamma * mimic(z_t, z_c) + supervision * CE(z_t, y)

y is the true label; y_c and y_t are drawn from the two players by the concrete relaxation
softmax((log p + Gumbel noise) / tau). The image stands in the pair as the embedding of the frozen teacher
(RECONSTRUCTED). The trained teacher is a copy, made before the first step: the frozen one is never touched.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hksd import bounds
from hksd.errors import UserError
from hksd.models.taps import Out, TappedNet, TapShapes
from hksd.terms.adversarial import Discriminator, discriminator_loss, frozen, generator_loss, told_apart
from hksd.terms.base import Setting, Term, TermConfig, require_teacher
from hksd.terms.kd import kd_loss


@dataclass(frozen=True, kw_only=True)
class KdganConfig(TermConfig):
    """Usual weight 1, alpha 0.5, beta 1 (SECONDARY: xiaojiew1/KDGAN).

    gamma 0.01 and supervision 1 are RECONSTRUCTED: a teacher that is trained already forgets when it imitates a student
    that is not, and its ruin takes the student along. On 4,500 images of CIFAR-10 (ResNet-26 to ResNet-8, one seed) the
    student had 10 % after 4 epochs without supervision, its teacher 47 %; with it 39 % and 80 %.
    """

    alpha: Annotated[
        float, Field(ge=0, le=1, description="share of the student in the game, 1 - alpha the teacher's")
    ] = 0.5
    beta: Annotated[
        float, Field(ge=0, le=bounds.WEIGHT, description="weight of the student's imitation of the trained teacher")
    ] = 1.0
    gamma: Annotated[
        float, Field(ge=0, le=bounds.WEIGHT, description="weight of the trained teacher's imitation of the student")
    ] = 0.01
    supervision: Annotated[
        float,
        Field(ge=0, le=bounds.WEIGHT, description="weight of the trained teacher's cross-entropy with the labels"),
    ] = 1.0
    mimic: Annotated[
        Literal["squared", "kl"], Field(description="imitation: squared distance of logits, or KL of softened logits")
    ] = "squared"
    mimic_temperature: Annotated[
        float, Field(ge=bounds.TEMPERATURE_LEAST, le=bounds.TEMPERATURE, description="softens the logits under kl")
    ] = 3.0
    temperature: Annotated[
        float,
        Field(
            ge=bounds.TEMPERATURE_LEAST,
            le=bounds.TEMPERATURE,
            description="tau of the concrete relaxation: small is near one-hot",
        ),
    ] = 1.0
    hidden: Annotated[
        int, Field(ge=1, le=bounds.FEATURES, description="width of the discriminator's two hidden layers")
    ] = 128
    lr: Annotated[
        float, Field(ge=bounds.RATE_LEAST, le=bounds.RATE, description="learning rate of the discriminator (Adam)")
    ] = 1e-3
    teacher_lr: Annotated[
        float,
        Field(ge=bounds.RATE_LEAST, le=bounds.RATE, description="learning rate of the copy of the teacher (Adam)"),
    ] = 5e-4

    student_needs: ClassVar[frozenset[str]] = frozenset({"logits", "images"})
    teacher_needs: ClassVar[frozenset[str]] = frozenset({"embedding"})

    def dead_knobs(self) -> frozenset[str]:
        """Only KL has a temperature."""
        return frozenset({"mimic_temperature"}) if self.mimic == "squared" else frozenset()

    def data_needs(self) -> frozenset[str]:
        """True labels are what the discriminator takes for real."""
        return frozenset({"labels"})

    def tells_classes(self) -> bool:
        """Through the discriminator and the teacher."""
        return self.alpha > 0 or self.beta > 0

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        assert teacher is not None
        return Kdgan(self, student.classes, teacher.embedding)


def concrete(logits: Tensor, temperature: float) -> Tensor:
    """Labels drawn from softmax(logits), relaxed: softmax((z + Gumbel noise) / temperature), (N, C).

    The largest entry is that of a true draw; gradients flow to the logits. The noise comes in single precision from
    torch's global generator.
    """
    noise = -torch.empty_like(logits, dtype=torch.float32).exponential_().log()
    return torch.softmax((logits + noise.to(logits.dtype)) / temperature, 1)


def mimic_loss(student: Tensor, teacher: Tensor, kind: str, temperature: float) -> Tensor:
    """Imitation of logits (N, C) of `teacher` by `student`: their mean squared distance, or `kd_loss`."""
    return F.mse_loss(student, teacher) if kind == "squared" else kd_loss(student, teacher, temperature)


class Kdgan(Term):
    """The game of three: `own_step` trains the discriminator, then the copy of the teacher; `forward` is the student's.

    The copy is trained in training mode (batch statistics) and asked by the student in evaluation mode. It and both
    optimisers are part of every checkpoint and never exported.
    """

    trained: TappedNet

    def __init__(self, config: KdganConfig, classes: int, embedding: int):
        super().__init__()
        self.config, self.classes = config, classes
        self.discriminator = Discriminator(embedding + classes, config.hidden, 2, False, 0)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=config.lr, betas=(0.5, 0.999))

    def meet(self, setting: Setting) -> None:
        """Copy the teacher, and make the copy's optimiser."""
        if setting.teacher is None:
            raise UserError(
                "terms.kdgan trains a copy of the teacher network, but this run has only what a teacher said; "
                "take the term away, or give the network itself"
            )
        self.trained = copy.deepcopy(setting.teacher).requires_grad_(True)
        for p in self.trained.parameters():
            p.grad = None
        self.teacher_optimizer = torch.optim.Adam(
            self.trained.parameters(), lr=self.config.teacher_lr, betas=(0.5, 0.999)
        )

    def joint_parameters(self) -> list[nn.Parameter]:
        """None: the other two players have optimisers of their own."""
        return []

    def get_extra_state(self) -> dict[str, Any]:
        """State of the two optimisers."""
        return {"discriminator": self.optimizer.state_dict(), "teacher": self.teacher_optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See `get_extra_state`."""
        self.optimizer.load_state_dict(state["discriminator"])
        self.teacher_optimizer.load_state_dict(state["teacher"])

    def own_step(self, student: Out, teacher: Out | None, target: Tensor) -> dict[str, Tensor]:
        """A step of the discriminator, then one of the copy of the teacher; returns what says how the game stands."""
        config, count = self.config, len(target)
        assert student.images is not None
        image, mine = self._image(teacher), student.logits.detach()
        logits = self.trained.train()(student.images)
        drawn = [concrete(one, config.temperature) for one in (mine, logits)]
        truth = F.one_hot(target, self.classes).to(mine.dtype)
        labels = torch.cat([truth, *(one.detach().to(mine.dtype) for one in drawn)])
        scores = self.discriminator(torch.cat([image.repeat(3, 1), labels], 1))[0].split(count)
        true, of_student, of_teacher = scores
        loss = config.alpha * discriminator_loss("nonsaturating", true, of_student)
        loss = loss + (1 - config.alpha) * discriminator_loss("nonsaturating", true, of_teacher)
        _step(self.optimizer, loss)

        score = frozen(self.discriminator, torch.cat([image, drawn[1].to(image.dtype)], 1))[0]
        teacher_loss = (1 - config.alpha) * generator_loss("nonsaturating", score)
        teacher_loss = teacher_loss + config.gamma * mimic_loss(logits, mine, config.mimic, config.mimic_temperature)
        teacher_loss = teacher_loss + config.supervision * F.cross_entropy(logits, target)
        _step(self.teacher_optimizer, teacher_loss)
        return {
            "discriminator_loss": loss.detach(),
            "discriminator_accuracy": told_apart("nonsaturating", true, torch.cat([of_student, of_teacher])),
            "teacher_loss": teacher_loss.detach(),
            "teacher_accuracy": (logits.detach().argmax(1) == target).float().mean(),
        }

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """The student's loss; the other two players are constants here."""
        config = self.config
        assert student.images is not None
        with torch.no_grad():
            goal = self.trained.eval()(student.images)
        image, label = self._image(teacher), concrete(student.logits, config.temperature)
        score = frozen(self.discriminator, torch.cat([image, label.to(image.dtype)], 1))[0]
        loss = config.alpha * generator_loss("nonsaturating", score)
        return loss + config.beta * mimic_loss(student.logits, goal, config.mimic, config.mimic_temperature)

    @staticmethod
    def _image(teacher: Out | None) -> Tensor:
        """The image as the discriminator sees it: the frozen teacher's embedding (N, G), standardised."""
        embedding = require_teacher(teacher).embedding.detach()
        return F.layer_norm(embedding, embedding.shape[1:])


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
