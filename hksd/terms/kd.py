"""Knowledge distillation by softened logits (Hinton, Vinyals and Dean 2015, arXiv 1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hksd.models.taps import Out, TapShapes
from hksd.terms.base import Term, TermConfig, require_teacher


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(TermConfig):
    """Usual weights on CIFAR: `kd` 0.9 beside `ce` 0.1, temperature 4 (CONFIRMED: RepDistiller, mdistiller)."""

    temperature: Annotated[float, Field(gt=0, description="softens both distributions; 4 on CIFAR, 1 on ImageNet")] = (
        4.0
    )

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


class Distillation(Term):
    """`kd_loss` of the two logits."""

    def __init__(self, config: DistillationConfig):
        super().__init__()
        self.config = config

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        return kd_loss(student.logits, require_teacher(teacher).logits, self.config.temperature)
