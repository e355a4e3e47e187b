"""One GPU, several trials: the share of its memory that a trial gets, and what happens when that is not enough.

All functions take the part of `torch.cuda` that they use, so that they can be tried without a GPU.
"""

from __future__ import annotations

import fcntl
import gc
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import torch

from hksd.config.run import RunConfig
from hksd.errors import RunError

GIB = 2**30


class GpuMemoryError(RunError):
    """A run needs more memory than its GPU, or its share of it, has."""


def set_share(share: float, cuda: Any = torch.cuda) -> None:
    """Let this process have that share (0 to 1) of the memory of its GPU; more ends in `torch.OutOfMemoryError`."""
    if share > 0 and cuda.is_available():
        cuda.set_per_process_memory_fraction(min(share, 1.0))


def release(error: BaseException | None, cuda: Any = torch.cuda) -> None:
    """Give the memory of a run that ended back to the device; of a failed one, its frames hold the tensors."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()
    if cuda.is_available():
        cuda.empty_cache()


def memory_error(config: RunConfig, packed: bool, cuda: Any = torch.cuda) -> GpuMemoryError:
    """Say what did not fit and what helps.

    Args:
        config: the run.
        packed: whether workers of other trials lie on the same GPU; they keep some of its memory while they wait.
        cuda: `torch.cuda`.
    """
    peak, total = cuda.max_memory_reserved() / GIB, cuda.mem_get_info()[1] / GIB
    student, size = config.student, config.train.batch_size
    return GpuMemoryError(
        f"the GPU has too little memory for {student.model}, width {student.width:g}, at batch size {size}: "
        f"it held {peak:.1f} GiB of {total:.1f} GiB when it asked for more; halve train.batch_size"
        + (", or put fewer trials on a GPU: a larger search.resources.gpu" if packed else "")
    )


class Turns:
    """Who may use a GPU: many at once, or one alone. A trial that waits to be alone is overtaken by nobody.

    Args:
        name: name of the GPU; processes that give the same name share it.
        folder: where the lock files lie, on a disk of this machine.
    """

    def __init__(self, name: str, folder: Path | None = None):
        stem = f"hksd-{os.getuid()}-gpu-{name}"
        folder = folder or Path(tempfile.gettempdir())
        self._gate, self._gpu = folder / f"{stem}.gate", folder / f"{stem}.lock"

    @contextmanager
    def together(self) -> Iterator[None]:
        """Use the GPU beside others."""
        with self._gpu.open("a") as gpu:
            with _locked(self._gate, fcntl.LOCK_EX):
                fcntl.flock(gpu, fcntl.LOCK_SH)
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody else uses the GPU, and keep it."""
        with _locked(self._gate, fcntl.LOCK_EX), _locked(self._gpu, fcntl.LOCK_EX):
            yield


@contextmanager
def _locked(path: Path, how: int) -> Iterator[IO[str]]:
    with path.open("a") as file:
        fcntl.flock(file, how)  # the end of the process, however it comes, opens it
        yield file


def guarded(
    train: Callable[[], object],
    config: RunConfig,
    share: float,
    cuda: ModuleType | Any = torch.cuda,
    folder: Path | None = None,
) -> None:
    """Train within a share of the GPU; a trial that this is too little for is trained on alone, with all of it.

    The second try continues from the last checkpoint. Without a GPU (share 0) nothing is guarded.

    Raises:
        GpuMemoryError: all of the GPU is too little.
    """
    if share <= 0 or not cuda.is_available():
        train()
        return
    turns = Turns(str(cuda.get_device_properties(0).uuid), folder)
    if share < 1:
        with turns.together():
            if _fits(train, share, cuda):
                return
        with turns.alone():
            if _fits(train, 1.0, cuda):
                return
    elif _fits(train, 1.0, cuda):
        return
    raise memory_error(config, share < 1, cuda)


def _fits(train: Callable[[], object], share: float, cuda: Any) -> bool:
    """Train with that share of the memory; False when it did not do."""
    set_share(share, cuda)
    cuda.reset_peak_memory_stats()
    failure: BaseException | None = None
    try:
        train()
    except torch.OutOfMemoryError as error:
        failure = error
    finally:
        release(failure, cuda)
    return failure is None
