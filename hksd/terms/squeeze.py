"""Squeezed attention: the student imitates the teacher's squeezed vectors (L_is of KSANC, with HKSANC's hierarchy).

Level 1 with ``additive_linear`` / ``fused`` / ``mean`` is KSANC's form (CONFIRMED-SHOT). The hierarchy of levels 2
and 3 is RECONSTRUCTED; see `hksd.attention` and docs/method.md. Default: ``dot`` / ``raw`` / ``sum``, because with a
linear score the descriptor cannot influence the map, and an average after a softmax shrinks stages unequally.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hksd import bounds
from hksd.attention import AttentionSpec, Compatibility, HierarchicalAttention, join
from hksd.models.taps import Out, TapShapes
from hksd.terms.base import CountOrAll, Term, TermConfig, pair_stages, require_teacher


@dataclass(frozen=True, kw_only=True)
class SqueezeConfig(TermConfig):
    """Usual weight 1 (RECONSTRUCTED; the paper's lambda_3 is unknown)."""

    depth: Annotated[
        int, Field(ge=1, le=3, description="hierarchy: 1 positions, 2 + blocks of a stage, 3 + stages")
    ] = 2
    compatibility: Annotated[Compatibility, Field(description="score of an item against the descriptor")] = "dot"
    attend: Annotated[Literal["raw", "fused"], Field(description="pool the map, or the map plus the query")] = "raw"
    pool: Annotated[Literal["sum", "mean"], Field(description="weighted sum, or the paper's mean (divides by H*W)")] = (
        "sum"
    )
    attention_temperature: Annotated[
        float,
        Field(ge=bounds.TEMPERATURE_LEAST, le=bounds.TEMPERATURE, description="divides the scores before the softmax"),
    ] = 1.0
    blocks: Annotated[
        CountOrAll,
        Field(description="tapped blocks per stage: all, or that many, evenly spaced, paired one to one at depth 1"),
    ] = "all"
    share_query: Annotated[bool, Field(description="one query projection for all blocks of a stage")] = True
    levels: Annotated[Literal["top", "all"], Field(description="compare the top level, or every level up to it")] = (
        "top"
    )
    level_decay: Annotated[
        float, Field(gt=0, le=bounds.FACTOR, description="level l weighs level_decay^(l-1) when levels is all")
    ] = 1.0
    top_dim: Annotated[int, Field(ge=1, le=bounds.FEATURES, description="size of the level-3 vector")] = 128
    metric: Annotated[Literal["l2", "smooth_l1", "cosine"], Field(description="distance of the vectors")] = "l2"
    normalize: Annotated[bool, Field(description="compare unit vectors, summed over dimensions: 2 (1 - cosine)")] = True
    task_weight: Annotated[
        float, Field(ge=0, le=bounds.WEIGHT, description="adds this times CE of a head on the student's vectors")
    ] = 0.0

    student_needs: ClassVar[frozenset[str]] = frozenset({"embedding", "blocks"})
    teacher_needs: ClassVar[frozenset[str]] = frozenset({"squeezed"})

    def dead_knobs(self) -> frozenset[str]:
        """Knobs without effect: attention knobs under ``gap``, hierarchy knobs at small depth."""
        dead: set[str] = set()
        if self.compatibility == "gap":
            dead |= {"attend", "pool", "attention_temperature", "share_query"}
        if self.depth < 2:
            dead |= {"levels"}
            dead |= {"share_query"} if self.blocks in ("all", 1) else set()
        if self.depth < 2 or self.levels == "top":
            dead |= {"level_decay"}
        if self.depth < 3:
            dead |= {"top_dim"}
        if self.metric == "cosine":
            dead |= {"normalize"}
        return frozenset(dead)

    def data_needs(self) -> frozenset[str]:
        """The task head on the vectors learns from labels."""
        return frozenset({"labels"}) if self.task_weight else frozenset()

    def attention(self) -> AttentionSpec:
        """The structure that teacher and student share; dead knobs are at their default, so that they stay dead."""
        names = {"attention_temperature": "temperature"}
        knobs = ("compatibility", "attend", "pool", "attention_temperature", "share_query", "blocks", "top_dim")
        live = {names.get(name, name): getattr(self, name) for name in knobs if name not in self.dead_knobs()}
        return AttentionSpec(**live)

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        pair_stages("squeeze", student, teacher, 1)
        assert teacher is not None
        return Squeeze(self, student, teacher)


def squeeze_loss(student: Tensor, teacher: Tensor, *, normalize: bool = True, metric: str = "l2") -> Tensor:
    """Distance of two descriptors (N, dims), batch mean.

    Unit vectors are compared by the sum over dimensions (0 to 4 for l2), raw ones by the mean, so that neither scale
    depends on the number of dimensions. ``cosine`` is ``1 - cos``, half of the normalised l2.
    """
    if metric == "cosine":
        return (1 - F.cosine_similarity(student, teacher, dim=1)).mean()
    if normalize:
        student, teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    distance = F.mse_loss if metric == "l2" else F.smooth_l1_loss
    each = distance(student, teacher, reduction="none")
    return (each.sum(1) if normalize else each.mean(1)).mean()


def descriptor_size(config: SqueezeConfig, teacher: TapShapes, estimators: HierarchicalAttention) -> int:
    """Size of the joined vector of the top level."""
    if config.depth == 3:
        return config.top_dim
    joined = config.depth == 1 and config.blocks != "all"  # then the vectors of all tapped blocks stand side by side
    goals = teacher.stages[-len(estimators.taps) :]
    return sum(goal * (len(taps) if joined else 1) for goal, taps in zip(goals, estimators.taps, strict=True))


class Squeeze(Term):
    """The student's estimators, and `squeeze_loss` between the vectors of both networks."""

    def __init__(self, config: SqueezeConfig, student: TapShapes, teacher: TapShapes):
        super().__init__()
        self.config = config
        self.estimators = HierarchicalAttention(student, teacher.stages, config.attention(), config.depth)
        self.stages = len(self.estimators.taps)
        self.head: nn.Linear | None = None
        if config.task_weight:
            self.head = nn.Linear(descriptor_size(config, teacher, self.estimators), student.classes)

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        config, goal = self.config, require_teacher(teacher).squeezed
        mine = self.estimators(student)
        levels = range(1, config.depth + 1) if config.levels == "all" else [config.depth]
        total = torch.zeros((), device=target.device)
        for level in levels:
            weight = config.level_decay ** (level - 1) if config.levels == "all" else 1.0
            distance = squeeze_loss(
                join(mine, level),
                join(goal, level, self.stages),
                normalize=config.normalize,
                metric=config.metric,
            )
            total = total + weight * distance
        if self.head is not None:
            total = total + config.task_weight * F.cross_entropy(self.head(join(mine, config.depth)), target)
        return total
