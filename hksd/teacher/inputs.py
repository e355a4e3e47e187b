"""Images as a teacher from elsewhere wants them: its own normalisation, order of colours and size.

Everything else sees the images normalised by the statistics of the data. What a teacher wants differently is done
inside its network, so that it holds wherever the teacher looks: validation, estimators, views, live steps, attacked and
generated images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hksd.config.networks import TeacherConfig
from hksd.data import IMAGENET_MEAN, IMAGENET_STD, DataSet
from hksd.errors import UserError
from hksd.models.taps import Out, TappedNet


@dataclass(frozen=True)
class Inputs:
    """How a network wants its images.

    Attributes:
        mean: per channel, in the order of its channels, on the 0..1 scale.
        std: per channel, likewise.
        bgr: it wants blue first.
        size: height and width in pixels; None takes images as they are.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False
    size: int | None = None


def inputs_of(settings: TeacherConfig, data: DataSet) -> Inputs:
    """What `settings` say of the images.

    Raises:
        UserError: it does not suit the channels of the data.
    """
    count, place = data.channels, settings.place
    if settings.preprocess == "imagenet" and count != len(IMAGENET_MEAN):
        raise UserError(
            f"{place}.preprocess: imagenet is for images of {len(IMAGENET_MEAN)} channels, but these have {count}; "
            f"give {place}.mean and {place}.std"
        )
    if settings.mean and len(settings.mean) != count:
        raise UserError(f"{place}.mean has {len(settings.mean)} number(s), but the images have {count} channel(s)")
    if settings.channels == "bgr" and count != 3:
        raise UserError(f"{place}.channels: bgr is for images of 3 channels, but these have {count}; leave it out")
    bgr = settings.channels == "bgr"
    own = (settings.mean, settings.std) if settings.mean else (data.mean, data.std)
    if bgr and not settings.mean:
        own = (own[0][::-1], own[1][::-1])
    mean, std = {"own": own, "none": ((0.0,) * count, (1.0,) * count), "imagenet": (IMAGENET_MEAN, IMAGENET_STD)}[
        settings.preprocess
    ]
    if bgr and settings.preprocess == "imagenet":
        mean, std = mean[::-1], std[::-1]
    size = None if settings.image_size == data.image_size else settings.image_size
    return Inputs(mean, std, bgr, size)


def trained_on(metadata: Mapping[str, str]) -> Inputs | None:
    """What a student of hksd was trained on, by the header of its weights file; None for other files."""
    try:
        mean, std = (tuple(map(float, json.loads(metadata[key]))) for key in ("mean", "std"))
        size = int(metadata["image_size"])
    except (KeyError, ValueError, TypeError):
        return None
    return Inputs(mean, std, size=size) if len(mean) == len(std) and all(value > 0 for value in std) else None


class OwnInputs(TappedNet):
    """A network that is given images normalised by the data's statistics and shows them to another as that wants them.

    Args:
        network: the other network.
        inputs: what it wants.
        data: what images are normalised by.
    """

    def __init__(self, network: TappedNet, inputs: Inputs, data: DataSet):
        super().__init__()
        self.network, self.inputs = network, inputs
        self.shapes, self.classifier_path = network.shapes, network.classifier_path
        self.contiguous = network.contiguous
        given_mean, given_std = (torch.tensor(part, dtype=torch.float64) for part in (data.mean, data.std))
        if inputs.bgr:
            given_mean, given_std = given_mean.flip(0), given_std.flip(0)
        mean, std = (torch.tensor(part, dtype=torch.float64) for part in (inputs.mean, inputs.std))
        # Buffers: with the weights they name what the network says, in the address of its stored views as well.
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", (given_std / std).float()[:, None, None])
        self.register_buffer("shift", ((given_mean - mean) / std).float()[:, None, None])

    @property
    def bare(self) -> nn.Module:
        """The network as its author made it."""
        return self.network.bare

    @property
    def classifier(self) -> nn.Module:  # type: ignore[override]
        """The layer that makes logits from the embedding."""
        return self.network.classifier

    def seen(self, images: Tensor) -> Tensor:
        """What the network sees of images (N, channels, H, W) that are normalised by the data's statistics."""
        size = self.inputs.size
        if size is not None:
            images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
        if self.inputs.bgr:
            images = images.flip(1)
        return images * self.scale + self.shift

    def taps(self, images: Tensor) -> Out:
        """images: (N, channels, H, W)."""
        return self.network.taps(self.seen(images))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C)."""
        logits: Tensor = self.network(self.seen(images))
        return logits


def fitted(network: TappedNet, inputs: Inputs, data: DataSet) -> TappedNet:
    """`network` for images that are normalised by the data's statistics; itself where it wants just these."""
    same = inputs == Inputs(data.mean, data.std)
    return network if same else OwnInputs(network, inputs, data)
