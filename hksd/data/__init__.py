"""Images in memory: data sets by name, splits by seed, and the test split behind a door of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Split:
    """Part of a data set.

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


@dataclass(frozen=True)
class DataSet:
    """What a run may see: the training and the validation split, never the test split.

    Attributes:
        name: name of the data set.
        classes: class names.
        train: images to learn from.
        validation: images to select by.
        mean: per channel, of the training split, on the 0..1 scale.
        std: per channel, likewise.
        fingerprint: hash of pixels, labels and split (16 hexadecimal digits).
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
