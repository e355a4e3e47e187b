"""What a network shows to the loss terms: its outputs and their shapes, by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

Grids = Sequence[tuple[int, int]]  # height and width of each stage's maps


@dataclass(frozen=True)
class TapShapes:
    """Static shapes of a network's taps.

    Attributes:
        classes: number of classes C.
        embedding: size G of the embedding.
        stages: channels of each stage's output.
        blocks: channels of each block's output, per stage.
    """

    classes: int
    embedding: int
    stages: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Out:
    """What a network computed for one batch.

    Attributes:
        logits: (N, C).
        embedding: (N, G), the vector that the classifier reads.
        stages: output of every stage, each (N, F, H, W).
        blocks: output of every block, per stage, each (N, F, H, W).
        squeezed: squeezed vectors of levels 1, 2, ..., each a list (teacher only, see `hksd.attention`).
        digests: what terms keep of the maps, by the name of the `Digest` (teacher only, where its maps are not here).
        images: (N, channels, H, W), what the network was given (student only).
        index: (N,), int64, position of each image in the training split (student only; None where images have none).
    """

    logits: Tensor
    embedding: Tensor
    stages: Sequence[Tensor] = ()
    blocks: Sequence[Sequence[Tensor]] = ()
    squeezed: Sequence[Sequence[Tensor]] = ()
    digests: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    images: Tensor | None = None
    index: Tensor | None = None

    def widened(self) -> Out:
        """The same with logits and embedding in single precision (or better), which losses on them need."""
        logits, embedding = (x.float() if x.itemsize < 4 else x for x in (self.logits, self.embedding))
        return replace(self, logits=logits, embedding=embedding)


class TappedNet(nn.Module, ABC):
    """A classifier whose intermediate outputs can be read.

    Attributes:
        shapes: of its taps.
        classifier: the layer that makes logits from the embedding.
        classifier_path: where it is inside `bare`.
        contiguous: it cannot work on maps in the order ``channels_last``, and makes its images contiguous itself.
    """

    shapes: TapShapes
    classifier: nn.Module
    classifier_path: str = "classifier"
    contiguous: bool = False

    @property
    def layout(self) -> torch.memory_format:
        """The order of its filters in memory, which its maps follow."""
        return torch.contiguous_format if self.contiguous else torch.channels_last

    @property
    def bare(self) -> nn.Module:
        """The network without what hksd puts around it: the names of its weights are those of weight files."""
        return self

    @abstractmethod
    def taps(self, images: Tensor) -> Out:
        """Run the network on images (N, channels, H, W) and return everything that terms may read."""

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C) for images (N, channels, H, W)."""
        return self.taps(images).logits


class _Contiguous(TappedNet):
    """Put before the class of a network: its images are made contiguous, whatever their order."""

    contiguous = True

    def taps(self, images: Tensor) -> Out:
        """See `TappedNet`."""
        return super().taps(plain(images))  # type: ignore[safe-super]

    def forward(self, images: Tensor) -> Tensor:
        """See `TappedNet`."""
        return super().forward(plain(images))


def plain(images: Tensor) -> Tensor:
    """A copy in the order of PyTorch; `contiguous` leaves images of one channel alone, whose strides say another."""
    return images.clone(memory_format=torch.contiguous_format)


def on_contiguous(network: TappedNet) -> None:
    """Let a network of any class work on contiguous maps alone; names and weights stay."""
    if not network.contiguous:
        kind = type(network)
        network.__class__ = type(kind.__name__, (_Contiguous, kind), {"__module__": kind.__module__})
