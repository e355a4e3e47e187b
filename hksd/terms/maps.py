"""What the terms on feature maps and embeddings share: precision, unit vectors, equal grids, adaptors of channels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hksd.kernels import aligned
from hksd.models.taps import Out

P = ParamSpec("P")
HALF = (torch.float16, torch.bfloat16)
TINY = 1e-12  # a norm below this counts as none


def full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Let a function of tensors compute in single precision or better, also under autocast.

    Sums of squares and differences of nearly equal numbers lose their meaning in half precision, and autocast would
    take matrix products there whatever their inputs are.
    """

    @functools.wraps(loss)
    def run(*args: P.args, **options: P.kwargs) -> Tensor:
        wide: Any = [arg.float() if isinstance(arg, Tensor) and arg.dtype in HALF else arg for arg in args]
        with torch.autocast(wide[0].device.type, enabled=False):
            return loss(*wide, **options)

    return run


def unit(vectors: Tensor, dim: int) -> Tensor:
    """Vectors along `dim` at length 1; a vector without length stays 0 and gets no gradient (instead of a huge one)."""
    length = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return torch.div(vectors, length.masked_fill(length <= TINY, torch.inf))


def rows(maps: Tensor) -> Tensor:
    """Maps (N, F, H, W) as rows (N, F * H * W), in the order of their memory: a copy is made of neither format."""
    if maps.dim() == 4 and maps.is_contiguous(memory_format=torch.channels_last):
        maps = maps.permute(0, 2, 3, 1)
    return maps.flatten(1)


def same_grid(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Pool two maps (N, F, H, W) to the smaller of both heights and widths by adaptive averages."""
    grid = (min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3]))
    first, second = (m if m.shape[2:] == grid else F.adaptive_avg_pool2d(m, grid) for m in (one, other))
    return first, second


def adaptor(channels: int, goal: int) -> nn.Module:
    """A 1x1 convolution from `channels` to `goal`, or nothing where they are equal. It learns with the student."""
    return nn.Identity() if channels == goal else nn.Conv2d(channels, goal, 1, bias=False)


def last_stages(student: Out, teacher: Out, count: int) -> list[tuple[Tensor, Tensor]]:
    """The last `count` stages of both networks, paired, each (N, F, H, W)."""
    mine = [aligned(stage) for stage in student.stages[-count:]]
    return list(zip(mine, teacher.stages[-count:], strict=True))
