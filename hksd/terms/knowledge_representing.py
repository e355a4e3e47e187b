"""Knowledge Representing (KR, arXiv 1911.05329): imitate an aggregate of neighbouring teacher layers, but not exactly.

Words, tables and hyperparameters of the paper could be read (CONFIRMED), its equations not: every form here is
RECONSTRUCTED in a well-posed way. Two optimisers alternate: `own_step` is the paper's Eq 9, the student's step Eq 10.

    aggregate   A_j: k neighbouring teacher maps F_i -> one, by resizing, joining and a 1x1 convolution, trained on
                mean_i w_i mean (ID(F_i) - A_j)^2 / mean ID(F_j)^2,  w_i = 1 + lambda_ot std(F_i) / mean_i std(F_i)
    student     r = adaptor(F_S) - A_j;  P(r) = mean max(|r| - tau, 0)^p + nu tau,  tau learned, tau_0 = mean |r|

A threshold that only lowers the loss would run away upwards; the price nu tau (as in nu-support vector machines) stops
it where, for p = 1, the share nu of the residuals is outside the tube. ID, the paper's identity-mapping layer, resizes
a map to that of the stage's end and pads its channels with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hksd import bounds
from hksd.errors import UserError
from hksd.models.taps import Out, TapShapes
from hksd.terms.base import Stages, Term, TermConfig, pair_stages, require_teacher
from hksd.terms.maps import same_grid

SMALLEST = 1e-6  # of the first threshold


@dataclass(frozen=True, kw_only=True)
class KnowledgeRepresentingConfig(TermConfig):
    """Usual weight 1 (RECONSTRUCTED: the paper's mu is unknown), beside `ce` and `kd`."""

    stages: Stages = "all"
    neighbours: Annotated[
        int,
        Field(
            ge=1,
            le=bounds.DEPTH,
            description="k: blocks joined per stage, ending at its last; 3 on CIFAR, 4 on ImageNet",
        ),
    ] = 3
    aggregate: Annotated[
        Literal["conv", "mean_std"], Field(description="trained 1x1 convolution, or its closed form, a weighted mean")
    ] = "conv"
    transport: Annotated[
        float, Field(ge=0, le=bounds.WEIGHT, description="lambda_ot: extra weight of layers that vary more")
    ] = 1.0
    lr: Annotated[
        float,
        Field(ge=bounds.RATE_LEAST, le=bounds.RATE, description="learning rate of the aggregation (SGD, momentum 0.9)"),
    ] = 0.1
    drops: Annotated[
        tuple[Annotated[int, Field(ge=1, le=bounds.STEPS)], ...],
        Field(max_length=bounds.LIST_LENGTH, description="numbers of steps after which that rate falls to a tenth"),
    ] = ()
    penalty: Annotated[
        Literal["tube", "gate"], Field(description="tube: distance beyond tau; gate: distance where it is beyond tau")
    ] = "tube"
    power: Annotated[int, Field(ge=1, le=2, description="p: power of the distance")] = 1
    nu: Annotated[float, Field(gt=0, lt=1, description="share of residuals beyond tau (exact at power 1)")] = 0.3
    kappa: Annotated[
        float, Field(ge=0, le=bounds.WEIGHT, description="the gate strengthens what passes by 1 + kappa")
    ] = 0.0

    student_needs: ClassVar[frozenset[str]] = frozenset({"stages"})
    teacher_needs: ClassVar[frozenset[str]] = frozenset({"blocks"})

    def dead_knobs(self) -> frozenset[str]:
        """The closed form is not trained; only the gate strengthens."""
        trained = frozenset({"lr", "drops"}) if self.aggregate == "mean_std" else frozenset[str]()
        return trained | (frozenset({"kappa"}) if self.penalty == "tube" else frozenset())

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        count = pair_stages("knowledge_representing", student, teacher, self.stages)
        assert teacher is not None
        if len(teacher.blocks) != len(teacher.stages) or not all(teacher.blocks):
            raise UserError(
                "terms.knowledge_representing joins neighbouring blocks of the teacher, but the teacher shows no "
                "blocks; take the term away, or take a teacher of hksd's own families"
            )
        return KnowledgeRepresenting(self, student.stages[-count:], teacher, count)


def identity_map(x: Tensor, like: Tensor) -> Tensor:
    """Resize a map (N, F, H, W) to the height and width of `like`, and pad (or cut) its channels to those of `like`."""
    height, width = like.shape[2:]
    if x.shape[2:] != like.shape[2:]:
        smaller = x.shape[2] >= height
        x = F.adaptive_avg_pool2d(x, (height, width)) if smaller else F.interpolate(x, (height, width), mode="nearest")
    return F.pad(x, (0, 0, 0, 0, 0, like.shape[1] - x.shape[1]))


def transport_weights(maps: list[Tensor], transport: float) -> list[Tensor]:
    """``1 + transport * std(F_i) / mean_i std(F_i)`` of each map, a scalar."""
    spread = torch.stack([one.float().std(correction=0) for one in maps])
    return list(1 + transport * spread / spread.mean().clamp_min(SMALLEST))


def aggregation_loss(aggregate: Tensor, maps: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Weighted mean over maps (N, F, H, W) of their squared distance from `aggregate`, by the last map's mean square.

    The division makes one learning rate fit every network (RECONSTRUCTED, like the rest).
    """
    each = [weight * F.mse_loss(aggregate, one) for weight, one in zip(weights, maps, strict=True)]
    return torch.stack(each).mean() / maps[-1].square().mean().clamp_min(SMALLEST)


def weighted_mean(maps: list[Tensor], weights: list[Tensor]) -> Tensor:
    """What minimises `aggregation_loss` among all maps: the closed form of the aggregation."""
    total = torch.stack(weights).sum()
    return torch.stack([weight.to(one.dtype) * one for weight, one in zip(weights, maps, strict=True)]).sum(0) / total


def tube_penalty(residual: Tensor, tau: Tensor, nu: float, power: int = 1) -> Tensor:
    """``mean max(|r| - tau, 0)^p + nu tau``: no gradient inside the tube, and a tube that does not run away."""
    return (residual.abs() - tau).clamp_min(0).pow(power).mean() + nu * tau


def gate_penalty(residual: Tensor, tau: Tensor, nu: float, power: int = 1, kappa: float = 0.0) -> Tensor:
    """``(1 + kappa) mean |r|^p [|r| >= tau]``; tau learns by `tube_penalty` of the residual as a constant.

    The gradient of the distance passes, strengthened by 1 + kappa, where the residual is beyond tau, and only there.
    """
    size = residual.abs()
    beyond = (size >= tau).detach()
    return (1 + kappa) * (size.pow(power) * beyond).mean() + tube_penalty(residual.detach(), tau, nu)


class Aggregation(nn.Module):
    """A_j, a 1x1 convolution of k joined maps of F channels; it starts as their mean."""

    def __init__(self, maps: int, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(maps * channels, channels, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(channels).repeat(1, maps)[:, :, None, None] / maps)
            self.conv.bias.zero_()  # type: ignore[union-attr]

    def forward(self, maps: list[Tensor]) -> Tensor:
        """maps: k times (N, F, H, W)."""
        result: Tensor = self.conv(torch.cat(maps, 1))
        return result


class KnowledgeRepresenting(Term):
    """The student's adaptors and thresholds, which learn with it, and the aggregations, which learn in `own_step`.

    Args:
        config: knobs.
        mine: channels of the student's compared stages.
        teacher: shapes of the teacher.
        count: compared stages, counted from the last one.
    """

    def __init__(self, config: KnowledgeRepresentingConfig, mine: tuple[int, ...], teacher: TapShapes, count: int):
        super().__init__()
        self.config = config
        goals, ends = teacher.stages[-count:], list(accumulate(len(stage) for stage in teacher.blocks))[-count:]
        # Positions among all blocks of the teacher: those of one stage may reach into the one below.
        self.windows = [range(max(0, end - config.neighbours), end) for end in ends]
        self.adaptors = nn.ModuleList(nn.Conv2d(one, goal, 1) for one, goal in zip(mine, goals, strict=True))
        self.thresholds = nn.Parameter(torch.zeros(count))  # tau = softplus of these
        self.aggregations = nn.ModuleList()
        self.optimizer: torch.optim.Optimizer | None = None
        if config.aggregate == "conv":
            self.aggregations.extend(
                Aggregation(len(window), goal) for window, goal in zip(self.windows, goals, strict=True)
            )
            self.optimizer = torch.optim.SGD(
                self.aggregations.parameters(), lr=config.lr, momentum=0.9, weight_decay=1e-5
            )
        self.steps_done = 0

    def joint_parameters(self) -> list[nn.Parameter]:
        """Adaptors and thresholds; the aggregation has its own optimiser."""
        return [*self.adaptors.parameters(), self.thresholds]

    def get_extra_state(self) -> dict[str, Any]:
        """State of the aggregation's optimiser and the number of its steps."""
        return {"optimizer": self.optimizer.state_dict() if self.optimizer else None, "steps": self.steps_done}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See `get_extra_state`."""
        self.steps_done = state["steps"]
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])

    def own_step(self, student: Out, teacher: Out | None, target: Tensor) -> dict[str, Tensor]:
        """Train the aggregation (Eq 9); set the thresholds on the first batch. Returns its loss and their mean."""
        groups = self._groups(require_teacher(teacher))
        scalars = {}
        if self.optimizer is not None:
            losses = []
            for module, maps in zip(self.aggregations, groups, strict=True):
                weights = transport_weights(maps, self.config.transport)
                losses.append(aggregation_loss(module(maps), maps, weights))
            loss = torch.stack(losses).sum()
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr * 0.1 ** sum(self.steps_done >= drop for drop in self.config.drops)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            scalars["aggregation_loss"] = loss.detach()
        with torch.no_grad():
            if not self.steps_done:
                sizes = torch.stack([one.abs().mean() for one in self._residuals(student, groups)])
                sizes = sizes.float().clamp_min(SMALLEST)
                self.thresholds.copy_(sizes + torch.log(-torch.expm1(-sizes)))  # softplus of it is `sizes`
            self.steps_done += 1
            return scalars | {"threshold": F.softplus(self.thresholds).mean()}

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """Eq 10 without the posterior loss (that is `kd`): the penalty, summed over stages."""
        config, total = self.config, torch.zeros((), device=target.device)
        residuals = self._residuals(student, self._groups(require_teacher(teacher)))
        for residual, tau in zip(residuals, F.softplus(self.thresholds), strict=True):
            if config.penalty == "gate":
                total = total + gate_penalty(residual, tau, config.nu, config.power, config.kappa)
            else:
                total = total + tube_penalty(residual, tau, config.nu, config.power)
        return total

    def _groups(self, teacher: Out) -> list[list[Tensor]]:
        """The neighbouring maps of every compared stage, each like the map of the stage's end."""
        blocks = [block.detach() for stage in teacher.blocks for block in stage]
        return [[identity_map(blocks[i], blocks[window[-1]]) for i in window] for window in self.windows]

    def _residuals(self, student: Out, groups: list[list[Tensor]]) -> list[Tensor]:
        """Adapted student map minus aggregate, both at the smaller of their sizes; the aggregate is a constant."""
        residuals = []
        stages = student.stages[-len(groups) :]
        for number, (adaptor, stage, maps) in enumerate(zip(self.adaptors, stages, groups, strict=True)):
            with torch.no_grad():
                if self.aggregations:
                    goal = self.aggregations[number](maps)
                else:
                    goal = weighted_mean(maps, transport_weights(maps, self.config.transport))
            mine, goal = same_grid(adaptor(stage), goal)
            residuals.append(mine - goal)
        return residuals
