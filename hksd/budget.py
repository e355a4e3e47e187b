"""What a network costs, known before it is trained: parameters and FLOPs of the deployed part."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from hksd import models
from hksd.config import StudentConfig, TeacherConfig
from hksd.models import NetworkSpec
from hksd.terms.base import Grids


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
    """Size of a network for square images of `image_size` pixels, computed on the meta device where that works.

    Raises:
        UserError: the network cannot be built for such images.
    """
    return _look(config.spec(), in_channels, classes, image_size)[0]


def grids(config: StudentConfig | TeacherConfig, *, in_channels: int, classes: int, image_size: int) -> Grids:
    """Height and width of the maps of every stage, for the arguments of `size`."""
    return _look(config.spec(), in_channels, classes, image_size)[1]


@functools.cache
def _look(spec: NetworkSpec, in_channels: int, classes: int, image_size: int) -> tuple[Size, Grids]:
    network = models.sketch(spec, in_channels=in_channels, classes=classes, image_size=image_size).eval()
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    image = torch.zeros(1, in_channels, image_size, image_size, device=device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        stages = network.taps(image).stages
    size = Size(sum(p.numel() for p in network.parameters()), counter.get_total_flops())
    return size, tuple((maps.shape[2], maps.shape[3]) for maps in stages)
