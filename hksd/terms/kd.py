"""Knowledge distillation by softened logits (Hinton, Vinyals and Dean 2015, arXiv 1503.02531).

`standardize` is logit standardisation (Sun et al. 2024, arXiv 2403.01427): the student need not match the size of the
teacher's logits, only their pattern.
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

STANDARD_EPS = 1e-7  # of the published code of logit standardisation


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(TermConfig):
    """Usual weights on CIFAR: `kd` 0.9 beside `ce` 0.1, temperature 4 (CONFIRMED: RepDistiller, mdistiller).

    With `standardize`: weight 9, temperature 2 (CONFIRMED: logit-standardization-KD).
    """

    temperature: Annotated[
        float,
        Field(
            ge=bounds.TEMPERATURE_LEAST,
            le=bounds.TEMPERATURE,
            description="softens both distributions; 4 on CIFAR, 1 on ImageNet",
        ),
    ] = 4.0
    standardize: Annotated[
        bool, Field(description="z-score the logits of both networks over the classes before the softmax")
    ] = False

    def tells_classes(self) -> bool:
        """Yes."""
        return True

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        return Distillation(self)


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(p_teacher || p_student)`` of softmax(z / T), batch mean. The factor T^2 is inside.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T > 0.
    """
    divergence = F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


@full_precision
def standardize(logits: Tensor) -> Tensor:
    """``(z - mean) / (std + 1e-7)`` over the classes of logits (N, C), with the unbiased deviation (C - 1).

    Equal logits become 0.
    """
    centred = logits - logits.mean(1, keepdim=True)
    # The norm has gradient 0 at 0, where that of a square root has none.
    deviation = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / max(1, logits.shape[1] - 1) ** 0.5
    return torch.div(centred, deviation + STANDARD_EPS)


class Distillation(Term):
    """`kd_loss` of the two logits."""

    def __init__(self, config: DistillationConfig):
        super().__init__()
        self.config = config

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        mine, goal = student.logits, require_teacher(teacher).logits
        if self.config.standardize:
            mine, goal = standardize(mine), standardize(goal)
        return kd_loss(mine, goal, self.config.temperature)
