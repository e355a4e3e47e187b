"""The end of a search, tried before its beginning: an untrained student is exported in memory and asked."""

from __future__ import annotations

import functools

import torch

from hksd import models
from hksd.deploy.capture import captured
from hksd.deploy.export import PARITY_TOLERANCE, Deployed
from hksd.device import process
from hksd.errors import RunError
from hksd.models import NetworkError, NetworkSpec, user
from hksd.models.look import reason

COUNTS = 1, 2, 5  # images that the program is asked about


def rehearse(spec: NetworkSpec, *, in_channels: int, classes: int, image_size: int) -> None:
    """Capture a network of one's own with torch.export, as every search does in the end; others are not tried.

    Args:
        spec: how it is built.
        in_channels: channels of the images.
        classes: number of classes.
        image_size: height and width of the images in pixels.

    Raises:
        UserError: it cannot be captured, or the program answers otherwise; begins with the key path.
    """
    if user.is_user(spec.model):
        _rehearse(spec, in_channels, classes, image_size)


@functools.cache
def _rehearse(spec: NetworkSpec, in_channels: int, classes: int, image_size: int) -> None:
    with process.restored(0), torch.no_grad():
        network = models.make(spec, in_channels=in_channels, classes=classes, image_size=image_size)
        program = Deployed(network, (0.5,) * in_channels, (0.25,) * in_channels).eval()
        try:
            made = captured(program, torch.zeros(2, in_channels, image_size, image_size)).module()
            for count in COUNTS:
                images = torch.rand(count, image_size, image_size, in_channels).permute(0, 3, 1, 2)  # people's order
                wanted, given = program(images), made(images)
                bound = PARITY_TOLERANCE * max(1.0, wanted.abs().max().item())
                if given.shape != wanted.shape or not (given - wanted).abs().max().item() <= bound:
                    raise RunError(f"the program of torch.export answers {count} image(s) otherwise than the network")
        except Exception as error:  # a stranger's network may do anything, also in the program made of it
            raise NetworkError(
                f"{spec.place}.model" if spec.place else "model",
                f"{spec.model} cannot be exported, with which every search ends: {reason(error)}; write what depends "
                "on the values of images without Python's `if`, `.item()` and NumPy (`torch.where`), and sizes "
                "without fixed numbers, or train it without a search: `hksd train`",
            ) from error
