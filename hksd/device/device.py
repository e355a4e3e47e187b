"""The device of a run, and a stretch of work that leaves no trace on threads and random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hksd.device import process
from hksd.errors import UserError


def resolve_device(name: str) -> torch.device:
    """Turn ``auto | cpu | cuda | cuda:N`` into a device.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"train.device={name}: this machine has {found} CUDA device(s); use auto or cpu")
    return device


@contextmanager
def isolated(seed: int, threads: int, device: torch.device) -> Iterator[None]:
    """Give a run its own random states and number of threads; the caller's come back, with all settings of torch."""
    devices = [device] if device.type == "cuda" else []
    with process.restored(seed, devices):
        torch.set_num_threads(threads)
        yield
