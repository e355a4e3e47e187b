"""The contract of a loss term.

A term is a pure function of (student taps, teacher taps, target) plus, where the method trains something of its own,
state: adaptors that learn together with the student (`joint_parameters`) or an opponent that learns in its own step
(`own_step`). The state is checkpointed with the run and is never part of the exported student.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from hksd import bounds
from hksd.errors import UserError, describe
from hksd.models.taps import Grids, Out, TappedNet, TapShapes
from hksd.schema import Section

Weight = Annotated[
    float,
    Field(
        ge=0,
        le=bounds.WEIGHT,
        allow_inf_nan=False,
        description="weight of the term in the total loss; 0 removes the term",
    ),
]
WarmupEpochs = Annotated[float, Field(ge=0, le=bounds.EPOCHS, description="epochs over which the weight rises from 0")]
OffFraction = Annotated[float, Field(ge=0, lt=1, description="share of the epochs at the end with weight 0")]


def _check_count(value: object) -> object:
    if value != "all" and not (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= bounds.DEPTH):
        raise ValueError(f"must be 'all' or a whole number from 1 to {bounds.DEPTH} (got {describe(value)})")
    return value


# For knobs that count stages, blocks, layers: annotate with `Field(description=...)` on top.
CountOrAll = Annotated[int | Literal["all"], BeforeValidator(_check_count)]
Stages = Annotated[CountOrAll, Field(description="all stages, or the last n of both networks, paired one to one")]


class NeedsByKnob:
    """Value for `student_needs` or `teacher_needs` where they depend on knobs.

    Read on a configuration, it is what that configuration needs; read on the class, what the defaults need.

    Args:
        default: needs of the default configuration.
        needs: configuration -> what it needs.
    """

    def __init__(self, default: frozenset[str], needs: Callable[[Any], frozenset[str]]):
        self.default, self.needs = default, needs

    def __get__(self, config: object | None, owner: type) -> frozenset[str]:
        return self.default if config is None else self.needs(config)


@dataclass(frozen=True)
class Digest:
    """What a term takes from the teacher's maps, image by image, and small enough to be stored in their place.

    Attributes:
        name: tells it from others; has every knob that it depends on.
        make: taps of the teacher -> tensors, each (N, ...).
    """

    name: str
    make: Callable[[Out], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class TermConfig(Section, ABC):
    """Knobs of a term. Subclasses add theirs; every term has a weight and a schedule for it."""

    weight: Weight = 1.0
    delay_epochs: Annotated[float, Field(ge=0, le=bounds.EPOCHS, description="epochs at the start with weight 0")] = 0.0
    warmup_epochs: WarmupEpochs = 0.0
    decay: Annotated[
        Literal["none", "linear", "cosine"], Field(description="how the weight falls to 0 until its end")
    ] = "none"
    off_fraction: OffFraction = 0.0

    student_needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    teacher_needs: ClassVar[frozenset[str]] = frozenset({"logits"})

    def data_needs(self) -> frozenset[str]:
        """What the term must know of the data beyond images: ``labels``, ``index`` (images that come again)."""
        return frozenset()

    def digest(self, student: Grids, teacher: Grids) -> Digest | None:
        """What to store of the teacher's maps for a run of two networks with these grids; None: the maps themselves.

        `forward` finds it in `Out.digests` where the teacher's knowledge comes from a store, and must give the same
        value as from the maps.
        """
        return None

    def tells_classes(self) -> bool:
        """Whether the term alone makes a classifier of the student."""
        return False

    @abstractmethod
    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """Make the term for these networks (its state draws from torch's global generator).

        Raises:
            UserError: the term cannot work with these networks.
        """

    def companions(self) -> frozenset[str]:
        """Names of terms that must have a weight above 0 in the same run, because this one works on their parts."""
        return frozenset()

    def build_beside(self, student: TapShapes, teacher: TapShapes | None, earlier: Mapping[str, Term]) -> Term:
        """Like `build`, in a run with other terms: `earlier` are those that stand before this one in the registry.

        What is shared with an earlier term stays that term's own: it is neither a parameter nor a module here.
        """
        return self.build(student, teacher)

    def runs(self, epoch: float, epochs: int) -> bool:
        """Whether `epoch` (fractional, from 0) of `epochs` lies between `delay_epochs` and the last `off_fraction`."""
        return self.delay_epochs <= epoch < epochs * (1 - self.off_fraction)

    def factor(self, epoch: float, epochs: int) -> float:
        """Factor 0 to 1 on the weight after `epoch` (fractional, from 0) of `epochs` epochs."""
        if not self.runs(epoch, epochs):
            return 0.0
        since = epoch - self.delay_epochs
        share = since / (epochs * (1 - self.off_fraction) - self.delay_epochs)
        rise = min(1.0, since / self.warmup_epochs) if self.warmup_epochs else 1.0
        fall = {"none": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}[self.decay]
        return rise * fall


@dataclass(frozen=True)
class Setting:
    """What a run tells its terms once, before the first step and before a checkpoint is loaded.

    Attributes:
        labels: (n,), int64, labels of the training split; `Out.index` points into it.
        teacher: the frozen teacher network, where there is one. A term that trains it trains a copy.
    """

    labels: Tensor
    teacher: TappedNet | None


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

    def meet(self, setting: Setting) -> None:
        """Make what depends on the run's data or teacher network (a memory bank, a copy of the teacher)."""

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


def pair_stages(term: str, student: TapShapes, teacher: TapShapes | None, stages: int | Literal["all"] = "all") -> int:
    """How many stages of both networks are compared, counted from the last one backwards.

    Raises:
        UserError: a network shows none, the numbers are unlike and `stages` is all, or `stages` is too large.
    """
    assert teacher is not None
    have = {"student": len(student.stages), "teacher": len(teacher.stages)}
    for side, count in have.items():
        if not count:
            raise UserError(f"terms.{term} compares stages, but the {side} shows none; name them in {side}.taps")
    numbers = " and ".join(f"the {side} has {count}" for side, count in have.items())
    fewest = min(have.values())
    if stages == "all" and len(set(have.values())) > 1:
        raise UserError(
            f"terms.{term} pairs the stages of both networks, but {numbers}; "
            f"set terms.{term}.stages: {fewest} to compare the last {fewest}"
        )
    if stages != "all" and stages > fewest:
        raise UserError(f"terms.{term}.stages={stages}, but {numbers} stage(s); use at most {fewest}")
    return fewest if stages == "all" else stages
