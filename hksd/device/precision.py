"""The arithmetic of a training step: bfloat16 where the device is fast at it, else single precision.

Weights, statistics, losses and the optimiser stay in single precision; what becomes bfloat16 are maps and matrix
products (autocast). Evaluation is always in single precision, since the exported student must repeat its numbers.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from hksd.errors import UserError

log = logging.getLogger(__name__)

PrecisionName = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Precision:
    """How a device computes.

    Attributes:
        device: kind of the device, such as ``cpu``.
        dtype: of maps and matrix products while training: float32 or bfloat16.
        reason: why, in words for people.
        tf32: let a GPU round the factors of single-precision products to 10 bits.
    """

    device: str
    dtype: torch.dtype
    reason: str
    tf32: bool = False

    @property
    def half(self) -> bool:
        """Whether maps are bfloat16."""
        return self.dtype == torch.bfloat16

    def autocast(self, *, fixed_weights: bool = True) -> torch.autocast:
        """Context of a forward pass.

        Args:
            fixed_weights: no weight changes inside, so that each is rounded once.
        """
        return torch.autocast(self.device, torch.bfloat16, enabled=self.half, cache_enabled=fixed_weights)

    @contextmanager
    def matmul(self) -> Iterator[None]:
        """Context of a run: the GPU's products in single precision round as `tf32` says; restored at the end."""
        if self.device != "cuda":
            yield
            return
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32
        matmul.allow_tf32 = cudnn.allow_tf32 = self.tf32
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = before


def resolve(name: PrecisionName, device: torch.device) -> Precision:
    """What ``train.precision`` means on a device.

    Raises:
        UserError: bfloat16 is asked for where it would be emulated, which is slower than single precision.
    """
    kind = device.type
    if name == "float32":
        return Precision(kind, torch.float32, "float32 as asked")
    fast, reason = _bfloat16(device)
    if fast:
        return Precision(kind, torch.bfloat16, reason, tf32=True)
    if name == "bfloat16":
        raise UserError(f"train.precision=bfloat16: {reason}; use auto or float32")
    return Precision(kind, torch.float32, f"float32, since {reason}", tf32=True)


def suited(how: Precision, name: PrecisionName, network: nn.Module, *, in_channels: int, image_size: int) -> Precision:
    """The arithmetic in which a network learns: `how`, or float32 where its gradients in bfloat16 would be wrong.

    oneDNN (seen in torch 2.13, channels_last) leaves a part of the gradient of a convolution's filters unwritten in
    bfloat16 where the map is narrower than the stride: it holds whatever the memory held.

    Args:
        how: arithmetic of the device.
        name: what ``train.precision`` asks for.
        network: the network that is to learn.
        in_channels: channels of an image.
        image_size: height and width of an image, pixels.

    Raises:
        UserError: bfloat16 is asked for.
    """
    if not how.half or how.device != "cpu":
        return how
    narrow = _narrow_convolution(network, in_channels, image_size)
    if narrow is None:
        return how
    reason = f"torch's bfloat16 gradients are wrong where maps are narrower than a stride ({narrow})"
    if name == "bfloat16":
        raise UserError(f"train.precision=bfloat16: {reason}; use auto, float32 or larger images")
    log.warning("training in float32: %s", reason)
    return Precision(how.device, torch.float32, f"float32, since {reason}", how.tf32)


def _narrow_convolution(network: nn.Module, in_channels: int, image_size: int) -> str | None:
    """Name of the first convolution whose map (N, F, H, W) is narrower than its stride."""
    found: list[str] = []

    def look(name: str, conv: nn.Conv2d, arguments: tuple[Any, ...]) -> None:
        if arguments[0].shape[-1] < conv.stride[-1]:
            found.append(name)

    strided = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.stride[-1] > 1]
    hooks = [module.register_forward_pre_hook(functools.partial(look, name)) for name, module in strided]
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, in_channels, image_size, image_size))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _bfloat16(device: torch.device) -> tuple[bool, str]:
    """Whether a device multiplies bfloat16 numbers itself, and what to tell people."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return True, "bfloat16 on this GPU"
        return False, "this GPU has no bfloat16 arithmetic"
    units = [
        unit
        for unit, there in (
            ("AMX", torch.cpu._is_amx_tile_supported()),
            ("AVX512-BF16", torch.cpu._is_avx512_bf16_supported()),
        )
        if there
    ]
    # oneDNN has a say too: it may be missing, or told by the environment to use fewer instructions.
    if units and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return True, f"bfloat16 by {units[0]}"
    return False, "this CPU has no bfloat16 instructions (avx512_bf16 or amx_bf16)"
