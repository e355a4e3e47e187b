"""The `search` section of a space: objectives, limits, sampler, scheduler, resources."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from hksd import bounds
from hksd.bounds import COST
from hksd.errors import describe, unknown
from hksd.schema import Section, section_fields

Cost = Literal["params", "mflops", "peak_memory_mb", "latency_ms"]
COSTS: tuple[Cost, ...] = ("params", "mflops", "peak_memory_mb", "latency_ms")
REPORTED = (*COSTS, "latency_p95_ms")  # what is said of a student; nothing can be asked of the last
LOCAL = "local"  # target of latency: the machine of the search itself
SamplerName = Literal["auto", "tpe", "gp", "nsga2", "nsga3", "random", "grid"]


@dataclass(frozen=True, kw_only=True)
class Limits(Section):
    """Hard limits on the deployed student; a draw outside is rejected before training."""

    params: Annotated[int | None, Field(ge=1, le=COST, description="largest number of parameters")] = None
    mflops: Annotated[float | None, Field(gt=0, le=COST, description="largest MFLOPs of one image, 2 x MACs")] = None
    peak_memory_mb: Annotated[
        float | None,
        Field(gt=0, le=COST, description="largest memory for one image's inference, in 10^6 bytes, float32"),
    ] = None
    latency_ms: Annotated[
        float | None,
        Field(gt=0, le=COST, description="largest median latency of one image on search.latency.target"),
    ] = None

    def bounds(self) -> dict[str, float]:
        """The limits that are set, by the name of the cost."""
        return {name: bound for name in COSTS if (bound := getattr(self, name)) is not None}


GraceEpochs = Annotated[
    int | None,
    Field(
        ge=1,
        le=bounds.EPOCHS,
        description="no trial is stopped earlier; default a third of the epochs, or the end of the adversarial warm-up",
    ),
]
ReductionFactor = Annotated[
    float, Field(gt=1, le=bounds.FACTOR, description="one in that many trials goes on at each rung")
]


@dataclass(frozen=True, kw_only=True)
class Asha(Section):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934) on validation accuracy at equal epochs."""

    grace_epochs: GraceEpochs = None
    reduction_factor: ReductionFactor = 3.0


@dataclass(frozen=True, kw_only=True)
class HyperBand(Section):
    """HyperBand (Li et al. 2018, arXiv 1603.06560): several brackets of ASHA, each with a later first rung."""

    grace_epochs: GraceEpochs = None
    reduction_factor: ReductionFactor = 3.0
    brackets: Annotated[
        int | None,
        Field(
            ge=1, le=bounds.DEPTH, description="how many; default one more than there are rungs: the last never stops"
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Median(Section):
    """Median stopping rule (Golovin et al. 2017, Google Vizier)."""

    grace_epochs: GraceEpochs = None
    min_trials: Annotated[
        int,
        Field(
            ge=1, le=bounds.TRIALS, description="no trial is stopped before it can be compared with that many others"
        ),
    ] = 5


@dataclass(frozen=True, kw_only=True)
class Pbt(Section):
    """Population based training of schedule knobs (Jaderberg et al. 2017, arXiv 1711.09846); `strategy.population`."""

    grace_epochs: GraceEpochs = None
    interval_epochs: Annotated[
        int | None,
        Field(
            ge=1,
            le=bounds.EPOCHS,
            description="epochs between two comparisons; default a sixth of the epochs, rounded up",
        ),
    ] = None
    population: Annotated[
        int, Field(ge=2, le=bounds.CONCURRENT, description="the latest trials that are compared with each other")
    ] = 8
    quantile: Annotated[
        float,
        Field(
            ge=1 / bounds.CONCURRENT,
            le=0.5,
            description="share of them that is replaced, and share that they are replaced from",
        ),
    ] = 0.25
    factor: Annotated[
        float,
        Field(gt=1, le=bounds.FACTOR, description="a fork multiplies or divides its parent's schedule knobs by it"),
    ] = 1.25

    def __post_init__(self) -> None:
        if self.population * self.quantile < 1:
            raise ValueError(
                f"population {self.population} times quantile {self.quantile:g} is below 1, so nobody would ever be "
                f"replaced; take a population of at least {math.ceil(1 / self.quantile)} or a larger quantile"
            )

    def boundaries(self, epochs: int, grace: int) -> range:
        """The epochs after which trials of `epochs` epochs are compared: multiples of the interval from `grace` on."""
        interval = self.interval_epochs or math.ceil(epochs / 6)
        return range(-(-grace // interval) * interval, epochs, interval)


@dataclass(frozen=True, kw_only=True)
class Scheduler(Section):
    """Early stopping: one section, the others absent or null; `scheduler: none` turns it off."""

    asha: Annotated[Asha | None, Field(description="asynchronous successive halving")] = None
    hyperband: Annotated[HyperBand | None, Field(description="brackets of asynchronous successive halving")] = None
    median: Annotated[Median | None, Field(description="stop what is worse than the median")] = None
    pbt: Annotated[Pbt | None, Field(description="replace what is worst by changed forks of what is best")] = None

    def __post_init__(self) -> None:
        if len(named := list(self._named())) > 1:
            raise ValueError(f"one scheduler at a time, got {' and '.join(named)}; set the others to null")

    def _named(self) -> dict[str, Asha | HyperBand | Median | Pbt]:
        return {name: value for name in section_fields(Scheduler) if (value := getattr(self, name)) is not None}

    @property
    def name(self) -> str:
        """Key of the scheduler in use, or ``none``."""
        return next(iter(self._named()), "none")

    @property
    def chosen(self) -> Asha | HyperBand | Median | Pbt | None:
        """Settings of the scheduler in use, or None."""
        return next(iter(self._named().values()), None)


def _scheduler(value: Any) -> Any:
    """Allow a name in place of a section; an empty section is the default, a null one is left out.

    Raises:
        ValueError: there is no scheduler of that name, or a null names none to leave out.
    """
    names = list(section_fields(Scheduler))
    if isinstance(value, str):
        if value not in ("none", *names):
            raise ValueError(unknown("scheduler", value, ("none", *names)))
        return {"asha": None} if value == "none" else {value: {}}
    if isinstance(value, Mapping) and value.keys() <= set(names) and not any(v is not None for v in value.values()):
        if not value:
            return {"asha": {}}
        if "asha" not in value:  # the usual one is not in use, so what is?
            name = next(iter(value))
            raise ValueError(f"{name} has no settings; `scheduler: {name}` takes the defaults")
    return value


def _check_gpu(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != "auto" and not (number and (value == 0 or bounds.GPUS_LEAST <= value <= bounds.GPUS)):  # type: ignore[operator]
        least, most = f"{bounds.GPUS_LEAST:.4f}", f"{bounds.GPUS:g}"
        raise ValueError(f"must be 'auto', 0 or a number from {least} to {most} (got {describe(value)})")
    return value


def _once(costs: tuple[Cost, ...]) -> tuple[Cost, ...]:
    for cost in costs:
        if costs.count(cost) > 1:
            raise ValueError(f"{cost} stands twice; every objective once")
    return costs


@dataclass(frozen=True, kw_only=True)
class Resources(Section):
    """What one trial occupies."""

    cpu: Annotated[int, Field(ge=1, le=bounds.CORES, description="CPU cores of a trial")] = 1
    gpu: Annotated[
        Literal["auto"] | float,
        BeforeValidator(_check_gpu),
        Field(
            description="GPUs of a trial, fractions allowed; auto: a dry run on a GPU decides, 0 where there is none"
        ),
    ] = "auto"
    memory_gb: Annotated[
        float | None,
        Field(
            ge=bounds.MEMORY_GB_LEAST,
            le=bounds.MEMORY_GB,
            description="memory that a trial may hold, in 10^9 bytes; default its part of 90 % of the machine's",
        ),
    ] = None
    nice: Annotated[
        int, Field(ge=0, le=19, description="niceness of trials on this machine; a cluster has its own")
    ] = 0


@dataclass(frozen=True, kw_only=True)
class LatencySettings(Section):
    """Where and how latency is measured, when it is an objective or a limit."""

    target: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9_.-]+$",
            max_length=bounds.NAME_LENGTH,
            description="local (the machine of the search), or a custom resource of Ray that the device has",
        ),
    ] = LOCAL
    threads: Annotated[int, Field(ge=1, le=bounds.CORES, description="threads inside an operator")] = 1
    runs: Annotated[
        int, Field(ge=10, le=bounds.LATENCY_RUNS, description="timed runs that count, of five times as many")
    ] = 100


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Section):
    """How to search."""

    trials: Annotated[int, Field(ge=1, le=bounds.TRIALS, description="trials to train, the arms included")]
    maximize: Annotated[Literal["val_accuracy"], Field(description="the objective")] = "val_accuracy"
    minimize: Annotated[
        tuple[Cost, ...], AfterValidator(_once), Field(description="further objectives: a front in place of one winner")
    ] = ()
    max_drop: Annotated[
        float | None,
        Field(ge=0, le=100, description="points that a student may lose against the teacher; the smallest such wins"),
    ] = None
    limits: Annotated[Limits, Field(description="hard limits, checked before training")] = field(default_factory=Limits)
    sampler: Annotated[SamplerName, Field(description="how draws are made; auto: by a rule, which it tells")] = "tpe"
    grid_points: Annotated[
        int | None,
        Field(ge=1, le=bounds.GRID_POINTS, description="points of each continuous range, for the sampler grid"),
    ] = None
    enqueue_defaults: Annotated[
        bool, Field(description="draw the documented defaults first; not with the samplers random and grid")
    ] = True
    scheduler: Annotated[Scheduler, BeforeValidator(_scheduler), Field(description="early stopping")] = field(
        default_factory=lambda: Scheduler(asha=Asha())
    )
    arms: Annotated[
        Literal["fixed", "tuned", "none"],
        Field(description="runs to be measured against: as published, each with its own share of the draws, or none"),
    ] = "fixed"
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="seed of the sampler")] = 0
    concurrent: Annotated[
        int | None, Field(ge=1, le=bounds.CONCURRENT, description="trials at once; default what the resources allow")
    ] = None
    resources: Annotated[Resources, Field(description="what one trial occupies")] = field(default_factory=Resources)
    latency: Annotated[LatencySettings, Field(description="where and how latency is measured")] = field(
        default_factory=LatencySettings
    )

    max_device_hours: Annotated[
        float | None,
        Field(
            gt=0, le=bounds.HOURS, description="hours of training, over all devices, after which no trial is started"
        ),
    ] = None
    max_cost: Annotated[
        float | None, Field(gt=0, le=bounds.MONEY, description="money after which no trial is started; needs price")
    ] = None
    price: Annotated[float | None, Field(gt=0, le=bounds.MONEY, description="money that a device costs in an hour")] = (
        None
    )
    epoch_timeout: Annotated[
        float | None,
        Field(
            ge=bounds.SECONDS_LEAST,
            le=bounds.SECONDS,
            description="seconds after which an epoch counts as hung; default from those so far",
        ),
    ] = None
    node_timeout: Annotated[
        float | None,
        Field(
            ge=bounds.SECONDS_LEAST,
            le=bounds.SECONDS,
            description="seconds without a fitting node of the cluster after which the search ends; default a minute, "
            "or half an hour where an autoscaler brings nodes",
        ),
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

    @property
    def asks_latency(self) -> bool:
        """Whether latency is an objective or a limit; else nothing is measured."""
        return "latency_ms" in self.minimize or self.limits.latency_ms is not None

    def grace_epochs(self, epochs: int, warm_up: float = 0.0) -> int:
        """Epochs before which no trial is stopped; all of them where none ever is.

        Args:
            epochs: epochs of every trial.
            warm_up: the epoch at which the last term of a run has its full weight.
        """
        scheduler = self.scheduler.chosen
        if scheduler is None:
            return epochs
        default = max(1, math.ceil(epochs / 3), math.ceil(warm_up))
        return min(scheduler.grace_epochs or default, epochs)


def shown(name: str, value: float) -> str:
    """A cost as people read it: parameters are whole."""
    return f"{value:.0f}" if name == "params" else f"{value:.3g}"
