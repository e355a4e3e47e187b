"""Reductions of maps whose gradients come back in the order of memory that the maps have.

torch returns the gradient of a mean or of a batched product in the order of the images (N, F, H, W) also where the maps
are channels_last. One such gradient, added to those of the network, makes the whole backward pass copy between orders.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hksd.kernels.native import library
from hksd.kernels.norm import ordinary, watched


def average(maps: Tensor) -> Tensor:
    """Mean over the positions of maps (N, F, H, W): (N, F), in single precision or better."""
    if _by_position(maps) is None or watched():
        return maps.mean((2, 3), dtype=_wide(maps))
    mean: Tensor = _Average.apply(maps)  # type: ignore[no-untyped-call]
    return mean


def energy(maps: Tensor) -> Tensor:
    """Mean of the squares over the channels of maps (N, F, H, W): (N, H, W), in single precision or better."""
    if _by_position(maps) is None or watched():
        return maps.to(_wide(maps)).square().mean(1)
    mean: Tensor = _Energy.apply(maps)  # type: ignore[no-untyped-call]
    return mean


def aligned(maps: Tensor) -> Tensor:
    """The same maps, for operations that return gradients in another order: they are put into theirs."""
    if _by_position(maps) is None or not maps.requires_grad or watched():
        return maps
    same: Tensor = _Aligned.apply(maps)  # type: ignore[no-untyped-call]
    return same


def compare(items: Tensor, key: Tensor) -> Tensor:
    """Inner products of P items (N, F, P) with a key (N, F): (N, P)."""
    rows = items.transpose(1, 2)
    if rows.is_contiguous():
        return torch.bmm(rows, key[:, :, None])[:, :, 0]
    return torch.bmm(key[:, None], items)[:, 0]


def blend(items: Tensor, weights: Tensor) -> Tensor:
    """Sum of P items (N, F, P) with weights (N, P): (N, F)."""
    rows = items.transpose(1, 2)
    if rows.is_contiguous():
        return torch.bmm(weights[:, None], rows)[:, 0]
    return torch.bmm(items, weights[:, :, None])[:, :, 0]


def _wide(maps: Tensor) -> torch.dtype:
    return maps.dtype if maps.itemsize >= 4 else torch.float32


def _by_position(maps: Tensor) -> Tensor | None:
    """Maps as rows (N, H * W, F) without a copy, or None where they are not channels_last."""
    if not maps.is_contiguous(memory_format=torch.channels_last):
        return None
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def _native(maps: Tensor) -> bool:
    """Whether the kernels take these channels_last maps."""
    return ordinary(maps) and maps.numel() > 0 and library() is not None


def _as_maps(rows: Tensor, shape: torch.Size) -> Tensor:
    """Rows (N, H * W, F) as channels_last maps of `shape`."""
    return rows.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)


class _Aligned(torch.autograd.Function):
    """See `aligned`."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        return maps.view_as(maps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].contiguous(memory_format=torch.channels_last)


class _Average(torch.autograd.Function):
    """See `average`."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        ctx.shape, ctx.dtype = maps.shape, maps.dtype
        return maps.mean((2, 3), dtype=_wide(maps))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        positions = ctx.shape[2] * ctx.shape[3]
        share = (grads[0] / positions).to(ctx.dtype)
        return _as_maps(share[:, None].expand(-1, positions, -1).contiguous(), ctx.shape)


class _Energy(torch.autograd.Function):
    """See `energy`."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        ctx.save_for_backward(maps)
        images, channels, height, width = maps.shape
        if _native(maps):
            means = maps.new_empty((images, height, width), dtype=torch.float32)
            sizes = images * height * width, channels, maps.dtype == torch.bfloat16, torch.get_num_threads()
            library().energy_forward(maps.data_ptr(), means.data_ptr(), *sizes)  # type: ignore[union-attr]
            return means
        # A norm reads the maps once and squares in the wide type; there is no such sum of squares.
        norm: Tensor = torch.linalg.vector_norm(maps, dim=1, dtype=_wide(maps))
        return norm.square() / channels

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (maps,) = ctx.saved_tensors
        if _native(maps) and not torch.is_grad_enabled():
            slopes, out = grads[0].contiguous(), torch.empty_like(maps)
            sizes = slopes.numel(), maps.shape[1], maps.dtype == torch.bfloat16, torch.get_num_threads()
            library().energy_backward(maps.data_ptr(), slopes.data_ptr(), out.data_ptr(), *sizes)  # type: ignore[union-attr]
            return out
        rows = _by_position(maps)
        assert rows is not None
        slope = (grads[0] * (2 / maps.shape[1])).to(maps.dtype).flatten(1)[:, :, None]
        # A product with ones repeats the slope along the channels many times faster than broadcasting does.
        return _as_maps(rows * torch.bmm(slope, slope.new_ones(len(maps), 1, maps.shape[1])), maps.shape)
