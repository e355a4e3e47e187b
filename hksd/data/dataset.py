"""What a run sees of a data set: two splits, and what normalises their images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hksd.data.stream import StreamSplit


@dataclass(frozen=True)
class Split:
    """Part of a data set, in memory.

    Attributes:
        images: (N, H, W, channels), uint8.
        labels: (N,), int64, 0 to C-1.
        index: (N,), int64, position of each image in the source's own training (or test) set.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> int:
        """Height of the images in pixels (those of a data set are square)."""
        return int(self.images.shape[1])

    @property
    def channels(self) -> int:
        """1 (gray) or 3 (RGB)."""
        return int(self.images.shape[3])


AnySplit = Split | StreamSplit


@dataclass(frozen=True)
class DataSet:
    """What a run may see: the training and the validation split, never the test split.

    Attributes:
        name: name of the data set.
        classes: class names.
        train: images to learn from.
        validation: images to select by.
        mean: per channel, of the training split, on the 0..1 scale. Streamed images: of a sample of them, drawn
            by the data's seed. ImageNet: the published constants.
        std: per channel, likewise.
        fingerprint: hash of pixels, labels and split (16 hexadecimal digits). Streamed images: of their names below
            the training folder and the sizes of their files, in place of the pixels, which are not read for it.
        notes: what is unusual in the pictures, a line each (see `hksd.data.picture`). Streamed images: in the sample.
    """

    name: str
    classes: tuple[str, ...]
    train: AnySplit
    validation: AnySplit
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""
        return self.train.image_size

    @property
    def channels(self) -> int:
        """1 (gray) or 3 (RGB)."""
        return self.train.channels

    @property
    def image_shape(self) -> dict[str, int]:
        """What networks and costs need to know of the images, as keyword arguments."""
        return {"in_channels": self.channels, "classes": len(self.classes), "image_size": self.image_size}
