"""Networks by name. A new family is one file and one registry line; see `hksd methods`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from hksd.errors import unknown
from hksd.models.resnet import CifarResNet
from hksd.models.taps import TappedNet


@dataclass(frozen=True)
class ModelEntry:
    """A registered network: how to build it and where it comes from."""

    build: Callable[..., TappedNet]
    source: str


MODELS: dict[str, ModelEntry] = {
    f"resnet{6 * n + 2}": ModelEntry(partial(CifarResNet, n), "He et al. 2016, arXiv 1512.03385, section 4.2")
    for n in (1, 2, 3, 4, 5, 6, 7, 9, 18)  # n = 8 is left out: "resnet50" means another network to everybody
}


def check_name(name: str) -> str:
    """Return `name` if a network of that name exists.

    Raises:
        ValueError: it does not; the message has the nearest name.
    """
    if name not in MODELS:
        raise ValueError(unknown("model", name, MODELS))
    return name


def build(
    name: str,
    *,
    in_channels: int,
    classes: int,
    width: float = 1.0,
    descriptor: int | None = None,
    image_size: int = 32,
) -> TappedNet:
    """Build the network `name` with random weights (from torch's global generator).

    Args:
        name: a key of `MODELS`.
        in_channels: channels of the images.
        classes: number of classes.
        width: multiplier on all channel counts.
        descriptor: size of the global descriptor, or None.
        image_size: height and width of the images in pixels.
    """
    arguments: dict[str, Any] = {"width": width, "descriptor": descriptor, "image_size": image_size}
    return MODELS[check_name(name)].build(in_channels=in_channels, classes=classes, **arguments)
