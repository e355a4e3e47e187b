"""Two convolutions of the same maps, of which the second looks at every stride-th position alone.

A strided 1x1 convolution is bound by memory: torch walks over all positions of its input, fills a gradient of that size
with zeros nearly everywhere, and sums it with that of the other convolution. Here the positions are taken out first,
and their gradient is added where they lie.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hksd.kernels.conv import convolve
from hksd.kernels.native import library
from hksd.kernels.norm import like, ordinary, watched
from hksd.kernels.strided import Strided


def branch(main: nn.Conv2d, side: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """``main(x), side(x)``.

    Args:
        main: any convolution.
        side: a 1x1 convolution beside it.
        x: maps (N, F, H, W).
    """
    if not _fits(side, x):
        return convolve(main, x), side(x)
    whole, taken = _Branch.apply(x, side.stride[0])  # type: ignore[no-untyped-call]
    return convolve(main, whole), F.conv2d(taken, side.weight, side.bias)


def _fits(side: nn.Conv2d, x: Tensor) -> bool:
    return (
        ordinary(x)
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.requires_grad
        and type(side) in (nn.Conv2d, Strided)
        and side.kernel_size == (1, 1)
        and side.stride[0] == side.stride[1] > 1
        and side.padding == (0, 0)
        and side.groups == 1
        and not (side._forward_hooks or side._forward_pre_hooks)
        and not watched()
        and library() is not None
    )


class _Branch(torch.autograd.Function):
    """Maps, and their every stride-th position. The maps must go into one convolution and nowhere else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        ctx.stride, ctx.shape = stride, x.shape
        taken = x[:, :, ::stride, ::stride].contiguous(memory_format=torch.channels_last)
        return x.view_as(x), taken

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        whole, taken = grads
        if torch.is_grad_enabled():  # gradients of these gradients are wanted
            spread = whole.new_zeros(ctx.shape)
            spread[:, :, :: ctx.stride, :: ctx.stride] = taken
            return whole + spread, None
        kernels = library()
        assert kernels is not None
        total = like(whole, whole)  # in place: the convolution made it, and nobody else has it
        taken = like(taken, total)
        images, channels, height, width = total.shape
        kernels.add_at_stride(
            total.data_ptr(),
            taken.data_ptr(),
            *(images, height, width, channels, ctx.stride),
            total.dtype == torch.bfloat16,
            torch.get_num_threads(),
        )
        return total, None
