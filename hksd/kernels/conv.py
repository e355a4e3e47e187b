"""3x3 convolutions of few channels in bfloat16, by kernels that take maps as they lie.

Libraries are made for wide networks; see conv_maps.c. The filters are taken in single precision, rounded where they
are laid out for the kernel, and their gradient is returned in single precision, where torch would round it too.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from hksd.kernels.native import library
from hksd.kernels.norm import like, ordinary, watched

EACH = 4  # neighbouring results that are computed together, see conv_maps.c
MOST_FILTERS = 128 * 128  # beyond, and for larger images, what is laid out anew leaves the caches
MOST_ELEMENTS = 1 << 18  # of the maps of one image


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``conv(x)`` of maps (N, F, H, W)."""
    y: Tensor = (
        _Convolve.apply(x, conv.weight, conv.stride[0])  # type: ignore[no-untyped-call]
        if _fits(conv, x)
        else conv(x)
    )
    return y


def _fits(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether the kernels do for these maps what torch would do, and faster."""
    return (
        x.dtype == torch.bfloat16
        and ordinary(x)
        and type(conv) is nn.Conv2d
        and conv.kernel_size == (3, 3)
        and conv.stride in ((1, 1), (2, 2))
        and conv.padding == conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and conv.groups == 1
        and conv.bias is None
        and _sizes_fit(conv.in_channels, conv.out_channels, x.shape, conv.stride[0])
        and x.is_contiguous(memory_format=torch.channels_last)
        and ordinary(conv.weight)
        and conv.weight.dtype == torch.float32
        and conv.weight.is_contiguous(memory_format=torch.channels_last)
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and not (conv._forward_hooks or conv._forward_pre_hooks)
        and not watched()
        and available()
    )


def _sizes_fit(f_in: int, f_out: int, shape: torch.Size, stride: int) -> bool:
    images, channels, height, width = shape
    return (
        channels == f_in
        and f_in % 2 == f_out % 2 == 0
        and min(height, width) >= stride
        and (images >= EACH or (images > 0 and width >= EACH * stride))
        and f_in * f_out <= MOST_FILTERS
        and max(f_in, f_out) * height * width <= MOST_ELEMENTS
    )


@functools.cache
def _faster() -> bool:
    """Whether the processor has the instructions of the kernels and none that beat them."""
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def available() -> bool:
    """Whether the kernels are there and worth it on this processor."""
    found = library()
    return found is not None and _faster() and hasattr(found, "conv_forward")


class _Convolve(torch.autograd.Function):
    """See `convolve`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        images, _, height, width = x.shape
        size = images, weight.shape[0], -(-height // stride), -(-width // stride)
        y = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
        _run("conv_forward", (x, weight, y), x, weight, stride)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # gradients of these gradients are wanted
            return (*_differentiable(ctx, grads[0]), None)
        grad = like(grads[0], x)
        gx = torch.empty_like(x) if wants_x else None
        if gx is not None:
            _run("conv_backward_maps", (grad, weight, gx), x, weight, ctx.stride)
        gweight = torch.empty_like(weight) if wants_weight else None
        if gweight is not None:
            _run("conv_backward_filters", (x, grad, gweight), x, weight, ctx.stride)
        return gx, gweight, None


def _run(name: str, parts: tuple[Tensor, ...], x: Tensor, weight: Tensor, stride: int) -> None:
    images, f_in, height, width = x.shape
    sizes = images, height, width, f_in, weight.shape[0], stride
    kernel = getattr(library(), name)
    if kernel(*(part.data_ptr() for part in parts), *sizes, torch.get_num_threads()):
        raise MemoryError("convolution: no memory for its filters and sums")


def _differentiable(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gradients by torch's operations, so that they can be differentiated again."""
    x, weight = ctx.saved_tensors
    geometry = [ctx.stride] * 2, [1, 1], [1, 1], False, [0, 0], 1
    wanted = [*ctx.needs_input_grad[:2], False]
    filters = weight.to(x.dtype)
    gx, gweight, _ = torch.ops.aten.convolution_backward(grad.to(x.dtype), x, filters, None, *geometry, wanted)
    return gx, None if gweight is None else gweight.to(weight.dtype)
