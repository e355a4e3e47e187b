"""Batches on the device, from images in memory or from a stream of files: cropped, flipped and normalised.

Crop and flip are a pure function of (seed, epoch, image index). Every trial of a search therefore sees the same views,
a resumed run repeats them, and what a teacher says about a view can be stored. Images in memory stay on the device as
uint8 and are cut as whole batches; streamed images are cut by the threads that decode them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hksd.data import AnySplit, DataSet, Split, StreamSplit, evaluation_cut
from hksd.data.crops import random_part
from hksd.data.raw import whole
from hksd.data.settings import DataConfig
from hksd.data.stream import Cut, frames

if TYPE_CHECKING:
    from PIL.Image import Image


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


def batches_of(split: AnySplit, data: DataSet, config: DataConfig, device: torch.device, *, augment: bool) -> Batches:
    """Batches of one split as `config` wants them; without `augment` only `Batches.plain` may be used."""
    return Batches(
        split,
        data,
        crop=(config.crop or 0) if augment else 0,
        flip=bool(config.flip),
        seed=config.seed,
        device=device,
        crop_scale=config.crop_scale or 0.0,
        threads=config.threads,
    )


class Batches:
    """Batches of one split.

    Args:
        split: images and labels.
        data: data set that `split` belongs to (normalisation).
        crop: pad by that many zero pixels on each side and crop back, in `augmented`.
        flip: flip half of the images horizontally, in `augmented`.
        seed: seed of the views.
        device: where batches live.
        crop_scale: least share of a streamed image that `augmented` takes and resizes; 0 pads and crops.
        threads: threads that decode streamed images.
    """

    def __init__(
        self,
        split: AnySplit,
        data: DataSet,
        *,
        crop: int,
        flip: bool,
        seed: int,
        device: torch.device,
        crop_scale: float = 0.0,
        threads: int = 1,
    ):
        self.index, self.seed, self.device = split.index, seed, device
        self.labels = torch.from_numpy(np.array(split.labels)).to(device)
        self.pixels = (
            _Streamed(split, crop, flip, crop_scale, threads, device)
            if isinstance(split, StreamSplit)
            else _Held(split, crop, flip, device)
        )
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

    def augmented(self, epoch: int, batch_size: int, order_seed: int, view: int | None = None) -> Iterator[Batch]:
        """Yield one epoch of cropped and flipped batches, in an order drawn from (order_seed, epoch).

        Args:
            epoch: number of the epoch, from 0.
            batch_size: images per batch.
            order_seed: seed of the order.
            view: which crops and flips; default those of the epoch.

        Raises:
            DataError: a streamed image has vanished or is damaged (here and in the methods below).
        """
        bits = views(self.seed, epoch if view is None else view, self.index)
        generator = torch.Generator().manual_seed((order_seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(len(self), generator=generator)
        pieces = [order[start:end] for start, end in pairwise([*self._starts(batch_size), len(self)])]
        with closing(self.pixels.augmented(pieces, bits)) as found:
            for rows, images in zip(pieces, found, strict=True):
                at = rows.to(self.device)
                yield Batch(self._normalise(images), self.labels[at], at)

    def ordered(self, view: int, batch_size: int) -> Iterator[Tensor]:
        """Yield the images of a view once, cropped and flipped, in their own order: (B, channels, H, W), float32."""
        pieces = torch.split(torch.arange(len(self)), batch_size)
        with closing(self.pixels.augmented(pieces, views(self.seed, view, self.index))) as found:
            for images in found:
                yield self._normalise(images)

    def plain(self, batch_size: int) -> Iterator[Batch]:
        """Yield all images once, in order, neither cropped nor flipped."""
        with closing(self.raw(batch_size)) as found:
            for images, labels in found:
                yield Batch(self._normalise(images), labels)

    def raw(self, batch_size: int) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Like `plain`, without normalisation: images (B, channels, H, W), uint8, and labels (B,), on the device."""
        with closing(self.pixels.plain(batch_size)) as found:
            for start, images in zip(range(0, len(self), batch_size), found, strict=True):
                yield images, self.labels[start : start + batch_size]

    def _normalise(self, images: Tensor) -> Tensor:
        return images.float().mul_(self.scale).add_(self.shift)


Pieces = Sequence[Tensor]  # rows of each batch, (B,), int64, on the CPU


class _Held:
    """Pixels in memory, cut on the device as whole batches: (B, channels, H, W), uint8."""

    def __init__(self, split: Split, crop: int, flip: bool, device: torch.device):
        self.crop, self.flip, self.device = crop, flip, device
        # A copy: the arrays may be shared between processes and read-only, which torch warns about.
        images = torch.from_numpy(np.array(split.images)).to(device)
        height, width = images.shape[1:3]
        padded = F.pad(images, (0, 0, crop, crop, crop, crop)) if crop else images
        # Every crop window as a view, without a copy: (N, 2 crop + 1, 2 crop + 1, channels, H, W).
        self.windows = padded.unfold(1, height, 1).unfold(2, width, 1)

    def augmented(self, pieces: Pieces, bits: NDArray[np.uint64]) -> Generator[Tensor, None, None]:
        dy, dx, flipped = (torch.from_numpy(part) for part in _shifts(bits, self.crop))
        for rows in pieces:
            images = self.windows[tuple(part.to(self.device) for part in (rows, dy[rows], dx[rows]))]
            if self.flip:
                images = torch.where(flipped[rows].to(self.device)[:, None, None, None], images.flip(3), images)
            yield images

    def plain(self, batch_size: int) -> Generator[Tensor, None, None]:
        for start in range(0, len(self.windows), batch_size):
            yield self.windows[start : start + batch_size, self.crop, self.crop]


class _Streamed:
    """Pixels from files, cut by threads: (B, channels, H, W), uint8."""

    def __init__(
        self, split: StreamSplit, crop: int, flip: bool, crop_scale: float, threads: int, device: torch.device
    ):
        self.split, self.crop, self.flip, self.crop_scale = split, crop, flip, crop_scale
        self.threads, self.device = threads, device

    def augmented(self, pieces: Pieces, bits: NDArray[np.uint64]) -> Generator[Tensor, None, None]:
        return self._stream([rows.numpy() for rows in pieces], self._random_cut(bits))

    def plain(self, batch_size: int) -> Generator[Tensor, None, None]:
        rows = np.arange(len(self.split))
        pieces = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        return self._stream(pieces, evaluation_cut(self.split))

    def _random_cut(self, bits: NDArray[np.uint64]) -> Cut:
        """What training takes of an image: a part of it, resized, or all of it, padded and cropped as in memory."""
        form, crop = self.split.form, self.crop
        dys, dxs, flipped = _shifts(bits, crop)

        def cut(name: str, picture: Image, row: int) -> NDArray[np.uint8]:
            if self.crop_scale:
                image = random_part(name, picture, form, self.crop_scale, int(bits[row]))
            else:
                padded = np.pad(whole(name, picture, form), ((crop, crop), (crop, crop), (0, 0)))
                image = padded[dys[row] : dys[row] + form.size, dxs[row] : dxs[row] + form.size]
            return image[:, ::-1] if self.flip and flipped[row] else image

        return cut

    def _stream(self, pieces: Sequence[NDArray[np.int64]], cut: Cut) -> Generator[Tensor, None, None]:
        with closing(frames(self.split, pieces, cut, self.threads)) as found:
            for images in found:
                batch = torch.from_numpy(images)
                if self.device.type == "cuda":
                    batch = batch.pin_memory().to(self.device, non_blocking=True)
                yield batch.permute(0, 3, 1, 2).contiguous()


def _shifts(bits: NDArray[np.uint64], crop: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Row and column (0 to 2 crop) of the crop window of each image (N,), and whether it is flipped."""
    span = np.uint64(2 * crop + 1)
    dy, dx = (((bits >> np.uint64(place)) % span).astype(np.int64) for place in (8, 32))
    return dy, dx, (bits & np.uint64(1)).astype(bool)
