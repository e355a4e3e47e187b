"""Squared distance of logits: L_b of KSANC (CONFIRMED-SHOT), after Ba and Caruana 2014.

The paper sums over classes; we take the mean, so that the weight means the same at 10 and at 100 classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hksd.models.taps import Out, TapShapes
from hksd.terms.base import Term, TermConfig, require_teacher


@dataclass(frozen=True, kw_only=True)
class LogitsConfig(TermConfig):
    """Usual weight 1 as a mean over classes (RECONSTRUCTED; the paper's lambda_1 is unknown)."""

    def tells_classes(self) -> bool:
        """Yes."""
        return True

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        return Logits()


def logits_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``mean (z_S - z_T)^2`` over batch and classes of logits (N, C)."""
    return (student - teacher).square().mean()


class Logits(Term):
    """`logits_loss` of the two logits."""

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        return logits_loss(student.logits, require_teacher(teacher).logits)
