"""ShuffleNets for small images: V1 with three groups (Zhang et al. 2018, arXiv 1707.01083), V2 (Ma et al. 2018,
arXiv 1807.11164).

The forms of the usual CIFAR-100 distillation tables (CONFIRMED: RepDistiller): a 1x1 stem that keeps the resolution,
three stages that halve it, 4, 8, 4 blocks. Taps are taken after the last ReLU of a block. How the channels follow the
width multiplier is RECONSTRUCTED: in steps that groups and halves allow, so that every width can be built.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hksd.kernels import Layers, norm_act
from hksd.models.staged import StagedNet, scaled, stem_stride

BLOCKS = (4, 8, 4)
GROUPS = 3
STEP = 4 * GROUPS  # a block's channels are a multiple, so that the quarter of them inside falls into groups


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave `groups` equal parts of the channels of x (N, F, H, W)."""
    n, channels, height, width = x.shape
    return x.reshape(n, groups, channels // groups, height, width).transpose(1, 2).flatten(1, 2)


def _stem(in_channels: int, outputs: int, image_size: int) -> nn.Module:
    conv = nn.Conv2d(in_channels, outputs, 1, stem_stride(image_size), bias=False)
    return Layers(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class GroupedBlock(nn.Module):
    """Unit of V1: (N, F_in, H, W) -> (N, F_out, H / stride, W / stride).

    With stride 2 the averaged input is joined as channels, so the convolutions give the remaining F_out - F_in.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int):
        super().__init__()
        made = outputs - inputs if stride == 2 else outputs
        inner = made // 4
        self.stride, self.groups = stride, groups
        self.conv1 = nn.Conv2d(inputs, inner, 1, groups=groups, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, made, 1, groups=GROUPS, bias=False)
        self.norm3 = nn.BatchNorm2d(made)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, F_in, H, W)."""
        y = shuffle(norm_act(self.norm1, self.conv1(x)), self.groups)
        y = self.conv3(norm_act(self.norm2, self.conv2(y)))
        if self.stride == 2:
            y = norm_act(self.norm3, y, relu=False)
            return F.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1))
        return norm_act(self.norm3, y, x)


class CifarShuffleNetV1(StagedNet):
    """ShuffleNetV1 with 240, 480, 960 channels and three groups.

    Args:
        in_channels: channels of the images.
        classes: number of classes C.
        width: multiplier on the channels, rounded to twelves (at least 24 in the first stage).
        descriptor: size of the global descriptor (see `StagedNet`).
        image_size: height and width of the images in pixels.
    """

    def __init__(
        self, in_channels: int, classes: int, width: float = 1.0, descriptor: int | None = None, image_size: int = 32
    ):
        inputs, base = STEP * scaled(2, width), STEP * max(2, round(20 * width))
        stem = _stem(in_channels, inputs, image_size)
        channels = [[base * 2**stage] * count for stage, count in enumerate(BLOCKS)]
        stages: list[list[nn.Module]] = []
        for stage, sizes in enumerate(channels):
            made: list[nn.Module] = []
            for i, outputs in enumerate(sizes):
                # The few channels of the stem are not grouped (section 3.2 of the paper).
                groups = 1 if stage == i == 0 else GROUPS
                made.append(GroupedBlock(inputs, outputs, 2 if i == 0 else 1, groups))
                inputs = outputs
            stages.append(made)
        super().__init__(stem, stages, channels, inputs, classes, descriptor, kaiming=False)


def _pointwise(inputs: int, outputs: int) -> nn.Sequential:
    return Layers(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _depthwise(channels: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    return Layers(conv, nn.BatchNorm2d(channels))


class SplitBlock(nn.Module):
    """Unit of V2: half of the channels pass, half are convolved; (N, F, H, W) -> the same shape."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(_pointwise(half, half), _depthwise(half, 1), _pointwise(half, half))

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, F, H, W)."""
        passed, convolved = x.chunk(2, 1)
        return shuffle(torch.cat([passed, self.branch(convolved)], 1), 2)


class HalvingBlock(nn.Module):
    """Downsampling unit of V2, both branches convolved: (N, F_in, H, W) -> (N, F_out, H / 2, W / 2)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        half = outputs // 2
        self.left = nn.Sequential(_depthwise(inputs, 2), _pointwise(inputs, half))
        self.right = nn.Sequential(_pointwise(inputs, half), _depthwise(half, 2), _pointwise(half, half))

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, F_in, H, W)."""
        return shuffle(torch.cat([self.left(x), self.right(x)], 1), 2)


class CifarShuffleNetV2(StagedNet):
    """ShuffleNetV2 with 116, 232, 464 channels and 1024 before pooling.

    Args:
        in_channels: channels of the images.
        classes: number of classes C.
        width: multiplier on all channels, those of the stages even.
        descriptor: size of the global descriptor (see `StagedNet`).
        image_size: height and width of the images in pixels.
    """

    def __init__(
        self, in_channels: int, classes: int, width: float = 1.0, descriptor: int | None = None, image_size: int = 32
    ):
        inputs, base, last = scaled(24, width), 2 * scaled(58, width), scaled(1024, width)
        stem = _stem(in_channels, inputs, image_size)
        channels = [[base * 2**stage] * count for stage, count in enumerate(BLOCKS)]
        stages: list[list[nn.Module]] = []
        for sizes in channels:
            first = HalvingBlock(inputs, sizes[0])
            stages.append([first, *(SplitBlock(size) for size in sizes[1:])])
            inputs = sizes[-1]
        super().__init__(
            stem, stages, channels, last, classes, descriptor, tail=_pointwise(inputs, last), kaiming=False
        )
