"""Attention transfer: where a stage has its energy (Zagoruyko and Komodakis 2017, arXiv 1612.03928)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hksd.kernels import energy
from hksd.models.taps import Out, TapShapes
from hksd.terms.base import Stages, Term, TermConfig, Weight, pair_stages, require_teacher
from hksd.terms.maps import HALF, last_stages, same_grid, unit


@dataclass(frozen=True, kw_only=True)
class AttentionTransferConfig(TermConfig):
    """Usual weight 1000, p 2 (CONFIRMED: RepDistiller, mdistiller, the authors' attention-transfer)."""

    weight: Weight = 1000.0
    p: Annotated[float, Field(ge=1, le=8, description="power of the activations; large looks at their peaks")] = 2.0
    stages: Stages = "all"

    student_needs: ClassVar[frozenset[str]] = frozenset({"stages"})
    teacher_needs: ClassVar[frozenset[str]] = frozenset({"stages"})

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        return AttentionTransfer(self.p, pair_stages("attention_transfer", student, teacher, self.stages))


def attention_map(maps: Tensor, p: float = 2.0) -> Tensor:
    """``normalise(vec(mean_channels |F|^p))`` of maps (N, F, H, W): unit vectors (N, H * W)."""
    powers = energy(maps) if p == 2 else maps.abs().pow(p).mean(1)
    return unit(powers.flatten(1), 1)


def attention_transfer_loss(student: Tensor, teacher: Tensor, p: float = 2.0) -> Tensor:
    """Mean squared difference of the attention maps of one stage, over batch and positions.

    Numbers of channels may differ; the larger grid is pooled to the smaller.

    Args:
        student: maps (N, F, H, W).
        teacher: maps (N, F', H', W').
        p: power, >= 1.
    """
    if p != 2 or student.shape[2:] != teacher.shape[2:]:
        student, teacher = (maps.float() if maps.dtype in HALF else maps for maps in same_grid(student, teacher))
    return (attention_map(student, p) - attention_map(teacher, p)).square().mean()


class AttentionTransfer(Term):
    """`attention_transfer_loss`, summed over the last `count` stages."""

    def __init__(self, p: float, count: int):
        super().__init__()
        self.p, self.count = p, count

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        pairs = last_stages(student, require_teacher(teacher), self.count)
        return torch.stack([attention_transfer_loss(mine, goal, self.p) for mine, goal in pairs]).sum()
