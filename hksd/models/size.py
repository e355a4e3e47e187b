"""What a network costs, known before it is trained: parameters, FLOPs and memory of the deployed part."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from hksd import models
from hksd.models import NetworkSpec, footprint
from hksd.models.taps import Grids


@dataclass(frozen=True)
class Size:
    """Cost of a network.

    Attributes:
        params: number of weights of the deployed network.
        flops: FLOPs of one image's forward pass, 2 x multiply-accumulates of convolutions and linear layers.
        peak_memory: bytes for the inference of one image in float32: weights, and the largest sum of activations that
            are alive together (see `hksd.models.footprint.Activations` for what counts).
    """

    params: int
    flops: int
    peak_memory: int

    @property
    def mflops(self) -> float:
        """FLOPs in millions (2 x MACs)."""
        return self.flops / 1e6

    @property
    def peak_memory_mb(self) -> float:
        """Peak memory in MB of 10^6 bytes."""
        return self.peak_memory / 1e6


def size_of(spec: NetworkSpec, *, in_channels: int, classes: int, image_size: int) -> Size:
    """Size of a network for square images of `image_size` pixels, computed on the meta device where that works.

    Raises:
        UserError: the network cannot be built for such images.
    """
    return _look(spec, in_channels, classes, image_size)[0]


def grids_of(spec: NetworkSpec, *, in_channels: int, classes: int, image_size: int) -> Grids:
    """Height and width of the maps of every stage, for the arguments of `size_of`."""
    return _look(spec, in_channels, classes, image_size)[1]


@functools.cache
def _look(spec: NetworkSpec, in_channels: int, classes: int, image_size: int) -> tuple[Size, Grids]:
    network = models.sketch(spec, in_channels=in_channels, classes=classes, image_size=image_size).eval()
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    pixels = spec.size(image_size)
    image = torch.zeros(1, in_channels, pixels, pixels, device=device)
    activations = footprint.Activations((*network.parameters(), *network.buffers()))
    with torch.no_grad(), activations, FlopCounterMode(display=False) as counter:
        out = network.taps(image)
    memory = footprint.weight_bytes(network) + activations.peak(out.logits)
    size = Size(sum(p.numel() for p in network.parameters()), counter.get_total_flops(), memory)
    return size, tuple((maps.shape[2], maps.shape[3]) for maps in out.stages)
