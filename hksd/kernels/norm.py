"""Batch normalisation, sum with a residual and ReLU as one operation.

On the CPU these are bound by memory, and torch runs them one after the other. The kernel reads and writes each map as
few times as the mathematics allow: twice forward, twice backward. Everywhere else (other devices, other layouts,
export, transforms of functions) the same is computed by torch's operations.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hksd.kernels.native import library

HALF, RELU, BATCH = 1, 2, 4  # flags of norm.c
MAPS = (torch.bfloat16, torch.float32)


def norm_act(norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None = None, *, relu: bool = True) -> Tensor:
    """``relu(norm(x) + residual)`` with the modes, statistics and gradients of these torch operations.

    Args:
        norm: the normalisation; its running statistics are updated while it is in training mode.
        x: maps (N, F, H, W).
        residual: maps of the same shape, or None.
        relu: end with a ReLU.
    """
    if not _fits(norm, x, residual):
        return _plain(norm, x, residual, relu)
    batch = norm.training
    if batch:
        norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.momentum
    y: Tensor = _NormAct.apply(  # type: ignore[no-untyped-call]
        x, residual, norm.weight, norm.bias, statistics, (batch, relu)
    )
    return y


def _plain(norm: nn.Module, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    y: Tensor = norm(x)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y


def _fits(norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None) -> bool:
    """Whether the kernel does for these inputs what torch would do."""
    return (
        ordinary(x)
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and (residual is None or (ordinary(residual) and residual.shape == x.shape))
        and type(norm) is nn.BatchNorm2d
        and norm.affine
        and norm.momentum is not None
        and norm.running_mean is not None
        and norm.num_features == x.shape[1]
        and norm.weight.dtype == norm.running_mean.dtype == torch.float32
        and not (norm.training and x.numel() == x.shape[1])  # torch raises: one value per channel
        and not (norm._forward_hooks or norm._forward_pre_hooks)
        and not watched()
        and library() is not None
    )


def ordinary(x: Tensor) -> bool:
    """Whether `x` is a real map in memory, no stand-in of a transform or an export."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype in MAPS
        and x.dim() == 4
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def watched() -> bool:
    """Whether something records or replaces torch's operations, which would not see the kernel."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """`tensor` with type and layout of the maps `model`."""
    return tensor.to(model.dtype).contiguous(memory_format=torch.channels_last)


def _size(x: Tensor) -> tuple[int, int]:
    """Rows and channels of maps."""
    return x.numel() // x.shape[1], x.shape[1]


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("normalisation: no memory for its sums")


class _NormAct(torch.autograd.Function):
    """See `norm_act`; the statistics are (running_mean, running_var, eps, momentum), the modes (batch, relu)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        statistics: tuple[Tensor, Tensor, float, float],
        modes: tuple[bool, bool],
    ) -> Tensor:
        running_mean, running_var, eps, momentum = statistics
        batch, relu = modes
        kernels = library()
        assert kernels is not None
        if residual is not None:
            residual = like(residual, x)
        y = torch.empty_like(x)
        mean, invstd = torch.empty_like(weight), torch.empty_like(weight)
        flags = (x.dtype == torch.bfloat16) * HALF | relu * RELU | batch * BATCH
        parts = (x, residual, y, weight, bias, running_mean, running_var, mean, invstd)
        _check(kernels.norm_forward(*map(_address, parts), *_size(x), eps, momentum, flags, torch.get_num_threads()))
        gate = y if relu and residual is not None else None  # without a residual the sign is that of the normalised x
        ctx.save_for_backward(x, gate, weight, bias, mean, invstd)
        ctx.flags, ctx.eps = flags, eps
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, weight, bias, mean, invstd = ctx.saved_tensors
        wants_x, wants_residual = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # gradients of these gradients are wanted
            return (*_differentiable(ctx, grads[0]), None, None)
        kernels = library()
        assert kernels is not None
        grad = like(grads[0], x)
        gx = torch.empty_like(x) if wants_x else None
        masked = torch.empty_like(x) if gate is not None else None
        gweight, gbias = torch.empty_like(weight), torch.empty_like(bias)
        parts = (grad, x, gate, masked, gx, weight, bias, mean, invstd, gweight, gbias)
        _check(kernels.norm_backward(*map(_address, parts), *_size(x), ctx.flags, torch.get_num_threads()))
        residual = (grad if masked is None else masked) if wants_residual else None
        return gx, residual, gweight, gbias, None, None


def _differentiable(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients by torch's operations, so that they can be differentiated again."""
    x, gate, weight, bias, mean, invstd = ctx.saved_tensors
    shape = (1, -1, 1, 1)
    wide = x.to(weight.dtype)
    if ctx.flags & BATCH:
        variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        invstd = (variance + ctx.eps).rsqrt()
    normal = (wide - mean.view(shape)) * invstd.view(shape)
    if ctx.flags & RELU:
        sign = gate if gate is not None else normal * weight.view(shape) + bias.view(shape)
        grad = grad.masked_fill(sign <= 0, 0)
    slope = grad.to(weight.dtype)
    gbias, gweight = slope.sum((0, 2, 3)), (slope * normal).sum((0, 2, 3))
    scale = (weight * invstd).view(shape)
    if ctx.flags & BATCH:
        count = _size(x)[0]
        slope = slope - (gbias.view(shape) + normal * gweight.view(shape)) / count
    gx = (slope * scale).to(x.dtype)
    return gx, grad if ctx.needs_input_grad[1] else None, gweight, gbias


__all__ = ["norm_act"]
