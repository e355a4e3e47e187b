"""A frozen teacher with its frozen estimators."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from hksd.attention import HierarchicalAttention
from hksd.models.taps import Out, TappedNet

FAMILIAR = "its accuracy was measured on images that it may have been trained on"


@dataclass(frozen=True)
class Teacher:
    """A frozen teacher with its frozen estimators.

    Attributes:
        model: the network, in eval mode, without gradients.
        attention: its estimators, or None when no term needs squeezed vectors.
        accuracy: its accuracy on the validation split.
        attention_accuracy: accuracy of the linear head on each level's vectors, on the validation split.
        key: hash of what made it.
        cached: it was read from the cache, not trained.
        familiar: its accuracy was measured on images that it may have been trained on: it was loaded, and nothing says
            that it was trained on these images with this split.
        remarks: what is to be told of it, each a line.
    """

    model: TappedNet
    attention: HierarchicalAttention | None
    accuracy: float
    attention_accuracy: tuple[float, ...]
    key: str
    cached: bool
    familiar: bool = False
    remarks: tuple[str, ...] = ()

    @torch.no_grad()
    def __call__(self, images: Tensor, needs: frozenset[str]) -> Out:
        """What the teacher says about images (N, channels, H, W): its taps, and squeezed vectors if in `needs`."""
        out = self.model.taps(images).widened()
        if "squeezed" in needs:
            assert self.attention is not None
            out = dataclasses.replace(out, squeezed=self.attention(out))
        if "blocks" not in needs:
            out = dataclasses.replace(out, blocks=())  # many and large: let them go
        return out

    def to(self, device: torch.device) -> Teacher:
        """Move the networks to `device`."""
        self.model.to(device)
        if self.attention is not None:
            self.attention.to(device)
        return self
