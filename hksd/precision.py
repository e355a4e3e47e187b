"""The arithmetic of a training step: bfloat16 where the device is fast at it, else single precision.

Weights, statistics, losses and the optimiser stay in single precision; what becomes bfloat16 are maps and matrix
products (autocast). Evaluation is always in single precision, since the exported student must repeat its numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from hksd.errors import UserError

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
