"""What a run tells: a report after every epoch, a result at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from hksd.models.taps import TappedNet


@dataclass(frozen=True)
class EpochReport:
    """What happened in one epoch.

    Attributes:
        epoch: number of the finished epoch, from 1.
        epochs: epochs of the whole run.
        val_accuracy: accuracy on the validation split, 0 to 1.
        val_loss: cross-entropy on the validation split.
        train_accuracy: accuracy on the augmented training images, while training.
        train_loss: mean total loss.
        terms: mean unweighted value of every term.
        diagnostics: other scalars of the terms, for example the discriminator's accuracy.
        lr: learning rate of the last step.
        seconds: time of the epoch, validation included.
        images_per_s: training images per second, without validation and without what the teacher computes for a whole
            view.
    """

    epoch: int
    epochs: int
    val_accuracy: float
    val_loss: float
    train_accuracy: float
    train_loss: float
    terms: dict[str, float]
    diagnostics: dict[str, float]
    lr: float
    seconds: float
    images_per_s: float


OnEpoch = Callable[[EpochReport], Literal["stop"] | None]
ShouldStop = Callable[[], bool]  # asked after every step: cheap


@dataclass(frozen=True)
class Result:
    """Outcome of a run.

    Attributes:
        student: the trained network, on the CPU, in eval mode.
        history: one report per epoch, those before a resume included.
        config_hash: hash of the configuration.
        data_fingerprint: hash of images, labels and splits.
        stopped: `on_epoch` or `should_stop` asked to stop before the end.
        resumed_at: epochs taken over from a checkpoint.
        seconds: sum over all epochs, with the one under way.
        precision: arithmetic of the training and why, in words.
        step: finished steps of the epoch in which the run was stopped; 0 between epochs.
        resumed_step: steps of an epoch under way that were taken over from a checkpoint.
    """

    student: TappedNet = field(repr=False)
    history: tuple[EpochReport, ...]
    config_hash: str
    data_fingerprint: str
    stopped: bool
    resumed_at: int
    seconds: float
    precision: str
    step: int = 0
    resumed_step: int = 0

    @property
    def val_accuracy(self) -> float:
        """Validation accuracy of the last epoch: the score of the run (never the best over epochs).

        Raises:
            IndexError: the run was stopped before the end of its first epoch.
        """
        return self.history[-1].val_accuracy
