"""The end of a search, tried before its beginning: an untrained student is exported in memory and asked."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hksd import models
from hksd.deploy import onnx as onnx_export
from hksd.deploy.capture import captured
from hksd.deploy.export import PARITY_TOLERANCE, Deployed
from hksd.device import process
from hksd.errors import RunError
from hksd.models import NetworkError, NetworkSpec, user
from hksd.models.faults import reason

COUNTS = 1, 2, 5  # images that the program is asked about
PROGRAM_CURE = (
    "cannot be exported, with which every search ends: {}; write what depends on the values of images without Python's "
    "`if`, `.item()` and NumPy (`torch.where`), and sizes without fixed numbers, or train it without a search: "
    "`hksd train`"
)
ONNX_CURE = (
    "cannot be written as ONNX, in which its latency is measured: {}; write it without that, or leave latency_ms out "
    "of search.minimize and search.limits"
)


def rehearse(spec: NetworkSpec, *, in_channels: int, classes: int, image_size: int, onnx: bool = False) -> None:
    """Capture a network of one's own with torch.export, as every search does in the end; others are not tried.

    Args:
        spec: how it is built.
        in_channels: channels of the images.
        classes: number of classes.
        image_size: height and width of the images in pixels.
        onnx: write it as ONNX as well, as a search does that measures latency.

    Raises:
        UserError: it cannot be captured or written, or the program answers otherwise; begins with the key path.
    """
    if user.is_user(spec.model):
        _rehearse(spec, in_channels, classes, image_size, onnx)


@functools.cache
def _rehearse(spec: NetworkSpec, in_channels: int, classes: int, image_size: int, onnx: bool) -> None:
    with process.restored(0), torch.no_grad():
        network = models.make(spec, in_channels=in_channels, classes=classes, image_size=image_size)
        program = Deployed(network, (0.5,) * in_channels, (0.25,) * in_channels).eval()
        example, cure = torch.zeros(2, in_channels, image_size, image_size), PROGRAM_CURE
        try:
            _compare(program, captured(program, example).module(), example, "torch.export")
            if onnx:
                cure = ONNX_CURE
                running = onnx_export.session(onnx_export.to_onnx(program, example))
                _compare(program, lambda images: onnx_export.answers(running, images), example, "ONNX Runtime")
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("onnx"):  # that is no fault of the network
                raise
            raise _fault(spec, cure, error) from error
        except Exception as error:  # a stranger's network may do anything, also in the program made of it
            raise _fault(spec, cure, error) from error


def _fault(spec: NetworkSpec, cure: str, error: Exception) -> NetworkError:
    return NetworkError(f"{spec.place}.model" if spec.place else "model", f"{spec.model} {cure.format(reason(error))}")


def _compare(program: nn.Module, made: Callable[[Tensor], Tensor], example: Tensor, what: str) -> None:
    """Raise where a program made of a network answers otherwise, for some numbers of images."""
    for count in COUNTS:
        channels, height, width = example.shape[1:]
        images = torch.rand(count, height, width, channels).permute(0, 3, 1, 2)  # people's order
        wanted, given = program(images), made(images)
        bound = PARITY_TOLERANCE * max(1.0, wanted.abs().max().item())
        if given.shape != wanted.shape or not (given - wanted).abs().max().item() <= bound:
            raise RunError(f"the program of {what} answers {count} image(s) otherwise than the network")
