"""Similarity-preserving distillation: which images resemble each other (Tung and Mori 2019, arXiv 1907.09682)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hksd.models.taps import Out, TapShapes
from hksd.terms.base import Term, TermConfig, Weight, pair_stages, require_teacher
from hksd.terms.maps import full_precision, rows, unit


@dataclass(frozen=True, kw_only=True)
class SimilarityConfig(TermConfig):
    """Usual weight 3000 beside `ce` 1 (CONFIRMED: RepDistiller). It reads the last stage."""

    weight: Weight = 3000.0

    student_needs: ClassVar[frozenset[str]] = frozenset({"stages"})
    teacher_needs: ClassVar[frozenset[str]] = frozenset({"stages"})

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        pair_stages("similarity", student, teacher, 1)
        return Similarity()


def similarities(maps: Tensor) -> Tensor:
    """Inner products of the images' maps (N, F, H, W), rows at length 1: (N, N)."""
    flat = rows(maps)
    return unit(flat @ flat.T, 1)


@full_precision
def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``||G_S - G_T||^2 / N^2`` of the `similarities`. Channels and sizes of the networks may differ.

    Args:
        student: maps (N, F, H, W).
        teacher: maps (N, F', H', W').
    """
    return (similarities(student) - similarities(teacher)).square().mean()


class Similarity(Term):
    """`similarity_loss` of the last stage."""

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        return similarity_loss(student.stages[-1], require_teacher(teacher).stages[-1])
