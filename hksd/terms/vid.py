"""Variational information distillation (Ahn et al. 2019, arXiv 1904.05835).

A lower bound on what the student's map tells of the teacher's is raised: a regressor predicts the teacher's map as a
Gaussian with a variance per channel, and learns together with the student.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hksd import bounds
from hksd.models.taps import Out, TapShapes
from hksd.terms.base import Stages, Term, TermConfig, pair_stages, require_teacher
from hksd.terms.maps import full_precision, last_stages, same_grid

EPS = 1e-5  # smallest variance, as in the published code


@dataclass(frozen=True, kw_only=True)
class VariationalConfig(TermConfig):
    """Usual weight 1 beside `ce` 1, initial variance 5 (CONFIRMED: RepDistiller)."""

    initial_variance: Annotated[
        float, Field(gt=EPS, le=bounds.FACTOR, description="variance of every channel at the start")
    ] = 5.0
    stages: Stages = "all"

    student_needs: ClassVar[frozenset[str]] = frozenset({"stages"})
    teacher_needs: ClassVar[frozenset[str]] = frozenset({"stages"})

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        assert teacher is not None
        count = pair_stages("vid", student, teacher, self.stages)
        channels = zip(student.stages[-count:], teacher.stages[-count:], strict=True)
        return Variational([Predictor(mine, goal, self.initial_variance) for mine, goal in channels])


@full_precision
def vid_loss(mean: Tensor, teacher: Tensor, raw_variance: Tensor) -> Tensor:
    """``mean ((F_T - mean)^2 / v + log v) / 2``: negative log-likelihood, without its constant; may be below 0.

    Args:
        mean: predicted maps (N, F, H, W).
        teacher: maps (N, F, H, W).
        raw_variance: (F,), any real numbers; ``v = softplus(raw) + 1e-5``.
    """
    variance = F.softplus(raw_variance) + EPS
    errors = (mean - teacher).square().mean((0, 2, 3))  # per channel first: no further maps are made
    return (errors / variance + variance.log()).mean() / 2


class Predictor(nn.Module):
    """Three 1x1 convolutions with ReLU between them, from `channels` to `goal`, and the raw variances (goal,)."""

    def __init__(self, channels: int, goal: int, variance: float):
        super().__init__()
        sizes = ((channels, goal), (goal, goal), (goal, goal))
        first, second, third = (nn.Conv2d(*size, 1, bias=False) for size in sizes)
        self.body = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        inverse = variance - EPS + math.log(-math.expm1(EPS - variance))  # of softplus, at variance - EPS
        self.raw_variance = nn.Parameter(torch.full((goal,), inverse))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """`vid_loss` of one stage, maps (N, F, H, W) and (N, F', H', W'); the larger grid is pooled first."""
        student, teacher = same_grid(student, teacher)
        return vid_loss(self.body(student), teacher, self.raw_variance)


class Variational(Term):
    """`vid_loss`, summed over the last stages, with a predictor for each."""

    def __init__(self, predictors: list[Predictor]):
        super().__init__()
        self.predictors = nn.ModuleList(predictors)

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        pairs = last_stages(student, require_teacher(teacher), len(self.predictors))
        return torch.stack([p(*pair) for p, pair in zip(self.predictors, pairs, strict=True)]).sum()
