"""The arms that every search is measured against.

Both use the largest student within the limits and the middle of every other range, so a search has to beat a student
that is at least as big as any it may draw.
"""

from __future__ import annotations

from typing import Any

from hksd.config import RunConfig, StudentConfig, dump
from search.space import Space

NO_DISTILLATION, STANDARD_KD = "no distillation", "standard KD"

# Weights and temperature of standard KD on CIFAR: CONFIRMED in RepDistiller and mdistiller.
ARMS: dict[str, dict[str, Any]] = {
    NO_DISTILLATION: {"ce": {"weight": 1.0}},
    STANDARD_KD: {"ce": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}},
}


def arms(space: Space, student: StudentConfig) -> dict[str, RunConfig]:
    """The runs of the arms by name, all with `student`."""
    return {name: space.middle({"student": dump(student), "terms": terms}) for name, terms in ARMS.items()}
