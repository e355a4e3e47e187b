"""What the CIFAR families share: a stem, stages of blocks, a tail, a pooled embedding and a linear classifier."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hksd.kernels import average
from hksd.models.taps import Out, TappedNet, TapShapes

LARGE_IMAGE = 64  # pixels; from here on the stem halves the image, so that the first stage sees at most ~32 rows


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded, at least 1."""
    return max(1, round(channels * width))


def stem_stride(image_size: int) -> int:
    """Stride of a stem that keeps the resolution of CIFAR images."""
    return 2 if image_size >= LARGE_IMAGE else 1


def shown(channels: Sequence[int]) -> int:
    """How many of a stage's blocks, from the last one backwards, have as many channels as its output."""
    return next((i for i, count in enumerate(reversed(channels)) if count != channels[-1]), len(channels))


class StagedNet(TappedNet):
    """A network of stages.

    Blocks that have other channels than the output of their stage (in MobileNets, a stage of one resolution has
    several widths) are run and not shown, since terms take the blocks of a stage for maps of one shape.

    Args:
        stem: images (N, in_channels, H, W) to maps.
        stages: blocks, each maps to maps (N, F, H, W).
        channels: F of every block.
        tail: maps of the last stage to the maps that are pooled; None takes them as they are.
        features: channels after the tail.
        classes: number of classes C.
        descriptor: size of the global descriptor; None reads the pooled maps. A size adds a bias-free linear layer
            between pooling and classifier (equal to KSANC's 1x1 convolution before pooling) and is part of the
            deployed network.
        kaiming: initialise convolutions by fan-out (He et al. 2015), else as torch does.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Sequence[nn.Module]],
        channels: Sequence[Sequence[int]],
        features: int,
        classes: int,
        descriptor: int | None,
        *,
        tail: nn.Module | None = None,
        kaiming: bool = True,
    ):
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in stages)
        self.tail = tail or nn.Identity()
        self.descriptor: nn.Module = nn.Linear(features, descriptor, bias=False) if descriptor else nn.Identity()
        self.classifier = nn.Linear(descriptor or features, classes)
        self.shown = [shown(counts) for counts in channels]
        self.shapes = TapShapes(
            classes,
            descriptor or features,
            tuple(counts[-1] for counts in channels),
            tuple(tuple(counts[-show:]) for counts, show in zip(channels, self.shown, strict=True)),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and kaiming:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def taps(self, images: Tensor) -> Out:
        """images: (N, in_channels, H, W); every map is the output of its block."""
        x = self.stem(images)
        blocks: list[list[Tensor]] = []
        for stage, show in zip(self.stages, self.shown, strict=True):
            maps: list[Tensor] = []
            for block in stage:  # type: ignore[attr-defined]
                x = block(x)
                maps.append(x)
            blocks.append(maps[-show:])
        pooled = average(self.tail(x)).to(self.classifier.weight.dtype)  # type: ignore[arg-type]
        embedding = self.descriptor(pooled)
        return Out(self.classifier(embedding), embedding, [maps[-1] for maps in blocks], blocks)
