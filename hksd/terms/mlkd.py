"""Multi-level logit distillation (Jin, Wang and Lin, CVPR 2023), on one view of each image.

The paper's idea: compare images, pairs of images and pairs of classes, at several temperatures. The published code
(CONFIRMED: Multi-Level-Logit-Distillation) has a second, strongly augmented view, and masks of confidence that scale
its averaged losses and select nothing; both are left out here. Matrices at every temperature, divided by N and by C,
are as in that code (CONFIRMED: its copy in logit-standardization-KD).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from hksd import bounds
from hksd.models.taps import Out, TapShapes
from hksd.terms.base import Term, TermConfig, Weight, require_teacher
from hksd.terms.kd import kd_loss
from hksd.terms.maps import full_precision

Temperature = Annotated[float, Field(ge=bounds.TEMPERATURE_LEAST, le=bounds.TEMPERATURE)]


@dataclass(frozen=True, kw_only=True)
class MultiLevelConfig(TermConfig):
    """Usual weight 0.9 beside `ce` 0.1, temperatures 2 to 6 (CONFIRMED: Multi-Level-Logit-Distillation)."""

    weight: Weight = 0.9
    temperatures: Annotated[
        tuple[Temperature, ...],
        Field(min_length=1, max_length=bounds.LIST_LENGTH, description="the value is the sum over these temperatures"),
    ] = (2.0, 3.0, 4.0, 5.0, 6.0)
    batch_weight: Annotated[
        float, Field(ge=0, le=bounds.WEIGHT, description="weight of the similarities of images")
    ] = 1.0
    class_weight: Annotated[
        float, Field(ge=0, le=bounds.WEIGHT, description="weight of the similarities of classes")
    ] = 1.0

    def tells_classes(self) -> bool:
        """Yes."""
        return True

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        return MultiLevel(self)


@full_precision
def gram_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """``||S S^T - T T^T||^2 / N`` of two matrices (N, K): what their rows have in common with one another."""
    return (student @ student.T - teacher @ teacher.T).square().sum() / len(student)


@full_precision
def mlkd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0),
    batch_weight: float = 1.0,
    class_weight: float = 1.0,
) -> Tensor:
    """Sum over T of ``T^2 KL + batch_weight ||P P^T - Q Q^T||^2 / N + class_weight ||P^T P - Q^T Q||^2 / C``.

    ``P`` and ``Q`` (N, C) are softmax(z / T) of student and teacher. The similarities of classes are sums over the
    batch, so that this part grows with the batch.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperatures: one or more T > 0.
        batch_weight: weight of the similarities of images, >= 0.
        class_weight: weight of the similarities of classes, >= 0.
    """
    values = []
    for temperature in temperatures:
        p, q = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
        pairs = batch_weight * gram_distance(p, q) + class_weight * gram_distance(p.T, q.T)
        values.append(kd_loss(student, teacher, temperature) + pairs)
    return torch.stack(values).sum()


class MultiLevel(Term):
    """`mlkd_loss` of the two logits."""

    def __init__(self, config: MultiLevelConfig):
        super().__init__()
        self.config = config

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        config = self.config
        return mlkd_loss(
            student.logits,
            require_teacher(teacher).logits,
            temperatures=config.temperatures,
            batch_weight=config.batch_weight,
            class_weight=config.class_weight,
        )
