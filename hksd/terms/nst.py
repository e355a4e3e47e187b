"""Neuron selectivity transfer: what the channels of a stage react to (Huang and Wang 2017, arXiv 1707.01219).

A channel is a sample, its map over the positions a unit vector; the squared maximum mean discrepancy of both networks'
samples under the kernel ``k(a, b) = (a . b)^2`` is compared. The order and the number of channels do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hksd.models.taps import Out, TapShapes
from hksd.terms.base import Stages, Term, TermConfig, Weight, pair_stages, require_teacher
from hksd.terms.maps import full_precision, last_stages, same_grid, unit


@dataclass(frozen=True, kw_only=True)
class SelectivityConfig(TermConfig):
    """Usual weight 50 (CONFIRMED: RepDistiller, mdistiller); 10 in Knowledge-Distillation-Zoo (CONFIRMED)."""

    weight: Weight = 50.0
    stages: Stages = "all"

    student_needs: ClassVar[frozenset[str]] = frozenset({"stages"})
    teacher_needs: ClassVar[frozenset[str]] = frozenset({"stages"})

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        return Selectivity(pair_stages("nst", student, teacher, self.stages))


@full_precision
def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``E k(t, t') + E k(s, s') - 2 E k(s, t)`` over pairs of channels, batch mean.

    Channels without activation count as 0. The larger grid is pooled to the smaller, numbers of channels may differ.
    Mean kernels are products of Gram matrices, over channels or over positions, whichever are smaller.

    Args:
        student: maps (N, F, H, W).
        teacher: maps (N, F', H', W').
    """
    s, t = (unit(maps.flatten(2), 2) for maps in same_grid(student, teacher))  # (N, F, H * W)
    if s.shape[2] < s.shape[1] + t.shape[1]:
        # E k(a, b) = <A, B> with A the mean of a a^T, so that the discrepancy is ||A_S - A_T||^2.
        mean_s, mean_t = (a.transpose(1, 2) @ a / a.shape[1] for a in (s, t))  # (N, H * W, H * W)
        return (mean_s - mean_t).square().sum((1, 2)).mean()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.transpose(1, 2)).square().mean()

    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


class Selectivity(Term):
    """`nst_loss`, summed over the last `count` stages."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        pairs = last_stages(student, require_teacher(teacher), self.count)
        return torch.stack([nst_loss(mine, goal) for mine, goal in pairs]).sum()
