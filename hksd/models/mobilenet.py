"""MobileNetV2 for small images (Sandler et al. 2018, arXiv 1801.04381), half as wide, expansion 6.

The form of the usual CIFAR-100 distillation tables (CONFIRMED: RepDistiller): ReLU in place of ReLU6, an expansion
convolution in the first block too, four stages by resolution. Bottlenecks are linear: a block's output, and so its tap,
has no ReLU.
"""

from __future__ import annotations

from torch import Tensor, nn

from hksd.kernels import Layers
from hksd.models.staged import StagedNet, scaled

HALF = 0.5  # the width of the tables; our multiplier 1.0 means this
STEM, LAST = 32, 1280
SMALL_IMAGE = 32  # pixels; below, the stem keeps the resolution, or four halvings would leave nothing
# Per stage: (expansion, channels, blocks, stride of the first).
SETTINGS = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


class InvertedResidual(nn.Module):
    """Expand, convolve per channel, project without ReLU: (N, F_in, H, W) -> (N, F_out, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.layers = Layers(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, F_in, H, W)."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class CifarMobileNetV2(StagedNet):
    """A MobileNetV2 whose stem and three more stages halve the image.

    Args:
        in_channels: channels of the images.
        classes: number of classes C.
        width: multiplier on the channels of the tables' network (rounded, at least 1 each). The last convolution has
            1280 channels unless the network gets wider than the paper's, as published.
        descriptor: size of the global descriptor (see `StagedNet`).
        image_size: height and width of the images in pixels; below 32 the stem does not halve (RECONSTRUCTED).
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        width: float = 1.0,
        descriptor: int | None = None,
        image_size: int = 32,
    ):
        width *= HALF
        inputs, last = scaled(STEM, width), scaled(LAST, max(1.0, width))
        stride = 1 if image_size < SMALL_IMAGE else 2
        stem = Layers(nn.Conv2d(in_channels, inputs, 3, stride, 1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU())
        stages: list[list[nn.Module]] = []
        channels: list[list[int]] = []
        for parts in SETTINGS:
            made: list[nn.Module] = []
            sizes: list[int] = []
            for expansion, base, count, first in parts:
                for i in range(count):
                    sizes.append(scaled(base, width))
                    made.append(InvertedResidual(inputs, sizes[-1], first if i == 0 else 1, expansion))
                    inputs = sizes[-1]
            stages.append(made)
            channels.append(sizes)
        tail = Layers(nn.Conv2d(inputs, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU())
        super().__init__(stem, stages, channels, last, classes, descriptor, tail=tail)
