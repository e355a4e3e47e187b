"""What a network costs, known before it is trained: parameters and FLOPs of the deployed part."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from hksd import models
from hksd.config import StudentConfig, TeacherConfig


@dataclass(frozen=True)
class Size:
    """Cost of a network.

    Attributes:
        params: number of weights of the deployed network.
        flops: FLOPs of one image's forward pass, 2 x multiply-accumulates of convolutions and linear layers.
    """

    params: int
    flops: int

    @property
    def mflops(self) -> float:
        """FLOPs in millions (2 x MACs)."""
        return self.flops / 1e6


def size(config: StudentConfig | TeacherConfig, *, in_channels: int, classes: int, image_size: int) -> Size:
    """Size of a network for square images of `image_size` pixels, computed on the meta device."""
    return _size(config.model, config.width, config.descriptor_dim, in_channels, classes, image_size)


@functools.cache
def _size(model: str, width: float, descriptor: int | None, in_channels: int, classes: int, image_size: int) -> Size:
    with torch.device("meta"):
        network = models.build(
            model, in_channels=in_channels, classes=classes, width=width, descriptor=descriptor, image_size=image_size
        ).eval()
        image = torch.empty(1, in_channels, image_size, image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return Size(sum(p.numel() for p in network.parameters()), counter.get_total_flops())
