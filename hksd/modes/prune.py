"""Pruning while training, by the proximal gradient method, with a debias phase at the end.

After Lee and Lee 2021, Appl. Sci. 11(3) 1093 (CONFIRMED: pruning and distillation in one problem, solved by proximal
gradient steps). RECONSTRUCTED: ``w <- soft(w - eta g, eta lambda)`` with ``soft(v, k) = sign(v) max(|v| - k, 0)``; per
filter the block form on its norm, scaled by the square root of its size (group lasso, Yuan and Lin 2006).

Pruned weights are zeros in the same dense network: its parameters and FLOPs as counted by `hksd.models.size` stay, the
number of non-zero weights is reported beside them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hksd import bounds
from hksd.schema import Section


@dataclass(frozen=True, kw_only=True)
class PruneConfig(Section):
    """Sparse weights of convolutions and linear layers; usual strength 1e-6 to 1e-3 (RECONSTRUCTED)."""

    granularity: Annotated[
        Literal["weight", "filter"], Field(description="what becomes zero: single weights, or filters of convolutions")
    ] = "weight"
    strength: Annotated[
        float, Field(gt=0, le=bounds.FACTOR, description="lambda: factor on |w|_1, or on the norms of the filters")
    ] = 1e-4
    target_sparsity: Annotated[
        float | None, Field(gt=0, lt=1, description="share of zeros forced when the debias phase begins; null = none")
    ] = None
    debias_fraction: Annotated[
        float, Field(gt=0, lt=1, description="share of the epochs at the end with fixed zeros and without lambda")
    ] = 0.25


def soft_threshold(weight: Tensor, amount: float) -> Tensor:
    """``sign(w) max(|w| - amount, 0)`` of every number."""
    shrunk: Tensor = weight.sign() * (weight.abs() - amount).clamp(min=0)
    return shrunk


def block_soft_threshold(weight: Tensor, amount: float) -> Tensor:
    """Shorten every filter (F_out, ...) by `amount` times the square root of its size; short ones become 0."""
    norms = weight.flatten(1).norm(dim=1)
    keep = (1 - amount * math.sqrt(weight[0].numel()) / norms.clamp(min=1e-12)).clamp(min=0)
    shrunk: Tensor = weight * keep.view(-1, *[1] * (weight.dim() - 1))
    return shrunk


class Prune:
    """Acts on the weights of one student after every optimiser step.

    Args:
        config: form and strength.
        student: network that is pruned in place.
        epochs: length of the run.
    """

    def __init__(self, config: PruneConfig, student: nn.Module, epochs: int):
        kinds = (nn.Conv2d,) if config.granularity == "filter" else (nn.Conv2d, nn.Linear)
        found = [module.weight for module in student.modules() if isinstance(module, kinds)]
        self.weights = list({id(weight): weight for weight in found}.values())  # tied ones once
        self.student, self.config = student, config
        self.debias_epoch = min(epochs - 1, math.ceil(epochs * (1 - config.debias_fraction)))
        self.masks: list[Tensor] = []

    @torch.no_grad()
    def begin(self, epoch: int) -> None:
        """Call before `epoch` (from 0): at the start of the debias phase the zeros are fixed."""
        if epoch < self.debias_epoch or self.masks:
            return
        if epoch == self.debias_epoch and self.config.target_sparsity is not None:
            self._force(self.config.target_sparsity)
        self.masks = [(weight != 0).to(weight.dtype) for weight in self.weights]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Call after an optimiser step with learning rate `lr`."""
        if self.masks:
            for weight, mask in zip(self.weights, self.masks, strict=True):
                weight.mul_(mask)
            return
        shrink = block_soft_threshold if self.config.granularity == "filter" else soft_threshold
        for weight in self.weights:
            weight.copy_(shrink(weight, lr * self.config.strength))

    def state_dict(self) -> dict[str, Any]:
        """The fixed zeros, for the checkpoint: a weight that training brings to 0 by chance is none of them."""
        return {"masks": [mask.bool() for mask in self.masks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`; without fixed zeros in it they are taken from the weights (see `begin`)."""
        masks = state.get("masks", [])
        self.masks = [mask.to(weight) for mask, weight in zip(masks, self.weights, strict=False)]

    def scalars(self) -> dict[str, float]:
        """Share of zeros among the weights it acts on, and the non-zero parameters of the student."""
        zeros = sum(int((weight == 0).sum()) for weight in self.weights)
        sparsity = zeros / sum(weight.numel() for weight in self.weights)
        return {
            "prune/sparsity": sparsity,
            "prune/nonzero_params": float(sum(p.numel() for p in self.student.parameters()) - zeros),
        }

    def _force(self, sparsity: float) -> None:
        """Zero the smallest weights (or filters, by their root mean square) until `sparsity` of them are 0."""
        if self.config.granularity == "weight":
            sizes = torch.cat([weight.abs().flatten() for weight in self.weights])
        else:
            sizes = torch.cat([weight.flatten(1).square().mean(1).sqrt() for weight in self.weights])
        count = round(sparsity * len(sizes))
        drop = torch.zeros_like(sizes, dtype=torch.bool)
        drop[sizes.argsort(stable=True)[:count]] = True
        start = 0
        for weight in self.weights:
            width = weight.numel() if self.config.granularity == "weight" else len(weight)
            part = drop[start : start + width]
            if self.config.granularity == "weight":
                weight[part.view_as(weight)] = 0
            else:
                weight[part] = 0
            start += width
