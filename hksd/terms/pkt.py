"""Probabilistic knowledge transfer: neighbourhoods as probabilities (Passalis and Tefas 2018, arXiv 1803.10837)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hksd.models.taps import Out, TapShapes
from hksd.terms.base import Term, TermConfig, Weight, require_teacher
from hksd.terms.maps import full_precision

EPS = 1e-7  # of the published code


@dataclass(frozen=True, kw_only=True)
class ProbabilisticConfig(TermConfig):
    """Usual weight 30000 beside `ce` 1 (CONFIRMED: RepDistiller); the loss is a mean over N^2 small numbers."""

    weight: Weight = 30_000.0

    student_needs: ClassVar[frozenset[str]] = frozenset({"embedding"})
    teacher_needs: ClassVar[frozenset[str]] = frozenset({"embedding"})

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        return Probabilistic()


def neighbours(embedding: Tensor) -> Tensor:
    """``(1 + cosine) / 2`` of each two rows of (N, G), divided by the sum of its row: (N, N)."""
    directions = embedding / (torch.linalg.vector_norm(embedding, dim=1, keepdim=True) + EPS)
    kernel = (directions @ directions.T + 1) / 2
    return torch.div(kernel, kernel.sum(1, keepdim=True))


@full_precision
def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean p_T log(p_T / p_S)`` of the `neighbours`, over all pairs. The embeddings may differ in size.

    Args:
        student: embeddings (N, G).
        teacher: embeddings (N, G').
    """
    p, q = neighbours(student), neighbours(teacher)
    return (q * ((q + EPS) / (p + EPS)).log()).mean()


class Probabilistic(Term):
    """`pkt_loss` of the two embeddings."""

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        return pkt_loss(student.embedding, require_teacher(teacher).embedding)
