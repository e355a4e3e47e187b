"""Attention transfer: where a stage has its energy (Zagoruyko and Komodakis 2017, arXiv 1612.03928)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hksd.kernels import energy
from hksd.models.taps import Grids, Out, TapShapes
from hksd.terms.base import Digest, Stages, Term, TermConfig, Weight, pair_stages, require_teacher
from hksd.terms.maps import HALF, unit


@dataclass(frozen=True, kw_only=True)
class AttentionTransferConfig(TermConfig):
    """Usual weight 1000, p 2 (CONFIRMED: RepDistiller, mdistiller, the authors' attention-transfer)."""

    weight: Weight = 1000.0
    p: Annotated[float, Field(ge=1, le=8, description="power of the activations; large looks at their peaks")] = 2.0
    stages: Stages = "all"

    student_needs: ClassVar[frozenset[str]] = frozenset({"stages"})
    teacher_needs: ClassVar[frozenset[str]] = frozenset({"stages"})

    def digest(self, student: Grids, teacher: Grids) -> Digest | None:
        """The teacher's attention maps of all stages, where none would have to be pooled to a grid of the student."""
        pairs = zip(reversed(student), reversed(teacher), strict=False)
        if any(mine[0] < goal[0] or mine[1] < goal[1] for mine, goal in pairs):
            return None
        return Digest(self.digest_name, lambda out: [stage_map(maps, self.p) for maps in out.stages])

    @property
    def digest_name(self) -> str:
        """Name of the digest."""
        return f"attention p={self.p:g}"

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        return AttentionTransfer(self, pair_stages("attention_transfer", student, teacher, self.stages))


def attention_map(maps: Tensor, p: float = 2.0) -> Tensor:
    """``normalise(vec(mean_channels |F|^p))`` of maps (N, F, H, W): unit vectors (N, H * W)."""
    powers = energy(maps) if p == 2 else _wide(maps).abs().pow(p).mean(1)
    return unit(powers.flatten(1), 1)


def stage_map(maps: Tensor, p: float = 2.0) -> Tensor:
    """`attention_map` of maps (N, F, H, W) on their grid: (N, H, W)."""
    return attention_map(maps, p).reshape(len(maps), *maps.shape[2:])


def attention_transfer_loss(student: Tensor, teacher: Tensor, p: float = 2.0) -> Tensor:
    """Mean squared difference of the attention maps of one stage, over batch and positions.

    Numbers of channels may differ; the larger grid is pooled to the smaller.

    Args:
        student: maps (N, F, H, W).
        teacher: maps (N, F', H', W'), or their `stage_map` (N, H', W').
        p: power, >= 1.
    """
    if teacher.dim() == 3:
        return (attention_map(_pooled(student, teacher.shape[1:]), p) - teacher.flatten(1)).square().mean()
    student, teacher = _pooled(student, teacher.shape[2:]), _pooled(teacher, student.shape[2:])
    return (attention_map(student, p) - attention_map(teacher, p)).square().mean()


def _wide(maps: Tensor) -> Tensor:
    return maps.float() if maps.dtype in HALF else maps


def _pooled(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """Maps averaged down to `grid` where that is smaller."""
    height, width = (min(own, other) for own, other in zip(maps.shape[2:], grid, strict=True))
    return maps if maps.shape[2:] == (height, width) else F.adaptive_avg_pool2d(_wide(maps), (height, width))


class AttentionTransfer(Term):
    """`attention_transfer_loss`, summed over the last `count` stages."""

    def __init__(self, config: AttentionTransferConfig, count: int):
        super().__init__()
        self.config, self.count = config, count

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        known = require_teacher(teacher)
        goals = known.digests.get(self.config.digest_name, known.stages)
        pairs = zip(student.stages[-self.count :], goals[-self.count :], strict=True)
        return torch.stack([attention_transfer_loss(mine, goal, self.config.p) for mine, goal in pairs]).sum()
