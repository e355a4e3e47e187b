"""Knowledge Review (ReviewKD): student stages, fused from the top down, imitate the teacher's.

Chen, Liu, Zhao and Jia 2021, arXiv 2104.09044. Structure and loss as in the public repository dvlab-research/ReviewKD
and in mdistiller (weights CONFIRMED there). Attention-based fusion (ABF) joins a stage with what came from the stages
above it; the hierarchical context loss (HCL) compares maps at full size and pooled to 4x4, 2x2 and 1x1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hksd import bounds
from hksd.models.taps import Out, TapShapes
from hksd.terms.base import NeedsByKnob, Stages, Term, TermConfig, pair_stages, require_teacher

POOLED = (4, 2, 1)


def _needs(config: ReviewConfig) -> frozenset[str]:
    return frozenset({"stages", "embedding"} if config.embedding else {"stages"})


@dataclass(frozen=True, kw_only=True)
class ReviewConfig(TermConfig):
    """Usual weight by pair: 0.6 (resnet56 to resnet20), 1 (resnet110 to resnet32, ImageNet), 5 (WRN), 8 (ShuffleV2).

    CONFIRMED: mdistiller, ReviewKD; all beside `ce` 1 and with a warm-up of 20 epochs on CIFAR.
    """

    stages: Stages = "all"
    embedding: Annotated[bool, Field(description="also compare the embeddings, as a further, uppermost stage")] = False
    channels: Annotated[
        int, Field(ge=1, le=bounds.FEATURES, description="channels inside the fusion; 64 on CIFAR, 512 on ImageNet")
    ] = 64

    student_needs: ClassVar[frozenset[str]] = cast(Any, NeedsByKnob(frozenset({"stages"}), _needs))
    teacher_needs: ClassVar[frozenset[str]] = cast(Any, NeedsByKnob(frozenset({"stages"}), _needs))

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        count = pair_stages("review", student, teacher, self.stages)
        assert teacher is not None
        mine, goals = list(student.stages[-count:]), list(teacher.stages[-count:])
        if self.embedding:
            mine, goals = [*mine, student.embedding], [*goals, teacher.embedding]
        return Review(self, count, mine, goals)


def hcl(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss of two maps (N, F, H, W): weighted mean of squared distances.

    The maps as they are weigh 1; pooled to 4x4, 2x2 and 1x1 they weigh 1/2, 1/4 and 1/8. Sizes that are not below H
    are left out, and the next one then weighs 1/2. The sum is divided by the weights.
    """
    weight, total, loss = 1.0, 1.0, F.mse_loss(student, teacher)
    for size in POOLED:
        if size < student.shape[2]:
            weight /= 2
            total += weight
            loss = loss + weight * F.mse_loss(
                F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)
            )
    return loss / total


class BatchNorm(nn.Module):
    """Batch normalisation of maps (N, F, H, W) by the statistics of the batch at hand.

    It keeps no statistics, since it is never evaluated, and passes on its bias where a channel has a single value.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, F, H, W)."""
        if x.numel() == x.shape[1]:
            return 0 * x + self.bias[:, None, None]
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True)


def _conv(inputs: int, outputs: int, size: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, BatchNorm(outputs))


class Fusion(nn.Module):
    """ABF: a stage (N, inputs, H, W) and what came from above it -> (map like the teacher's, what goes on downwards).

    Args:
        inputs: channels of the student's stage.
        channels: channels inside.
        outputs: channels of the teacher's stage.
        top: there is nothing above this one.
    """

    def __init__(self, inputs: int, channels: int, outputs: int, top: bool):
        super().__init__()
        self.enter, self.leave = _conv(inputs, channels, 1), _conv(channels, outputs, 3)
        self.attention = None if top else nn.Conv2d(2 * channels, 2, 1)

    def forward(self, stage: Tensor, above: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """stage: (N, inputs, H, W); above: (N, channels, H', W') or None; size: height and width of the teacher's."""
        fused = self.enter(stage)
        if self.attention is not None:
            assert above is not None
            above = F.interpolate(above, fused.shape[2:], mode="nearest")
            share = torch.sigmoid(self.attention(torch.cat([fused, above], 1)))
            fused = fused * share[:, :1] + above * share[:, 1:]
        if fused.shape[2:] != size:
            fused = F.interpolate(fused, size, mode="nearest")
        return self.leave(fused), fused


class Review(Term):
    """Sum of `hcl` over stages, the student's after their fusion from the top down.

    Args:
        config: knobs.
        count: compared stages, counted from the last one.
        mine: channels of the student's, from the lowest to the highest, the embedding last if it is compared.
        goals: the same of the teacher.
    """

    def __init__(self, config: ReviewConfig, count: int, mine: list[int], goals: list[int]):
        super().__init__()
        self.config, self.count, top = config, count, len(mine) - 1
        self.fusions = nn.ModuleList(
            Fusion(inputs, config.channels, outputs, level == top)
            for level, (inputs, outputs) in enumerate(zip(mine, goals, strict=True))
        )

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        total, above = torch.zeros((), device=target.device), None
        pairs = zip(self.fusions, self._levels(student), self._levels(require_teacher(teacher)), strict=True)
        for fusion, mine, goal in reversed(list(pairs)):
            result, above = fusion(mine, above, goal.shape[2:])
            total = total + hcl(result, goal)
        return total

    def _levels(self, out: Out) -> list[Tensor]:
        """The compared maps, from the lowest to the highest."""
        top = [out.embedding[:, :, None, None]] if self.config.embedding else []
        return [*out.stages[-self.count :], *top]
