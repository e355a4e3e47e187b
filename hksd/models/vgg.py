"""VGG for small images (Simonyan and Zisserman 2015, arXiv 1409.1556) with batch norm and one linear layer.

Five stages of 3x3 convolutions, each convolution with its batch norm and ReLU a block, taps after the ReLU. The stages
are parted by max-pooling, but the last two by none below 64 pixels, as in the networks of the usual CIFAR-100
distillation tables (CONFIRMED: RepDistiller), to which vgg8 belongs too.
"""

from __future__ import annotations

from torch import nn

from hksd.errors import UserError
from hksd.kernels import Layers
from hksd.models.staged import LARGE_IMAGE, StagedNet, scaled

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2,) * 5, 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class CifarVgg(StagedNet):
    """A VGG with five stages.

    Args:
        layers: number in its name, a key of `CONVOLUTIONS`.
        in_channels: channels of the images.
        classes: number of classes C.
        width: multiplier on all channels (rounded, at least 1 each).
        descriptor: size of the global descriptor (see `StagedNet`).
        image_size: height and width of the images in pixels, at least 8.

    Raises:
        UserError: the images are too small for its poolings.
    """

    def __init__(
        self,
        layers: int,
        in_channels: int,
        classes: int,
        width: float = 1.0,
        descriptor: int | None = None,
        image_size: int = 32,
    ):
        pools = 4 if image_size >= LARGE_IMAGE else 3
        if image_size < 2**pools:
            raise UserError(
                f"vgg{layers} halves images {pools} times and needs {2**pools} pixels, these have {image_size}; "
                f"set data.image_size to {2**pools} or more, or take another network"
            )
        counts = CONVOLUTIONS[layers]
        channels = [[scaled(base, width)] * count for base, count in zip(CHANNELS, counts, strict=True)]
        inputs = in_channels
        stages: list[list[nn.Module]] = []
        for stage, sizes in enumerate(channels):
            made: list[nn.Module] = []
            for i, outputs in enumerate(sizes):
                pool = [nn.MaxPool2d(2)] if i == 0 and 0 < stage <= pools else []
                layer = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                made.append(Layers(*pool, *layer))
                inputs = outputs
            stages.append(made)
        super().__init__(nn.Identity(), stages, channels, inputs, classes, descriptor)
