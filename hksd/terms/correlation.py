"""Correlation congruence (Peng et al. 2019, arXiv 1904.01802), in the form of RepDistiller.

The paper compares kernels between the images of a batch. The usual code, which gave the figures in the tables, takes
products of the distances of neighbouring images instead; this is that form (CONFIRMED: RepDistiller). As both
projections learn, the distance can also shrink because they do; weight decay helps that along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from hksd import bounds
from hksd.models.taps import Out, TapShapes
from hksd.terms.base import Term, TermConfig, Weight, require_teacher
from hksd.terms.maps import full_precision


@dataclass(frozen=True, kw_only=True)
class CorrelationConfig(TermConfig):
    """Usual weight 0.02 beside `ce` 1, on projections to 128 numbers (CONFIRMED: RepDistiller)."""

    weight: Weight = 0.02
    dims: Annotated[
        int | None,
        Field(
            ge=1,
            le=bounds.FEATURES,
            description="size of the learned projections of both embeddings; null compares the embeddings",
        ),
    ] = 128

    student_needs: ClassVar[frozenset[str]] = frozenset({"embedding"})
    teacher_needs: ClassVar[frozenset[str]] = frozenset({"embedding"})

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        assert teacher is not None
        if self.dims is None:
            equal = student.embedding == teacher.embedding
            return Correlation(nn.Identity() if equal else nn.Linear(student.embedding, teacher.embedding))
        return Correlation(nn.Linear(student.embedding, self.dims), nn.Linear(teacher.embedding, self.dims))


@full_precision
def correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean_i sum_g d_i,g d_i+1,g`` with ``d = |e_S - e_T|``, over neighbours in the batch; 0 for a batch of one.

    Args:
        student: embeddings (N, G).
        teacher: embeddings (N, G).
    """
    distance = (student - teacher).abs()
    return (distance[:-1] * distance[1:]).sum() / max(1, len(distance) - 1)


class Correlation(Term):
    """`correlation_loss` of the two embeddings, each after its projection."""

    def __init__(self, student: nn.Module, teacher: nn.Module | None = None):
        super().__init__()
        self.student, self.teacher = student, teacher or nn.Identity()

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        mine, goal = self.student(student.embedding), self.teacher(require_teacher(teacher).embedding)
        return correlation_loss(mine, goal)
