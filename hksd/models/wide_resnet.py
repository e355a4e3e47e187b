"""Wide ResNets (Zagoruyko and Komodakis 2016, arXiv 1605.07146): wrn_D_K has D layers and K times 16, 32, 64 channels.

Blocks normalise before they convolve, so their output is a sum without a ReLU, and the taps are these sums; one more
batch normalisation with ReLU comes before pooling. No dropout. Sizes are those of the usual CIFAR-100 distillation
tables (CONFIRMED: RepDistiller).
"""

from __future__ import annotations

from torch import Tensor, nn

from hksd.kernels import Layers, branch, convolve, norm_act
from hksd.models.staged import StagedNet, scaled, stem_stride

BASE_CHANNELS = (16, 32, 64)


class PreActivationBlock(nn.Module):
    """Two times batch norm, ReLU, 3x3 convolution: (N, F_in, H, W) -> (N, F_out, H / stride, W / stride).

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, F_in, H, W)."""
        active = norm_act(self.norm1, x)
        y, kept = (
            (convolve(self.conv1, active), x) if self.shortcut is None else branch(self.conv1, self.shortcut, active)
        )
        y = convolve(self.conv2, norm_act(self.norm2, y))
        total: Tensor = kept + y
        return total


class WideResNet(StagedNet):
    """A wide ResNet with three stages.

    Args:
        depth: weighted layers, 6n + 4.
        factor: K, the widening of the published name.
        in_channels: channels of the images.
        classes: number of classes C.
        width: further multiplier on all channels (rounded, at least 1 each).
        descriptor: size of the global descriptor (see `StagedNet`).
        image_size: height and width of the images in pixels.
    """

    def __init__(
        self,
        depth: int,
        factor: int,
        in_channels: int,
        classes: int,
        width: float = 1.0,
        descriptor: int | None = None,
        image_size: int = 32,
    ):
        assert depth % 6 == 4
        inputs = scaled(BASE_CHANNELS[0], width)
        stem = nn.Conv2d(in_channels, inputs, 3, stem_stride(image_size), 1, bias=False)
        channels = [[scaled(base * factor, width)] * ((depth - 4) // 6) for base in BASE_CHANNELS]
        stages: list[list[nn.Module]] = []
        for stage, sizes in enumerate(channels):
            made: list[nn.Module] = []
            for i, outputs in enumerate(sizes):
                made.append(PreActivationBlock(inputs, outputs, 2 if stage and i == 0 else 1))
                inputs = outputs
            stages.append(made)
        tail = Layers(nn.BatchNorm2d(inputs), nn.ReLU())
        super().__init__(stem, stages, channels, inputs, classes, descriptor, tail=tail)
