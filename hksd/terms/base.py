"""The contract of a loss term.

A term is a pure function of (student taps, teacher taps, target) plus, where the method trains something of its own,
state: adaptors that learn together with the student (`joint_parameters`) or an opponent that learns in its own step
(`own_step`). The state is checkpointed with the run and is never part of the exported student.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from hksd.models.taps import Out, TapShapes
from hksd.schema import Section

Weight = Annotated[
    float, Field(ge=0, allow_inf_nan=False, description="weight of the term in the total loss; 0 removes the term")
]


@dataclass(frozen=True, kw_only=True)
class TermConfig(Section, ABC):
    """Knobs of a term. Subclasses add theirs; every term has a weight."""

    weight: Weight = 1.0

    student_needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    teacher_needs: ClassVar[frozenset[str]] = frozenset({"logits"})

    @abstractmethod
    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """Make the term for these networks (its state draws from torch's global generator).

        Raises:
            UserError: the term cannot work with these networks.
        """

    def factor(self, epoch: float, epochs: int) -> float:
        """Factor on the weight after `epoch` (fractional, from 0) of `epochs` epochs; 1 unless the term has a ramp."""
        return 1.0


class Term(nn.Module, ABC):
    """A loss term with its state; subclasses define `forward`."""

    @abstractmethod
    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """Return the unweighted value of the term, a scalar.

        Args:
            student: taps of the student, with gradients.
            teacher: taps of the frozen teacher, without gradients; None only for terms that need no teacher.
            target: labels (N,), int64.
        """

    def joint_parameters(self) -> list[nn.Parameter]:
        """Parameters that are optimised together with the student."""
        return list(self.parameters())

    def own_step(self, student: Out, teacher: Out | None, target: Tensor) -> dict[str, Tensor]:
        """Train what is not trained with the student, before the student's step; return scalars worth logging."""
        return {}


def require_teacher(teacher: Out | None) -> Out:
    """Return `teacher`; a term that needs one was built without it only by a mistake of ours."""
    assert teacher is not None, "this term needs a teacher"
    return teacher
