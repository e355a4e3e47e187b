"""Distillation without images: a generator makes them, with teacher and student as its judges.

| method | generator loss | source |
|---|---|---|
| dafl | one-hot CE + entropy of the mean prediction - activation | Chen et al. 2019 (CONFIRMED in code) |
| dfad | - mean abs(z_S - z_T) | Fang et al. 2019 (CONFIRMED in code) |
| two_step | the three of DAFL minus the disagreement; then the generator is frozen | Jin et al. 2021 (RECONSTRUCTED) |

The student learns by the terms of the run on what is generated. Jin et al. (abstract CONFIRMED) let a small network
tell teacher from student in the second step: that is the term `adversarial` with ``category_weight: 0``.

The data section still names real images: the teacher learned from them, they give the range of pixels (mean and
standard deviation), and their validation split measures the student. The student is never trained on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hksd import bounds
from hksd.data.augment import Batch
from hksd.models.taps import Out, TappedNet
from hksd.schema import Section


@dataclass(frozen=True, kw_only=True)
class DataFreeConfig(Section):
    """Published settings on CIFAR-10 (CONFIRMED in code): see the knobs."""

    method: Annotated[Literal["dafl", "dfad", "two_step"], Field(description="what the generator learns from")] = "dfad"
    latent: Annotated[
        int, Field(ge=1, le=bounds.FEATURES, description="size of the generator's input; 1000 in DAFL, 256 in DFAD")
    ] = 256
    channels: Annotated[int, Field(ge=4, le=bounds.FEATURES, description="width of the generator's last layers")] = 64
    lr: Annotated[
        float,
        Field(
            ge=bounds.RATE_LEAST,
            le=bounds.RATE,
            description="learning rate of the generator (Adam); 0.02 in DAFL, 1e-3 in DFAD",
        ),
    ] = 1e-3
    steps_per_epoch: Annotated[
        int, Field(ge=1, le=bounds.STEPS, description="student steps per epoch; 120 in DAFL, 50 in DFAD")
    ] = 50
    student_steps: Annotated[
        int, Field(ge=1, le=bounds.STEPS, description="student steps per generator step; 1 in DAFL, 5 in DFAD")
    ] = 5
    one_hot: Annotated[
        float, Field(ge=0, le=bounds.WEIGHT, description="weight of a sure teacher: CE with its own answer")
    ] = 0.05
    entropy: Annotated[float, Field(ge=0, le=bounds.WEIGHT, description="weight of even classes over a batch")] = 5.0
    activation: Annotated[
        float, Field(ge=0, le=bounds.WEIGHT, description="weight of a large embedding of the teacher")
    ] = 0.01
    disagreement: Annotated[
        float, Field(ge=0, le=bounds.WEIGHT, description="weight of the distance of both logits")
    ] = 1.0
    generator_fraction: Annotated[
        float, Field(gt=0, le=1, description="share of the epochs in which the generator learns (two_step)")
    ] = 0.5

    def dead_knobs(self) -> frozenset[str]:
        """Weights of what a method has not."""
        return {
            "dafl": frozenset({"disagreement", "generator_fraction"}),
            "dfad": frozenset({"one_hot", "entropy", "activation", "generator_fraction"}),
            "two_step": frozenset(),
        }[self.method]


def generator_loss(config: DataFreeConfig, student: Tensor | None, teacher: Out) -> Tensor:
    """What the generator minimises.

    ``one_hot CE(z_T, argmax z_T) + entropy sum_c p_c log10 p_c - activation mean|g_T| - disagreement mean|z_S - z_T|``
    with p the mean prediction of the teacher over the batch; parts that the method has not are left out.

    Args:
        config: method and weights.
        student: logits (N, C); only the disagreement reads them.
        teacher: logits (N, C) and embedding (N, G).
    """
    total = torch.zeros((), device=teacher.logits.device)
    if config.method in ("dafl", "two_step"):
        mean = teacher.logits.softmax(1).mean(0)
        total = total + config.one_hot * F.cross_entropy(teacher.logits, teacher.logits.argmax(1))
        total = total + config.entropy * (mean * mean.clamp(min=1e-12).log10()).sum()
        total = total - config.activation * teacher.embedding.abs().mean()
    if config.method in ("dfad", "two_step"):
        assert student is not None
        total = total - config.disagreement * (student - teacher.logits).abs().mean()
    return total


class Generator(nn.Module):
    """Noise (N, latent) -> images (N, image_channels, size, size), each channel of mean 0 and variance 1 in a batch.

    A linear layer, and two doublings of the grid each followed by a 3x3 convolution (RECONSTRUCTED in the manner of
    the generators of DAFL and DFAD).
    """

    def __init__(self, latent: int, channels: int, image_channels: int, size: int):
        super().__init__()
        self.size, self.start, wide = size, math.ceil(size / 4), 2 * channels
        self.linear = nn.Linear(latent, wide * self.start**2)
        self.norm = nn.BatchNorm2d(wide)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2))
            for inputs, outputs in ((wide, wide), (wide, channels))
        )
        self.last = nn.Conv2d(channels, image_channels, 3, 1, 1)
        self.range = nn.BatchNorm2d(image_channels, affine=False)

    def forward(self, noise: Tensor) -> Tensor:
        """noise: (N, latent)."""
        x = self.norm(self.linear(noise).view(len(noise), -1, self.start, self.start))
        for grid, layer in zip((2 * self.start, self.size), self.body, strict=True):
            x = layer(F.interpolate(x, size=(grid, grid)))
        image: Tensor = self.range(torch.tanh(self.last(x)))
        return image


class Generated:
    """The generator of a run as its source of batches.

    Args:
        config: method.
        teacher: frozen, in eval mode.
        student: network that learns.
        epochs: length of the run.
        in_channels: channels of the images.
        image_size: their height and width.
        device: where they are made.
    """

    def __init__(
        self,
        config: DataFreeConfig,
        teacher: TappedNet,
        student: TappedNet,
        epochs: int,
        *,
        in_channels: int,
        image_size: int,
        device: torch.device,
    ):
        self.config, self.teacher, self.student, self.device = config, teacher, student, device
        self.learning_epochs = math.ceil(epochs * config.generator_fraction) if config.method == "two_step" else epochs
        self.generator = Generator(config.latent, config.channels, in_channels, image_size).to(device)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=config.lr)
        self.losses: list[Tensor] = []

    def batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch of generated batches, labelled with the teacher's answers; the generator learns in between.

        Args:
            epoch: number of the epoch, from 0.
            batch_size: images per batch.
            start: batches that were made before the run was stopped inside the epoch.
        """
        if start == 0:
            self.losses = []
        for step in range(start, self.config.steps_per_epoch):
            if epoch < self.learning_epochs and step % self.config.student_steps == 0:
                self._learn(batch_size)
            yield self._made(batch_size)

    @torch.no_grad()
    def _made(self, count: int) -> Batch:
        images = self.generator(self._noise(count))
        return Batch(images, self.teacher(images).argmax(1))

    def _noise(self, count: int) -> Tensor:
        return torch.randn(count, self.config.latent, device=self.device)

    def _learn(self, batch_size: int) -> None:
        images = self.generator(self._noise(batch_size))
        judged = self.student(images) if self.config.method != "dafl" else None
        loss = generator_loss(self.config, judged, self.teacher.taps(images))
        weights = list(self.generator.parameters())
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = slope  # its judges gather none
        self.optimizer.step()
        self.losses.append(loss.detach())

    def scalars(self) -> dict[str, float]:
        """``data_free/generator_loss``, mean over the last epoch, while the generator learns."""
        return {"data_free/generator_loss": torch.stack(self.losses).mean().item()} if self.losses else {}

    def state_dict(self) -> dict[str, Any]:
        """Generator, its optimiser, and its losses in the epoch, for the checkpoint."""
        return {
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": torch.stack(self.losses) if self.losses else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        losses = state.get("losses")
        self.losses = [] if losses is None else list(losses.to(self.device))
