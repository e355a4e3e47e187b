"""CIFAR ResNets: basic and bottleneck blocks, width multiplier, taps after the last ReLU of each block.

- resnetN, N = 6n+2: three stages of n basic blocks with 16, 32, 64 channels (He et al. 2016, arXiv 1512.03385,
  section 4.2). Where a stage changes size, the shortcut is a 1x1 convolution with batch normalisation.
- resnetNx4: the same with a stem of 32 and stages of 64, 128, 256 channels.
- cifar_resnet50: bottlenecks 3, 4, 6, 3 with 256, 512, 1024, 2048 channels behind a 3x3 stem.
- resnet164: 18 bottlenecks per stage with 64, 128, 256 channels. KSANC's figure shows a teacher with maps of that shape
  (CONFIRMED-SHOT); that it is this network, and its form (activation after the sum, projections as above), is
  RECONSTRUCTED.

Sizes of the first three are those of the usual CIFAR-100 distillation tables (CONFIRMED: RepDistiller).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from hksd.kernels import Layers, branch, convolve, norm_act
from hksd.models.staged import LARGE_IMAGE, StagedNet, scaled, stem_stride

BASE_CHANNELS = (16, 32, 64)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return Layers(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _branches(conv: nn.Conv2d, shortcut: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """``conv(x), shortcut(x)``."""
    if not isinstance(shortcut, Layers):
        return convolve(conv, x), shortcut(x)
    project, norm = shortcut
    y, kept = branch(conv, project, x)  # type: ignore[arg-type]
    return y, norm_act(norm, kept, relu=False)  # type: ignore[arg-type]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: (N, F_in, H, W) -> (N, F_out, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, F_in, H, W)."""
        y, kept = _branches(self.conv1, self.shortcut, x)
        return norm_act(self.norm2, convolve(self.conv2, norm_act(self.norm1, y)), kept)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution, a quarter of the channels inside; shapes as in `BasicBlock`."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        inner = max(1, outputs // 4)
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, F_in, H, W)."""
        y, kept = _branches(self.conv1, self.shortcut, x)
        y = convolve(self.conv2, norm_act(self.norm1, y))
        return norm_act(self.norm3, self.conv3(norm_act(self.norm2, y)), kept)


class CifarResNet(StagedNet):
    """A ResNet for small images.

    Args:
        blocks: blocks per stage: one number for all of them, or one for each.
        in_channels: channels of the images.
        classes: number of classes C.
        width: multiplier on all channels (rounded, at least 1 each).
        descriptor: size of the global descriptor (see `StagedNet`).
        image_size: height and width of the images in pixels.
        kind: the block.
        stem: channels of the first convolution at width 1.
        channels: output channels of the stages at width 1; every stage but the first halves the maps.
    """

    def __init__(
        self,
        blocks: int | Sequence[int],
        in_channels: int,
        classes: int,
        width: float = 1.0,
        descriptor: int | None = None,
        image_size: int = 32,
        *,
        kind: Callable[[int, int, int], nn.Module] = BasicBlock,
        stem: int = BASE_CHANNELS[0],
        channels: Sequence[int] = BASE_CHANNELS,
    ):
        counts = [blocks] * len(channels) if isinstance(blocks, int) else blocks
        outputs = [[scaled(base, width)] * count for base, count in zip(channels, counts, strict=True)]
        inputs = scaled(stem, width)
        first = Layers(
            nn.Conv2d(in_channels, inputs, 3, stem_stride(image_size), 1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU()
        )
        stages: list[list[nn.Module]] = []
        for stage, sizes in enumerate(outputs):
            made: list[nn.Module] = []
            for i, size in enumerate(sizes):
                made.append(kind(inputs, size, 2 if stage and i == 0 else 1))
                inputs = size
            stages.append(made)
        super().__init__(first, stages, outputs, inputs, classes, descriptor)


__all__ = ["LARGE_IMAGE", "BasicBlock", "Bottleneck", "CifarResNet"]
