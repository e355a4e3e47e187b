"""Adversarial training by projected gradient descent, so that a student withstands small changes of its input.

Madry et al. 2018, arXiv 1706.06083; with distillation and pruning as in Lee and Lee 2021, Appl. Sci. 11(3) 1093, whose
body could not be read: the combination is RECONSTRUCTED as ``(1 - a) CE + a T^2 KL`` on attacked images, which here is
`ce` with weight 1 - a beside `kd` with weight a. "Robust" means changed inputs; "adversarial" is the term with a
discriminator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hksd import bounds
from hksd.data import DataSet
from hksd.data.augment import Batches
from hksd.schema import Section


@dataclass(frozen=True, kw_only=True)
class RobustConfig(Section):
    """Train on attacked images: the usual setting on CIFAR is epsilon 8/255, 7 to 10 steps (RECONSTRUCTED)."""

    epsilon: Annotated[float, Field(gt=0, le=1, description="largest change of a pixel on the 0 to 1 scale")] = 8 / 255
    steps: Annotated[
        int,
        Field(
            ge=1, le=bounds.ATTACK_STEPS, description="steps of the attack; each costs a forward and a backward pass"
        ),
    ] = 7
    step_share: Annotated[
        float, Field(ge=bounds.FACTOR_LEAST, le=bounds.FACTOR, description="size of a step as a share of epsilon")
    ] = 0.25
    attack: Annotated[
        Literal["ce", "total"], Field(description="what the attack raises: cross-entropy, or the whole loss of the run")
    ] = "ce"
    teacher_view: Annotated[
        Literal["clean", "attacked"], Field(description="images that the teacher sees; attacked costs a second pass")
    ] = "clean"
    evaluate: Annotated[
        Literal["last", "every", "never"], Field(description="epochs that report the accuracy under attack")
    ] = "last"
    evaluation_steps: Annotated[
        int, Field(ge=1, le=bounds.ATTACK_STEPS, description="steps of the attack on validation images")
    ] = 10

    def dead_knobs(self) -> frozenset[str]:
        """The strength of an evaluation that never happens."""
        return frozenset({"evaluation_steps"}) if self.evaluate == "never" else frozenset()


class Robust:
    """The attack within the box of radius epsilon around each image and within the range of pixels.

    Args:
        config: strength.
        data: its mean and standard deviation turn pixels into what networks see.
        device: where images live.
    """

    def __init__(self, config: RobustConfig, data: DataSet, device: torch.device):
        self.config = config
        mean, std = (torch.tensor(part, device=device)[:, None, None] for part in (data.mean, data.std))
        self.radius = config.epsilon / std
        self.low, self.high = -mean / std, (1 - mean) / std

    def attack(self, student: nn.Module, images: Tensor, loss: Callable[[Tensor], Tensor], steps: int) -> Tensor:
        """Change `images` (N, channels, H, W), normalised, so that `loss` rises; starts at a random point of the box.

        The student is in eval mode meanwhile, so that its running statistics see no half-made images, and gathers no
        gradient.
        """
        training = student.training
        student.eval()
        radius, step = self.radius, self.radius * self.config.step_share
        low, high = torch.maximum(images - radius, self.low), torch.minimum(images + radius, self.high)
        attacked = images + radius * (2 * torch.rand_like(images) - 1)
        attacked = torch.minimum(torch.maximum(attacked, low), high)
        for _ in range(steps):
            attacked.requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(loss(attacked), attacked)
            attacked = torch.minimum(torch.maximum(attacked.detach() + step * slope.sign(), low), high)
        student.train(training)
        return attacked.detach()

    def wanted(self, epoch: int, epochs: int) -> bool:
        """Whether `epoch` (from 0) reports the accuracy under attack."""
        return self.config.evaluate == "every" or (self.config.evaluate == "last" and epoch + 1 == epochs)

    def accuracy(self, student: nn.Module, validation: Batches, batch_size: int) -> float:
        """Accuracy, 0 to 1, on attacked validation images; the same attack whatever the run drew before."""
        training, right = student.training, 0
        student.eval()
        device = self.radius.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            for batch in validation.plain(batch_size):

                def loss(images: Tensor, labels: Tensor = batch.labels) -> Tensor:
                    return F.cross_entropy(student(images), labels)

                attacked = self.attack(student, batch.images, loss, self.config.evaluation_steps)
                with torch.no_grad():
                    right += int((student(attacked).argmax(1) == batch.labels).sum())
        student.train(training)
        return right / len(validation)
