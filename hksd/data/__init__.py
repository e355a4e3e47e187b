"""Images in memory: data sets by name, splits by seed, and the test split behind a door of its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hksd.data.raw import RawSet, decode, form_of
from hksd.data.sources import find_source
from hksd.data.splits import Rows, balanced_subset, stratified_split
from hksd.errors import DataError

if TYPE_CHECKING:
    # Only for the signatures: `hksd.config` imports torch, and this package should load without it.
    from hksd.config import DataConfig


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


def load(config: DataConfig) -> DataSet:
    """Read the training set, keep ``limit`` of it, and split off the validation images. The test set stays closed.

    Returns:
        Images (N, S, S, 1) when all are grayscale, else (N, S, S, 3); S is ``image_size``, or their common size.

    Raises:
        DataError: the files are missing, damaged or do not fit the configuration.
    """
    raw = find_source(config).train()
    rows = _kept(raw, config)
    form = form_of(raw, rows, config.image_size)
    train_rows, held_out = stratified_split(raw.labels[rows], config.validation, config.seed)
    train, validation = (
        Split(decode(raw, part, form), raw.labels[part], raw.index[part]) for part in (rows[train_rows], rows[held_out])
    )
    mean, std = _mean_std(train.images)
    return DataSet(config.name, raw.classes, train, validation, mean, std, _fingerprint(raw.classes, train, validation))


def load_test(config: DataConfig) -> Split:
    """Read the test set, whole (``limit`` is for training images). Only a final evaluation may ask for it.

    Images have the form that `load` gives: a coloured test image becomes gray where all training images are gray.

    Raises:
        DataError: there is no test set, or as for `load`.
    """
    source = find_source(config)
    train = source.train()
    form = form_of(train, _kept(train, config), config.image_size)
    raw = source.test(train.classes)
    return Split(decode(raw, np.arange(len(raw.labels)), form), raw.labels, raw.index)


def _kept(raw: RawSet, config: DataConfig) -> Rows:
    """Rows of the training set that ``limit`` keeps, ascending; every class has at least two of them."""
    total, classes = len(raw.labels), len(raw.classes)
    if classes < 2:
        raise DataError(f"{raw.where}: only one class ('{raw.classes[0]}'); give every class its folder or label")
    if config.limit is not None and config.limit > total:
        raise DataError(
            f"{raw.where}: data.limit is {config.limit}, but the training set has {total} images; "
            "lower data.limit or leave it out"
        )
    rows = np.arange(total) if config.limit is None else balanced_subset(raw.labels, config.limit, config.seed)
    for labels, cure in (
        (raw.labels, "add images of that class, or remove the class"),
        (raw.labels[rows], f"raise data.limit (now {config.limit}) to at least {2 * classes}, two images per class"),
    ):
        counts = np.bincount(labels, minlength=classes)
        if counts.min() < 2:
            rare = int(counts.argmin())
            raise DataError(
                f"{raw.where}: class '{raw.classes[rare]}' has {counts[rare]} image(s), but needs one to "
                f"train on and one to validate; {cure}"
            )
    return rows


def _mean_std(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of (N, H, W, channels) on the 0..1 scale, exact, from histograms."""
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    # In parts, because numpy counts in int64: eight times the memory of the images it is given.
    for start in range(0, len(images), 1024):
        part = images[start : start + 1024]
        for channel in range(channels):
            counts[channel] += np.bincount(part[..., channel].ravel(), minlength=256)
    share, values = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(1)
    # The floor keeps images of a single colour from dividing by zero.
    return tuple(mean.tolist()), tuple(np.maximum(np.sqrt(variance), 1e-6).tolist())


def _fingerprint(classes: tuple[str, ...], *splits: Split) -> str:
    digest = hashlib.sha256("\0".join(classes).encode())
    for split in splits:
        for array in (split.images, split.labels, split.index):
            # Shape and type keep different arrays of equal bytes apart.
            digest.update(f"{array.shape}{array.dtype.name}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


__all__ = ["DataSet", "Split", "load", "load_test"]
