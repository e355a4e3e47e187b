"""Memory of a run: the layout of weights, a state to go back to, and where large tensors on the CPU come from."""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Callable

import torch
from torch import nn

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


@functools.cache
def keep_freed_memory() -> bool:
    """Let malloc reuse large blocks in place of returning them to the system; returns whether it obeyed.

    By default glibc maps every large tensor anew, and the system clears its pages: up to half of the time of a step.
    Costs the peak memory of the process until its end. Does nothing where the C library is another one.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))


def lay_out(network: nn.Module, layout: torch.memory_format) -> None:
    """Store the filters (F_out, F_in, H, W) of a network in another order, in place; maps then follow them."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            # Not `contiguous`, which leaves filters of one channel alone: maps would not follow them.
            parameter.data = torch.empty_like(parameter, memory_format=layout).copy_(parameter.data)


def snapshot(network: nn.Module) -> Callable[[], None]:
    """Remember the numbers of a network; returns what puts them back, without its own ideas of loading."""
    saved = [(tensor, tensor.detach().clone()) for tensor in (*network.parameters(), *network.buffers())]

    @torch.no_grad()
    def restore() -> None:
        for tensor, value in saved:
            tensor.copy_(value)

    return restore
