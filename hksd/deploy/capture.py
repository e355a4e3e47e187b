"""A network as a program of torch.export, and what to say where that cannot be made."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from hksd.errors import RunError
from hksd.models.faults import place_in, reason

# What torch says for its own developers -> what it means for the author of a network.
PLAIN = {
    "Could not guard on data-dependent": "a branch in Python depends on what is in the images",
    "Constraints violated (batch)": "it fixes the number of images (`len(x)` does, `x.shape[0]` does not)",
}
NOISY = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch.fx", "torch._dynamo", "torch._export")


def captured(program: nn.Module, example: Tensor) -> ExportedProgram:
    """Translate a network for inference; the number of images is free.

    Args:
        program: the network, in eval mode, normalisation included (see `hksd.deploy.export.Deployed`).
        example: images of the right shape, (2 or more, channels, H, W); their values do not matter.

    Raises:
        RunError: the network does what torch.export cannot capture; says what, and in which line of whose file.
    """
    batch = torch.export.Dim("batch", min=1)
    try:
        with quiet():
            return torch.export.export(program, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # a network of the user's own may do anything
        said, at = reason(error), place_in(error)
        meant = next((meaning for start, meaning in PLAIN.items() if said.startswith(start)), said)
        raise RunError(f"torch.export cannot capture it: {meant}{f' ({at})' if at else ''}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' remarks about themselves, such as the whole graph of a program that failed."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
