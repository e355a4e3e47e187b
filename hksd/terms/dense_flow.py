"""Layer-wise dense flow with adversarial learning (Yeo, Kim and Bae 2021, Appl. Sci. 11(8) 3720).

CONFIRMED (abstract): cross-entropy + an adversarial loss for the student and discriminators + Euclidean distances of
flows, which are taken densely and overlap. Every form here is RECONSTRUCTED; the flow is that of FSP (Yim et al. 2017):

    flow(a, b) = F_a^T F_b / (H W)          of stages a < b, at the smaller of their grids            (N, C_a, C_b)
    value      = mean over spans of mean (flow_S - flow_T)^2 + adversarial_weight * mean over spans of the game

Spans lie between ends of stages; `overlap` adds the longer ones (1, 3), ... to (1, 2), (2, 3), ... Spans inside a
stage are left out, since networks of one block per stage have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hksd import bounds
from hksd.errors import UserError
from hksd.models.taps import Out, TapShapes
from hksd.terms.adversarial import Discriminator, Game, discriminator_loss, frozen, generator_loss, told_apart
from hksd.terms.base import Stages, Term, TermConfig, pair_stages, require_teacher
from hksd.terms.fsp import fsp_matrix
from hksd.terms.maps import adaptor


@dataclass(frozen=True, kw_only=True)
class DenseFlowConfig(TermConfig):
    """Usual weight 1 beside `ce` 1 (RECONSTRUCTED: no weight of the paper could be read)."""

    stages: Stages = "all"
    overlap: Annotated[bool, Field(description="also spans over several stages, which overlap the short ones")] = True
    adversarial_weight: Annotated[
        float,
        Field(
            ge=0,
            le=bounds.WEIGHT,
            description="weight of the game on flows beside their distance; 0 makes no discriminator",
        ),
    ] = 0.1
    shared: Annotated[bool, Field(description="one discriminator for all spans behind a linear map of each")] = False
    loss: Annotated[Game, Field(description="form of the game")] = "nonsaturating"
    hidden: Annotated[
        int, Field(ge=1, le=bounds.FEATURES, description="width of the discriminators' two hidden layers")
    ] = 128
    lr: Annotated[
        float, Field(ge=bounds.RATE_LEAST, le=bounds.RATE, description="learning rate of the discriminators (Adam)")
    ] = 1e-3

    student_needs: ClassVar[frozenset[str]] = frozenset({"stages"})
    teacher_needs: ClassVar[frozenset[str]] = frozenset({"stages"})

    def dead_knobs(self) -> frozenset[str]:
        """Without the game there is no discriminator."""
        return frozenset() if self.adversarial_weight else frozenset({"shared", "loss", "hidden", "lr"})

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        count = pair_stages("dense_flow", student, teacher, self.stages)
        if count < 2:
            raise UserError(
                "terms.dense_flow compares flows from one stage to another, but only 1 stage is compared; "
                "set terms.dense_flow.stages to all or at least 2, or take networks of two stages"
            )
        assert teacher is not None
        return DenseFlow(self, student.stages[-count:], teacher.stages[-count:])


def spans(stages: int, overlap: bool) -> list[tuple[int, int]]:
    """Pairs of stages, counted from 0: neighbours, with `overlap` every a < b, the short ones first."""
    if not overlap:
        return list(pairwise(range(stages)))
    return sorted(combinations(range(stages), 2), key=lambda span: (span[1] - span[0], span))


class FlowDiscriminators(nn.Module):
    """One discriminator per span, or linear maps of each span to one shared discriminator.

    Args:
        sizes: numbers in the flow of each span.
        hidden: width.
        shared: one for all.
    """

    def __init__(self, sizes: list[int], hidden: int, shared: bool):
        super().__init__()
        self.entries = nn.ModuleList(nn.Linear(size, hidden) if shared else nn.Identity() for size in sizes)
        inputs = [hidden] if shared else sizes
        self.bodies = nn.ModuleList(Discriminator(size, hidden, 2, True, 0) for size in inputs)

    def forward(self, *flows: Tensor) -> Tensor:
        """flows: per span (2N, C_a * C_b), teachers first -> scores (spans, 2N)."""
        bodies = list(self.bodies) * (len(flows) if len(self.bodies) < len(flows) else 1)
        return torch.stack([body(entry(one))[0] for one, entry, body in zip(flows, self.entries, bodies, strict=True)])


class DenseFlow(Term):
    """Distance of flows, and the game on them.

    Channels of the student that differ from the teacher's pass a 1x1 convolution, which learns with the student. Such a
    map can turn channels into each other, so a student with one has it easier than the method means.

    Args:
        config: knobs.
        mine: channels of the student's compared stages.
        goals: channels of the teacher's.
    """

    def __init__(self, config: DenseFlowConfig, mine: tuple[int, ...], goals: tuple[int, ...]):
        super().__init__()
        self.config, self.count, self.spans = config, len(goals), spans(len(goals), config.overlap)
        self.adaptors = nn.ModuleList(adaptor(one, goal) for one, goal in zip(mine, goals, strict=True))
        self.discriminators: FlowDiscriminators | None = None
        if config.adversarial_weight:
            sizes = [goals[a] * goals[b] for a, b in self.spans]
            self.discriminators = FlowDiscriminators(sizes, config.hidden, config.shared)
            self.optimizer = torch.optim.Adam(self.discriminators.parameters(), lr=config.lr, betas=(0.5, 0.999))

    def joint_parameters(self) -> list[nn.Parameter]:
        """The student's adaptors."""
        return list(self.adaptors.parameters())

    def get_extra_state(self) -> dict[str, Any]:
        """State of the discriminators' optimiser."""
        return self.optimizer.state_dict() if self.discriminators else {}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See `get_extra_state`."""
        if self.discriminators:
            self.optimizer.load_state_dict(state)

    def flows(self, student: Out, teacher: Out) -> tuple[list[Tensor], list[Tensor]]:
        """Flows of every span, each (N, C_a * C_b): of the student, with gradients, and of the teacher."""
        mine = [adapt(one) for adapt, one in zip(self.adaptors, student.stages[-self.count :], strict=True)]
        goal = [one.detach() for one in teacher.stages[-self.count :]]
        ours, theirs = ([fsp_matrix(maps[a], maps[b]).flatten(1) for a, b in self.spans] for maps in (mine, goal))
        return ours, theirs

    def own_step(self, student: Out, teacher: Out | None, target: Tensor) -> dict[str, Tensor]:
        """Train the discriminators; returns their mean loss and accuracy."""
        if self.discriminators is None:
            return {}
        with torch.no_grad():
            both = _stack(*self.flows(student, require_teacher(teacher)))
        kind, count = self.config.loss, len(target)
        scores = self.discriminators(*both)
        loss = torch.stack([discriminator_loss(kind, one[:count], one[count:]) for one in scores]).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        right = torch.stack([told_apart(kind, one[:count], one[count:]) for one in scores]).mean()
        return {"discriminator_loss": loss.detach(), "discriminator_accuracy": right}

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        mine, goal = self.flows(student, require_teacher(teacher))
        total = torch.stack([F.mse_loss(one, other) for one, other in zip(mine, goal, strict=True)]).mean()
        if self.discriminators is not None:
            scores = frozen(self.discriminators, *_stack(mine, goal))
            game = torch.stack([generator_loss(self.config.loss, one[len(target) :]) for one in scores]).mean()
            total = total + self.config.adversarial_weight * game
        return total


def _stack(student: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
    """Per span both flows in one batch, teachers first."""
    return [torch.cat([goal, one]) for one, goal in zip(student, teacher, strict=True)]
