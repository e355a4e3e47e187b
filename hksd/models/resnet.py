"""CIFAR ResNets with 6n+2 layers (He et al. 2016, arXiv 1512.03385, section 4.2), width multiplier and taps.

Three stages of n basic blocks with 16, 32 and 64 channels. Where a stage changes size, the shortcut is a 1x1
convolution with batch normalisation, as in the networks of the usual CIFAR-100 distillation tables.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hksd.models.taps import Out, TappedNet, TapShapes

BASE_CHANNELS = (16, 32, 64)
LARGE_IMAGE = 64  # pixels; from here on the stem halves the image, so that the first stage sees at most ~32 rows


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: (N, F_in, H, W) -> (N, F_out, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, F_in, H, W)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(TappedNet):
    """A 6n+2-layer ResNet.

    Args:
        blocks: n, basic blocks per stage, at least 1.
        in_channels: channels of the images (1 or 3).
        classes: number of classes C.
        width: multiplier on 16, 32, 64 channels (rounded, at least 1 channel each).
        descriptor: size of the global descriptor; None reads the pooled last stage. A size adds a bias-free linear
            layer between pooling and classifier (equal to the paper's 1x1 convolution before pooling) and is part
            of the deployed network.
        image_size: height and width of the images in pixels.
    """

    def __init__(
        self,
        blocks: int,
        in_channels: int,
        classes: int,
        width: float = 1.0,
        descriptor: int | None = None,
        image_size: int = 32,
    ):
        super().__init__()
        channels = [max(1, round(base * width)) for base in BASE_CHANNELS]
        stem_stride = 2 if image_size >= LARGE_IMAGE else 1
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, channels[0], 3, stem_stride, 1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU()
        )
        self.stages = nn.ModuleList()
        inputs = channels[0]
        for stage, outputs in enumerate(channels):
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            layers = [BasicBlock(inputs if i == 0 else outputs, outputs, stride) for i, stride in enumerate(strides)]
            self.stages.append(nn.ModuleList(layers))
            inputs = outputs
        self.descriptor: nn.Module = nn.Linear(inputs, descriptor, bias=False) if descriptor else nn.Identity()
        self.classifier = nn.Linear(descriptor or inputs, classes)
        self.shapes = TapShapes(
            classes, descriptor or inputs, tuple(channels), tuple((outputs,) * blocks for outputs in channels)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def taps(self, images: Tensor) -> Out:
        """images: (N, in_channels, H, W); every tap is taken after its block's last ReLU."""
        x = self.stem(images)
        blocks: list[list[Tensor]] = []
        for stage in self.stages:
            maps: list[Tensor] = []
            for block in stage:  # type: ignore[attr-defined]
                x = block(x)
                maps.append(x)
            blocks.append(maps)
        embedding = self.descriptor(x.mean((2, 3)))
        return Out(self.classifier(embedding), embedding, [maps[-1] for maps in blocks], blocks)
