"""The `train` section of a configuration: how a student is trained, and the course of its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from hksd import bounds
from hksd.device.precision import PrecisionName
from hksd.schema import Section


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """Optimiser and schedule of the student."""

    epochs: Annotated[int, Field(ge=1, le=bounds.EPOCHS, description="passes over the training images")]
    batch_size: Annotated[int, Field(ge=1, le=bounds.BATCH, description="images per step")] = 128
    lr: Annotated[float, Field(ge=bounds.RATE_LEAST, le=bounds.RATE, description="peak learning rate")] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="momentum of SGD")] = 0.9
    nesterov: Annotated[bool, Field(description="Nesterov's form of the momentum")] = True
    weight_decay: Annotated[float, Field(ge=0, le=bounds.DECAY, description="weight decay")] = 5e-4
    schedule: Annotated[Literal["cosine", "multistep"], Field(description="course of the learning rate")] = "cosine"
    milestones: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...],
        Field(max_length=bounds.LIST_LENGTH, description="shares of the epochs after which multistep lowers the rate"),
    ] = (0.625, 0.75, 0.875)
    gamma: Annotated[float, Field(gt=0, le=1, description="factor of each multistep drop")] = 0.1
    clip_norm: Annotated[
        float | None,
        Field(ge=bounds.FACTOR_LEAST, le=bounds.FACTOR, description="largest norm of the gradient; null = no clipping"),
    ] = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")] = "auto"
    threads: Annotated[
        int, Field(ge=1, le=bounds.CORES, description="CPU threads of a run; part of its exact reproduction")
    ] = 1
    knowledge: Annotated[
        Literal["auto", "cached", "live"],
        Field(description="what the teacher knows of a view: computed once and shared, or asked in every step"),
    ] = "auto"
    views: Annotated[
        int | None,
        Field(
            ge=1, le=bounds.EPOCHS, description="versions of each image, repeated in turn; default one for every epoch"
        ),
    ] = None
    precision: Annotated[
        PrecisionName,
        Field(description="arithmetic of training: bfloat16 where the device is fast at it (auto), or one of the two"),
    ] = "auto"

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            object.__setattr__(self, "nesterov", False)  # Nesterov's form of no momentum is plain SGD
        if self.views is not None and self.views >= self.epochs:
            object.__setattr__(self, "views", None)  # one for every epoch, as by default

    def dead_knobs(self) -> frozenset[str]:
        """`milestones` and `gamma` belong to the multistep schedule; the device is a place, not a setting."""
        return frozenset({"device", *(("milestones", "gamma") if self.schedule == "cosine" else ())})


def learning_rate(train: TrainConfig, progress: float) -> float:
    """Learning rate after a share `progress` (0 to 1) of the run."""
    if train.schedule == "cosine":
        return 0.5 * train.lr * (1 + math.cos(math.pi * progress))
    return train.lr * train.gamma ** sum(progress >= milestone for milestone in train.milestones)
