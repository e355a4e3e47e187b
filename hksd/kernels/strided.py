"""Strided 1x1 convolutions of few channels, kept from a fault of oneDNN that writes outside of its memory.

The gradient of their filters, in single precision on maps in the order ``channels_last``, writes behind a buffer of its
own: up to some 100 KB, which ends the process now or spoils its numbers. Seen in torch 2.13 (oneDNN 3.12) by guard
bytes behind every block of memory: with AVX2 for fewer than 8 channels, with AVX-512 for fewer than 16 (there on maps
of 56 pixels and more); for strides of 2 and 4, and of 3 on some sizes. Other kernels, orders and precisions, and the
other gradient, are sound. Taking the positions out first, and convolving them with a stride of 1, gives the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

FEW = 16  # channels: the numbers in a register of AVX-512


def at_risk(filters: torch.Size, stride: tuple[int, ...]) -> bool:
    """Whether oneDNN may err on the gradient of filters (F_out, F_in, K, K) with such strides."""
    return filters[2:] == (1, 1) and max(stride) > 1 and filters[1] < FEW


def convolve_strided(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``conv(x)``, where it is at risk by way of the positions that it looks at.

    Args:
        conv: any convolution.
        x: maps (N, F, H, W).
    """
    stride = tuple(conv.stride)
    if not at_risk(conv.weight.shape, stride) or x.device.type != "cpu" or torch.compiler.is_compiling():
        return nn.Conv2d.forward(conv, x)
    if any(border := conv._reversed_padding_repeated_twice):
        x = F.pad(x, border, mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode)
    return F.conv2d(x[:, :, :: stride[0], :: stride[1]], conv.weight, conv.bias, groups=conv.groups)


class Strided(nn.Conv2d):
    """A convolution that goes by way of `convolve_strided`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name that nn.Conv2d has
        """input: maps (N, F, H, W)."""
        return convolve_strided(self, input)


def guard(network: nn.Module) -> None:
    """Let every convolution in `network` that is at risk go by way of `convolve_strided`; names and weights stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and at_risk(module.weight.shape, tuple(module.stride)):
            module.__class__ = Strided


class Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, whether a convolution at risk was called; also one that is no module.

    Attributes:
        at_risk: it was.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.at_risk = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.convolution.default:
            self.at_risk = self.at_risk or at_risk(args[1].shape, tuple(args[3]))
        return func(*args, **(kwargs or {}))
