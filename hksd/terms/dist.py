"""DIST: correlation in place of divergence (Huang et al. 2022, arXiv 2205.10536).

The student keeps the teacher's preferences among the classes of an image, and among the images of a class, without
its exact probabilities; that is meant for teachers much stronger than their student.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from hksd import bounds
from hksd.models.taps import Out, TapShapes
from hksd.terms.base import Term, TermConfig, Weight, require_teacher
from hksd.terms.maps import full_precision

EPS = 1e-8  # of the published code


@dataclass(frozen=True, kw_only=True)
class DistConfig(TermConfig):
    """Usual weight 2 beside `ce` 1, with beta = gamma = 1, T 4 on CIFAR and 1 on ImageNet (CONFIRMED: DIST_KD)."""

    weight: Weight = 2.0
    temperature: Annotated[
        float,
        Field(
            ge=bounds.TEMPERATURE_LEAST,
            le=bounds.TEMPERATURE,
            description="softens both distributions; 4 on CIFAR, 1 on ImageNet",
        ),
    ] = 4.0
    beta: Annotated[
        float, Field(ge=0, le=bounds.WEIGHT, description="weight of the correlation over classes, image by image")
    ] = 1.0
    gamma: Annotated[
        float, Field(ge=0, le=bounds.WEIGHT, description="weight of the correlation over images, class by class")
    ] = 1.0

    def tells_classes(self) -> bool:
        """Where the classes of an image, or the images of a class, are compared."""
        return self.beta > 0 or self.gamma > 0

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        return Dist(self)


def one_minus_pearson(student: Tensor, teacher: Tensor) -> Tensor:
    """``1 - r`` of Pearson's correlation of each two rows of (N, K), mean over rows; r = 0 where a row is constant."""
    s, t = (rows - rows.mean(1, keepdim=True) for rows in (student, teacher))
    norms = torch.linalg.vector_norm(s, dim=1) * torch.linalg.vector_norm(t, dim=1)
    return torch.sub(1, ((s * t).sum(1) / (norms + EPS)).mean())


@full_precision
def dist_loss(
    student: Tensor, teacher: Tensor, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 4.0
) -> Tensor:
    """``T^2 (beta mean_images(1 - r over classes) + gamma mean_classes(1 - r over images))`` of softmax(z / T).

    The factor T^2 is inside. One image has no correlation over images: its second part is 0.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        beta: weight of the first part, >= 0.
        gamma: weight of the second part, >= 0.
        temperature: T > 0.
    """
    p, q = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    value = beta * one_minus_pearson(p, q)
    if len(p) > 1:
        value = value + gamma * one_minus_pearson(p.T, q.T)
    return value * temperature**2


class Dist(Term):
    """`dist_loss` of the two logits."""

    def __init__(self, config: DistConfig):
        super().__init__()
        self.config = config

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        config, goal = self.config, require_teacher(teacher).logits
        knobs = {"beta": config.beta, "gamma": config.gamma, "temperature": config.temperature}
        return dist_loss(student.logits, goal, **knobs)
