"""The `search` section of a space: objectives, limits, sampler, scheduler, resources."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from hksd.schema import Section

Cost = Literal["params", "mflops"]
COSTS: tuple[Cost, ...] = ("params", "mflops")
SamplerName = Literal["auto", "tpe", "gp", "nsga2", "nsga3", "random", "grid"]


@dataclass(frozen=True, kw_only=True)
class Limits(Section):
    """Hard limits on the deployed student; a draw outside is rejected before training."""

    params: Annotated[int | None, Field(ge=1, description="largest number of parameters")] = None
    mflops: Annotated[float | None, Field(gt=0, description="largest MFLOPs of one image, 2 x MACs")] = None

    def bounds(self) -> dict[str, float]:
        """The limits that are set, by the name of the cost."""
        return {name: bound for name in COSTS if (bound := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class Asha(Section):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934) on validation accuracy at equal epochs."""

    grace_epochs: Annotated[
        int | None, Field(ge=1, description="no trial is stopped earlier; default a third of the epochs")
    ] = None
    reduction_factor: Annotated[float, Field(gt=1, description="one in that many trials goes on at each rung")] = 3.0


def _scheduler(value: Any) -> Any:
    """Allow the short forms ``none`` and ``asha``."""
    return {"none": {"asha": None}, "asha": {}}.get(value, value) if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class Scheduler(Section):
    """Early stopping; `scheduler: none` turns it off."""

    asha: Annotated[Asha | None, Field(description="successive halving; null or `scheduler: none` for none")] = field(
        default_factory=Asha
    )


def _check_gpu(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != "auto" and not (number and 0 <= value < math.inf):  # type: ignore[operator]
        raise ValueError(f"must be 'auto' or a number of at least 0 (got {value!r})")
    return value


@dataclass(frozen=True, kw_only=True)
class Resources(Section):
    """What one trial occupies."""

    cpu: Annotated[int, Field(ge=1, description="CPU cores of a trial")] = 1
    gpu: Annotated[
        Literal["auto"] | float,
        BeforeValidator(_check_gpu),
        Field(
            description="GPUs of a trial, fractions allowed; auto: a dry run on a GPU decides, 0 where there is none"
        ),
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Section):
    """How to search."""

    trials: Annotated[int, Field(ge=1, description="trials to train, the arms included")]
    maximize: Annotated[Literal["val_accuracy"], Field(description="the objective")] = "val_accuracy"
    minimize: Annotated[tuple[Cost, ...], Field(description="further objectives: a front in place of one winner")] = ()
    max_drop: Annotated[
        float | None,
        Field(ge=0, description="points that a student may lose against the teacher; the smallest such wins"),
    ] = None
    limits: Annotated[Limits, Field(description="hard limits, checked before training")] = field(default_factory=Limits)
    sampler: Annotated[SamplerName, Field(description="how draws are made; auto: by a rule, which it tells")] = "tpe"
    grid_points: Annotated[
        int | None, Field(ge=1, description="points of each continuous range, for the sampler grid")
    ] = None
    enqueue_defaults: Annotated[
        bool, Field(description="draw the documented defaults first; not with the samplers random and grid")
    ] = True
    scheduler: Annotated[Scheduler, BeforeValidator(_scheduler), Field(description="early stopping")] = field(
        default_factory=Scheduler
    )
    arms: Annotated[
        Literal["fixed", "tuned", "none"],
        Field(description="runs to be measured against: as published, each with its own share of the draws, or none"),
    ] = "fixed"
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="seed of the sampler")] = 0
    concurrent: Annotated[int | None, Field(ge=1, description="trials at once; default what the resources allow")] = (
        None
    )
    resources: Annotated[Resources, Field(description="what one trial occupies")] = field(default_factory=Resources)

    max_device_hours: Annotated[
        float | None, Field(gt=0, description="hours of training, over all devices, after which no trial is started")
    ] = None
    max_cost: Annotated[float | None, Field(gt=0, description="money after which no trial is started; needs price")] = (
        None
    )
    price: Annotated[float | None, Field(gt=0, description="money that a device costs in an hour")] = None
    epoch_timeout: Annotated[
        float | None, Field(gt=0, description="seconds after which an epoch counts as hung; default from those so far")
    ] = None

    def __post_init__(self) -> None:
        if self.max_drop is not None and not self.minimize:
            object.__setattr__(self, "minimize", ("params",))  # the smallest student is asked for
        if self.max_cost is not None and self.price is None:
            raise ValueError("max_cost needs price, what a device costs in an hour")
        if self.sampler == "nsga3" and not self.minimize:
            raise ValueError(
                "sampler nsga3 spreads trials over a front and needs minimize; with one objective take tpe"
            )

    def grace_epochs(self, epochs: int) -> int:
        """Epochs before which no trial is stopped, for runs of `epochs` epochs."""
        asha = self.scheduler.asha
        if asha is None:
            return epochs
        return min(asha.grace_epochs or max(1, -(-epochs // 3)), epochs)
