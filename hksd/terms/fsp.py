"""Flow of solution procedure: Gram matrices between consecutive stages (Yim et al., CVPR 2017).

The method wants equal channels in both networks. Where they differ, a 1x1 convolution takes the student's stage to the
teacher's channels. It learns with the student, and that makes the task easier than the paper's: part of the distance
can be closed by these convolutions instead of the student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from hksd.errors import UserError
from hksd.models.taps import Grids, Out, TapShapes
from hksd.terms.base import Digest, Stages, Term, TermConfig, pair_stages, require_teacher
from hksd.terms.maps import adaptor, full_precision, same_grid

DIGEST = "flows"


@dataclass(frozen=True, kw_only=True)
class FspConfig(TermConfig):
    """Usual weight 1 in a single stage of training (CONFIRMED: Knowledge-Distillation-Zoo).

    RepDistiller trains 30 epochs on this term alone and then on cross-entropy alone (CONFIRMED); its extra pair, the
    stem with the first stage, is not compared here.
    """

    stages: Stages = "all"

    student_needs: ClassVar[frozenset[str]] = frozenset({"stages"})
    teacher_needs: ClassVar[frozenset[str]] = frozenset({"stages"})

    def digest(self, student: Grids, teacher: Grids) -> Digest | None:
        """The teacher's Gram matrices of all pairs of consecutive stages."""
        return Digest(DIGEST, lambda out: fsp_matrices(out.stages))

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        assert teacher is not None
        count = pair_stages("fsp", student, teacher, self.stages)
        if count < 2:
            raise UserError(
                "terms.fsp looks at what happens between two stages, but only 1 is compared; "
                "set terms.fsp.stages to 2 or more, or take networks that show more stages"
            )
        channels = zip(student.stages[-count:], teacher.stages[-count:], strict=True)
        return Fsp([adaptor(mine, goal) for mine, goal in channels])


def fsp_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Gram matrix ``F_1 F_2^T / (H W)`` of two stages, (N, F1, F2).

    Args:
        first: maps (N, F1, H, W).
        second: maps (N, F2, H', W'); the larger grid is pooled to the smaller.
    """
    first, second = same_grid(first, second)
    return first.flatten(2) @ second.flatten(2).transpose(1, 2) / (first.shape[2] * first.shape[3])


_exact = full_precision(fsp_matrix)


def fsp_matrices(stages: Sequence[Tensor]) -> list[Tensor]:
    """`fsp_matrix` of every pair of consecutive stages, each map (N, F, H, W); in single precision or better."""
    return [_exact(first, second) for first, second in pairwise(stages)]


def fsp_loss(first_student: Tensor, second_student: Tensor, first_teacher: Tensor, second_teacher: Tensor) -> Tensor:
    """``mean (G_S - G_T)^2`` of the `fsp_matrix` of two stages of each network, over batch and entries.

    Args:
        first_student: maps (N, F1, H, W).
        second_student: maps (N, F2, H', W').
        first_teacher: maps with F1 channels, of any size.
        second_teacher: maps with F2 channels, of any size.
    """
    return (_exact(first_student, second_student) - _exact(first_teacher, second_teacher)).square().mean()


class Fsp(Term):
    """`fsp_loss`, summed over the pairs of consecutive stages; `adaptors` act on the student's last stages."""

    def __init__(self, adaptors: list[nn.Module]):
        super().__init__()
        self.adaptors = nn.ModuleList(adaptors)

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        count, known = len(self.adaptors), require_teacher(teacher)
        mine = fsp_matrices([adapt(maps) for adapt, maps in zip(self.adaptors, student.stages[-count:], strict=True)])
        goals = known.digests[DIGEST][1 - count :] if DIGEST in known.digests else fsp_matrices(known.stages[-count:])
        return torch.stack([(one - goal).square().mean() for one, goal in zip(mine, goals, strict=True)]).sum()
