"""Batches on the device: uint8 images kept in memory, cropped, flipped and normalised as whole batches.

Crop and flip are a pure function of (seed, epoch, image index). Every trial of a search therefore sees the same views,
a resumed run repeats them, and what a teacher says about a view can be stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hksd.data import DataSet, Split

if TYPE_CHECKING:
    from hksd.config import DataConfig


def views(seed: int, epoch: int, index: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 random bits for each image index (N,), drawn from (seed, epoch, index) alone.

    A counter-based generator: the finaliser of SplitMix64 (Steele, Lea and Flood 2014), applied once per key part.
    """
    bits = np.full(index.shape, seed, dtype=np.uint64)
    for part in (np.uint64(epoch), index.astype(np.uint64)):
        with np.errstate(over="ignore"):
            bits = (bits + np.uint64(0x9E3779B97F4A7C15)) ^ (part * np.uint64(0xD1342543DE82EF95))
            bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            bits = bits ^ (bits >> np.uint64(31))
    return bits


@dataclass(frozen=True)
class Batch:
    """One batch on the device.

    Attributes:
        images: (B, channels, H, W), normalised float32.
        labels: (B,), int64.
        index: (B,), int64, position of each image in its split; None where images do not come again.
    """

    images: Tensor
    labels: Tensor
    index: Tensor | None = None


def batches_of(split: Split, data: DataSet, config: DataConfig, device: torch.device, *, augment: bool) -> Batches:
    """Batches of one split as `config` wants them; without `augment` only `Batches.plain` may be used."""
    crop = (config.crop or 0) if augment else 0
    return Batches(split, data, crop=crop, flip=bool(config.flip), seed=config.seed, device=device)


class Batches:
    """Batches of one split.

    Args:
        split: images and labels.
        data: data set that `split` belongs to (normalisation).
        crop: pad by that many zero pixels on each side and crop back, in `augmented`.
        flip: flip half of the images horizontally, in `augmented`.
        seed: seed of the views.
        device: where batches live.
    """

    def __init__(self, split: Split, data: DataSet, *, crop: int, flip: bool, seed: int, device: torch.device):
        self.index, self.crop, self.flip, self.seed = split.index, crop, flip, seed
        self.height, self.width = split.images.shape[1:3]
        # A copy: the arrays may be shared between processes and read-only, which torch warns about.
        images = torch.from_numpy(np.array(split.images)).to(device)
        self.images = F.pad(images, (0, 0, crop, crop, crop, crop)) if crop else images
        self.labels = torch.from_numpy(np.array(split.labels)).to(device)
        # Every crop window as a view, without a copy: (N, 2 crop + 1, 2 crop + 1, channels, H, W).
        self.windows = self.images.unfold(1, self.height, 1).unfold(2, self.width, 1)
        std = torch.tensor(data.std, dtype=torch.float32, device=device)
        mean = torch.tensor(data.mean, dtype=torch.float32, device=device)
        self.scale, self.shift = (1 / (255 * std))[:, None, None], (-mean / std)[:, None, None]

    def __len__(self) -> int:
        return len(self.labels)

    def steps(self, batch_size: int) -> int:
        """Number of batches of an epoch."""
        return len(self._starts(batch_size))

    def _starts(self, batch_size: int) -> list[int]:
        """First rows of the batches; a last image alone joins the batch before it (batch norm cannot train on one)."""
        starts = list(range(0, len(self), batch_size))
        return starts[:-1] if batch_size > 1 and len(starts) > 1 and len(self) - starts[-1] == 1 else starts

    def augmented(self, epoch: int, batch_size: int, order_seed: int) -> Iterator[Batch]:
        """Yield one epoch of cropped and flipped batches, in an order drawn from (order_seed, epoch)."""
        bits = views(self.seed, epoch, self.index)
        span = np.uint64(2 * self.crop + 1)
        dy = torch.from_numpy(((bits >> np.uint64(8)) % span).astype(np.int64))
        dx = torch.from_numpy(((bits >> np.uint64(32)) % span).astype(np.int64))
        flipped = torch.from_numpy((bits & np.uint64(1)).astype(bool)) if self.flip else None
        generator = torch.Generator().manual_seed((order_seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(len(self), generator=generator)
        device = self.images.device
        starts = self._starts(batch_size)
        for start, end in pairwise([*starts, len(self)]):
            rows = order[start:end]
            at = rows.to(device)
            images = self.windows[at, dy[rows].to(device), dx[rows].to(device)]
            if flipped is not None:
                images = torch.where(flipped[rows].to(device)[:, None, None, None], images.flip(3), images)
            yield Batch(self._normalise(images), self.labels[at], at)

    def plain(self, batch_size: int) -> Iterator[Batch]:
        """Yield all images once, in order, neither cropped nor flipped."""
        for start in range(0, len(self), batch_size):
            images = self.windows[start : start + batch_size, self.crop, self.crop]
            yield Batch(self._normalise(images), self.labels[start : start + batch_size])

    def _normalise(self, images: Tensor) -> Tensor:
        return images.float().mul_(self.scale).add_(self.shift)
