"""Cross-entropy of the student with the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from hksd.models.taps import Out, TapShapes
from hksd.terms.base import Term, TermConfig


@dataclass(frozen=True, kw_only=True)
class CrossEntropyConfig(TermConfig):
    """Usual weight 1 (0.1 beside `kd`; 0 in the paper's own total loss)."""

    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description="share of the target spread over all classes; tends to hurt distillation")
    ] = 0.0

    teacher_needs: ClassVar[frozenset[str]] = frozenset()

    def data_needs(self) -> frozenset[str]:
        """The labels."""
        return frozenset({"labels"})

    def tells_classes(self) -> bool:
        """Yes."""
        return True

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        return CrossEntropy(self)


class CrossEntropy(Term):
    """``CE(z_S, y)``, batch mean."""

    def __init__(self, config: CrossEntropyConfig):
        super().__init__()
        self.config = config

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        return F.cross_entropy(student.logits, target, label_smoothing=self.config.label_smoothing)
