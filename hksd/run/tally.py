"""An epoch under way: what it has gathered for its report, in a form that a checkpoint can hold."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hksd.errors import NonFiniteLossError
from hksd.run.outcome import EpochReport


class LeftEpoch(Exception):  # noqa: N818 - not an error: the caller of the run asked for it
    """The run was asked to stop inside an epoch; what the epoch has done so far is in its `Tally`."""


class Tally:
    """What the steps of one epoch add up to.

    Every value is kept until the end and averaged once, so that the mean of an epoch that was stopped and resumed is
    that of an epoch in one go, to the last bit.

    Attributes:
        steps: finished steps.
        images: training images seen.
        right: () int64, how many of them were classified rightly, on the device.
        lr: learning rate of the last step.

    Args:
        device: where the sums live.
        state: what `state_dict` gave before a resume; None begins an epoch.
    """

    def __init__(self, device: torch.device, state: Mapping[str, Any] | None = None):
        self.steps, self.images, self.lr = 0, 0, 0.0
        self.right = torch.zeros((), dtype=torch.int64, device=device)
        self._values: dict[str, list[Tensor]] = defaultdict(list)
        self._before, self._waited, self._began = 0.0, 0.0, time.perf_counter()
        if state is not None:
            self.steps, self.images, self.lr = state["steps"], state["images"], state["lr"]
            self.right += state["right"].to(device)
            self._values.update({name: list(found.to(device)) for name, found in state["values"].items()})
            self._before, self._waited = state["seconds"], state["waited"]

    def state_dict(self) -> dict[str, Any]:
        """All of it, for a checkpoint inside the epoch."""
        return {
            "steps": self.steps,
            "images": self.images,
            "lr": self.lr,
            "right": self.right,
            "values": {name: torch.stack(values) for name, values in self._values.items()},
            "seconds": self.seconds,
            "waited": self._waited,
        }

    @property
    def seconds(self) -> float:
        """Time of the epoch so far, without the pause before a resume."""
        return self._before + time.perf_counter() - self._began

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in here is not the student's: it counts for the epoch, but not for its images per second."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - begun

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take in scalars of a step, detached."""
        for name, value in values.items():
            self._values[name].append(value)

    def step(self, logits: Tensor, labels: Tensor, lr: float) -> None:
        """Count a finished step: logits (N, C), labels (N,), and its learning rate."""
        self.steps += 1
        self.images += len(labels)
        self.right += (logits.detach().argmax(1) == labels).sum()
        self.lr = lr

    def means(self) -> dict[str, float]:
        """Mean of every value."""
        return {name: torch.stack(values).mean().item() for name, values in self._values.items()}

    def images_per_s(self) -> float:
        """Training images per second, to be asked after the last step and before the validation."""
        return self.images / (self.seconds - self._waited)

    def report(
        self, epoch: int, epochs: int, means: dict[str, float], speed: float, val_accuracy: float, val_loss: float
    ) -> EpochReport:
        """Close `epoch` (from 0) of `epochs`.

        Args:
            epoch: the epoch.
            epochs: length of the run.
            means: `means`, with what the modes tell; ``total`` is the loss, names with a slash are diagnostics.
            speed: training images per second.
            val_accuracy: accuracy on the validation split, 0 to 1.
            val_loss: cross-entropy there.

        Raises:
            NonFiniteLossError: a mean or the validation loss is not finite.
        """
        if not all(map(math.isfinite, (*means.values(), val_loss))):
            raise NonFiniteLossError(epoch + 1, self.steps, {**means, "validation": val_loss})
        return EpochReport(
            epoch=epoch + 1,
            epochs=epochs,
            val_accuracy=val_accuracy,
            val_loss=val_loss,
            train_accuracy=self.right.item() / self.images,
            train_loss=means["total"],
            terms={name: value for name, value in means.items() if "/" not in name and name != "total"},
            diagnostics={name: value for name, value in means.items() if "/" in name},
            lr=self.lr,
            seconds=self.seconds,
            images_per_s=speed,
        )
