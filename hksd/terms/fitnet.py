"""FitNets: hints from a middle layer (Romero et al. 2015, arXiv 1412.6550).

The original trains up to the hint first, and distils afterwards; used beside other terms it is one stage of training,
as in RepDistiller. `delay_epochs` of the other terms and `off_fraction` of this one make the two stages again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from hksd import bounds
from hksd.errors import UserError, describe
from hksd.kernels import aligned
from hksd.models.taps import Out, TapShapes
from hksd.terms.base import Term, TermConfig, Weight, pair_stages, require_teacher
from hksd.terms.maps import adaptor, full_precision, same_grid


def _check_stage(value: object) -> object:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value != "middle" and not (whole and 1 <= value <= bounds.DEPTH):  # type: ignore[operator]
        raise ValueError(f"must be 'middle' or a whole number from 1 to {bounds.DEPTH} (got {describe(value)})")
    return value


@dataclass(frozen=True, kw_only=True)
class FitNetConfig(TermConfig):
    """Usual weight 100, on the middle layer, through a convolution with normalisation and ReLU.

    CONFIRMED: RepDistiller, mdistiller. The zoo has 0.1. Their regressors have kernels that also change the size of a
    map; ours is 1x1, and the larger map is pooled.
    """

    weight: Weight = 100.0
    stage: Annotated[
        int | Literal["middle"],
        BeforeValidator(_check_stage),
        Field(description="the stage that is compared, counted from the last (1) backwards"),
    ] = "middle"
    adaptor: Annotated[
        Literal["conv_bn_relu", "needed"],
        Field(description="what the student's map passes; needed: a plain 1x1 convolution where channels are unlike"),
    ] = "conv_bn_relu"

    student_needs: ClassVar[frozenset[str]] = frozenset({"stages"})
    teacher_needs: ClassVar[frozenset[str]] = frozenset({"stages"})

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        assert teacher is not None
        stage = hint_stage(student, teacher, self.stage)
        channels, goal = student.stages[-stage], teacher.stages[-stage]
        return FitNet(stage, adaptor(channels, goal) if self.adaptor == "needed" else Regressor(channels, goal))


def hint_stage(student: TapShapes, teacher: TapShapes, stage: int | Literal["middle"]) -> int:
    """The stage to compare, counted from the last (1) backwards; the middle one of 4 is the second.

    Raises:
        UserError: a network shows no stages, or has not that many; or the middle is asked for and their numbers differ.
    """
    have = (len(student.stages), len(teacher.stages))
    if 0 in have:
        pair_stages("fitnet", student, teacher)  # says so
    numbers = f"the student has {have[0]} and the teacher has {have[1]} stage(s)"
    if stage == "middle":
        if have[0] != have[1]:
            raise UserError(
                f"terms.fitnet.stage=middle needs equally many stages, but {numbers}; "
                f"name one counted from the last (1) backwards, at most {min(have)}"
            )
        return have[0] // 2 + 1
    if stage > min(have):
        raise UserError(f"terms.fitnet.stage={stage}, but {numbers}; use at most {min(have)}, or 'middle'")
    return stage


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of maps (N, F, H, W) that keeps no statistics, and says 0 of a single value per channel."""

    def __init__(self, channels: int):
        super().__init__(channels, track_running_stats=False)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (N, F, H, W); torch refuses N * H * W = 1, where the formula gives the shift alone."""
        if maps.shape[0] * maps.shape[2] * maps.shape[3] == 1:
            return 0 * maps + self.bias[:, None, None]
        return super().forward(maps)


class Regressor(nn.Sequential):
    """1x1 convolution from `channels` to `goal`, batch normalisation, ReLU."""

    def __init__(self, channels: int, goal: int):
        super().__init__(nn.Conv2d(channels, goal, 1, bias=False), BatchNorm(goal), nn.ReLU())


@full_precision
def fitnet_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean (F_S - F_T)^2`` of two maps of one shape (N, F, H, W)."""
    return F.mse_loss(student, teacher)


class FitNet(Term):
    """`fitnet_loss` of one stage; the student's passes `regressor`, the larger map is pooled first."""

    def __init__(self, stage: int, regressor: nn.Module):
        super().__init__()
        self.stage, self.regressor = stage, regressor

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        mine, goal = same_grid(aligned(student.stages[-self.stage]), require_teacher(teacher).stages[-self.stage])
        return fitnet_loss(self.regressor(mine), goal)
