"""Decoupled knowledge distillation (Zhao et al. 2022, arXiv 2203.08679).

The KL divergence of `kd` splits into one of the target class against the rest and one among the others, which `kd`
scales by how unsure the teacher is of the target. Here both have a weight of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hksd import bounds
from hksd.models.taps import Out, TapShapes
from hksd.terms.base import Term, TermConfig, require_teacher
from hksd.terms.maps import full_precision


@dataclass(frozen=True, kw_only=True)
class DecoupledConfig(TermConfig):
    """Weight 1 beside `ce` 1, alpha 1, T 4, and a linear warm-up over 20 epochs (CONFIRMED: mdistiller).

    Beta by pair of networks: 2 for ResNet 56 to 20 and 110 to 32, 6 for WRN to WRN and VGG 13 to 8, 8 for 32x4 to 8x4
    and to ShuffleNets; on ImageNet 0.5 at T 1 with a warm-up of 1 epoch (CONFIRMED: mdistiller).
    """

    temperature: Annotated[
        float,
        Field(
            ge=bounds.TEMPERATURE_LEAST,
            le=bounds.TEMPERATURE,
            description="softens both distributions; 4 on CIFAR, 1 on ImageNet",
        ),
    ] = 4.0
    alpha: Annotated[
        float, Field(ge=0, le=bounds.WEIGHT, description="weight of the target class against all others")
    ] = 1.0
    beta: Annotated[
        float, Field(ge=0, le=bounds.WEIGHT, description="weight of the distribution among the other classes")
    ] = 2.0

    def data_needs(self) -> frozenset[str]:
        """The labels name the target class."""
        return frozenset({"labels"})

    def tells_classes(self) -> bool:
        """While alpha is above 0: without it the target's own logit is free."""
        return self.alpha > 0

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        return Decoupled(self)


@full_precision
def dkd_loss(
    student: Tensor, teacher: Tensor, target: Tensor, *, alpha: float = 1.0, beta: float = 2.0, temperature: float = 4.0
) -> Tensor:
    """``T^2 (alpha KL(b_teacher || b_student) + beta KL(q_teacher || q_student))``, batch mean.

    ``b`` is the pair (probability of the target, of all others), ``q`` the softmax over the other classes alone.
    With alpha = 1 and beta = the teacher's probability of the others, an image's value would be that of `kd`.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        target: labels (N,).
        alpha: weight of the first part, >= 0.
        beta: weight of the second part, >= 0.
        temperature: T > 0.
    """
    others = torch.arange(student.shape[1] - 1, device=target.device).expand(len(target), -1)
    others = others + (others >= target[:, None])  # (N, C - 1): every class but the target

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits / temperature
        rest = logits.gather(1, others)
        binary = torch.stack([logits.gather(1, target[:, None]).squeeze(1), rest.logsumexp(1)], 1)
        return binary.log_softmax(1), rest.log_softmax(1)

    pairs = zip((alpha, beta), parts(student), parts(teacher), strict=True)
    values = [weight * F.kl_div(s, t, reduction="batchmean", log_target=True) for weight, s, t in pairs]
    return (values[0] + values[1]) * temperature**2


class Decoupled(Term):
    """`dkd_loss` of the two logits."""

    def __init__(self, config: DecoupledConfig):
        super().__init__()
        self.config = config

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        config, goal = self.config, require_teacher(teacher).logits
        knobs = {"alpha": config.alpha, "beta": config.beta, "temperature": config.temperature}
        return dkd_loss(student.logits, goal, target, **knobs)
