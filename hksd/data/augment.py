"""Batches on the device, from images in memory or from a stream of files: cropped, flipped and normalised.

Crop and flip are a pure function of (seed, epoch, image index). Every trial of a search therefore sees the same views,
a resumed run repeats them, and what a teacher says about a view can be stored. Images in memory stay where they are as
uint8, on the CPU perhaps in a file that all processes share, and are cut as whole batches; a GPU gets a copy of them.
Streamed images are cut by the threads that decode them.

Pixels lie in memory as (B, H, W, channels), torch's ``channels_last``, whatever the logical order of the axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
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
from hksd.data.splits import Rows
from hksd.data.stream import Cut, frames

if TYPE_CHECKING:
    from PIL.Image import Image

GROUP_BYTES = 1 << 18  # uint8 pixels that are cut at once: more leaves the processor's second cache


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
        images: (B, channels, H, W), normalised float32, in the memory format ``channels_last``.
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

    Attributes:
        before_batch: called before each batch of a pass over the images in their own order (`ordered`, `plain`,
            `raw`); ends the pass by an exception.
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
        self.before_batch: Callable[[], None] = lambda: None
        self.labels = torch.from_numpy(np.array(split.labels)).to(device)
        self.pixels = _pixels(split, crop, flip, crop_scale, threads, device)
        std = torch.tensor(data.std, dtype=torch.float32, device=device)
        mean = torch.tensor(data.mean, dtype=torch.float32, device=device)
        # Repeated for every pixel: on rows of a whole image both operations are vectorised, on three channels not.
        pixels = split.image_size**2 if isinstance(split, StreamSplit) else math.prod(split.images.shape[1:3])
        self.scale, self.shift = (1 / (255 * std)).repeat(pixels), (-mean / std).repeat(pixels)

    def __len__(self) -> int:
        return len(self.labels)

    def steps(self, batch_size: int) -> int:
        """Number of batches of an epoch."""
        return len(self._starts(batch_size))

    def _starts(self, batch_size: int) -> list[int]:
        """First rows of the batches; a last image alone joins the batch before it (batch norm cannot train on one)."""
        starts = list(range(0, len(self), batch_size))
        return starts[:-1] if batch_size > 1 and len(starts) > 1 and len(self) - starts[-1] == 1 else starts

    def augmented(
        self, epoch: int, batch_size: int, order_seed: int, view: int | None = None, start: int = 0
    ) -> Iterator[Batch]:
        """Yield one epoch of cropped and flipped batches, in an order drawn from (order_seed, epoch).

        Args:
            epoch: number of the epoch, from 0.
            batch_size: images per batch.
            order_seed: seed of the order.
            view: which crops and flips; default those of the epoch.
            start: batches to leave out at the start, up to all of them.

        Raises:
            DataError: a streamed image has vanished or is damaged (here and in the methods below).
        """
        generator = torch.Generator().manual_seed((order_seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(len(self), generator=generator)
        bounds = [*self._starts(batch_size), len(self)][start:]
        if len(bounds) == 1:
            return
        bits = views(self.seed, epoch if view is None else view, self.index)
        at = order.to(self.device)
        labels = self.labels[at]
        with closing(self.pixels.augmented(order.numpy(), bounds, bits)) as found:
            for (first, end), images in zip(pairwise(bounds), found, strict=True):
                yield Batch(self._normalise(images), labels[first:end], at[first:end])

    def ordered(self, view: int, batch_size: int) -> Iterator[Tensor]:
        """Yield the images of a view once, cropped and flipped, in their own order: (B, channels, H, W), float32."""
        bounds = [*range(0, len(self), batch_size), len(self)]
        bits = views(self.seed, view, self.index)
        with closing(self.pixels.augmented(np.arange(len(self)), bounds, bits)) as found:
            for images in found:
                self.before_batch()
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
                self.before_batch()
                yield images, self.labels[start : start + batch_size]

    def _normalise(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 2, 3, 1)
        rows = pixels.flatten(1).float().mul_(self.scale).add_(self.shift)
        return rows.view(pixels.shape).permute(0, 3, 1, 2)


def _pixels(
    split: AnySplit, crop: int, flip: bool, crop_scale: float, threads: int, device: torch.device
) -> _Held | _OnDevice | _Streamed:
    """Where the pixels of a split come from: (B, channels, H, W), uint8, on the device."""
    if isinstance(split, StreamSplit):
        return _Streamed(split, crop, flip, crop_scale, threads, device)
    return _Held(split, crop, flip) if device.type == "cpu" else _OnDevice(split, crop, flip, device)


Bounds = Sequence[int]  # where each batch of an epoch begins, and the end of the last


class _Held:
    """Pixels in memory or in a mapped file, which is read where it lies: only the images of a batch are copied."""

    def __init__(self, split: Split, crop: int, flip: bool):
        count, self.height, self.width, self.channels = split.images.shape
        self.crop, self.flip = crop, flip
        self.rows = split.images.reshape(count, self.height, self.width * self.channels)

    def augmented(self, order: Rows, bounds: Bounds, bits: NDArray[np.uint64]) -> Generator[Tensor, None, None]:
        dy, dx, flipped = _shifts(bits[order], self.crop)
        groups = self._grouped(bounds)
        windows = self._padding(max(group[-1] - group[0] for group in groups))
        for group in groups:
            part = slice(group[0], group[-1])
            images = self._crops(order[part], dy[part], dx[part], windows)
            if self.flip:
                self._mirror(images, np.flatnonzero(flipped[part]))
            whole_group = self._tensor(images)
            for start, end in pairwise(group):
                yield whole_group[start - group[0] : end - group[0]]

    def plain(self, batch_size: int) -> Generator[Tensor, None, None]:
        for start in range(0, len(self.rows), batch_size):
            yield self._tensor(np.array(self.rows[start : start + batch_size]))

    def _grouped(self, bounds: Bounds) -> list[Bounds]:
        """Batches that are cut together: of small images many, so that calls do not cost more than pixels."""
        batch = (bounds[1] - bounds[0]) * self.rows[0].nbytes
        many = max(1, GROUP_BYTES // batch)
        return [bounds[at : at + many + 1] for at in range(0, len(bounds) - 1, many)]

    def _padding(self, most: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Room for `most` padded images, and all crop windows of them: (most, 2 crop + 1, 2 crop + 1, H, W C)."""
        crop, wide = self.crop, self.rows.shape[2]
        padded = np.zeros((most, self.height + 2 * crop, wide + 2 * crop * self.channels), np.uint8)
        image, row, _ = padded.strides
        shape = (most, 2 * crop + 1, 2 * crop + 1, self.height, wide)
        return padded, np.lib.stride_tricks.as_strided(padded, shape, (image, row, self.channels, row, 1))

    def _crops(
        self, order: Rows, dy: Rows, dx: Rows, padding: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    ) -> NDArray[np.uint8]:
        """The crop windows of the images `order` (M,) as (M, H, W C)."""
        if not self.crop:
            return self.rows[order]
        padded, windows = padding
        side, count = self.crop * self.channels, len(order)
        padded[:count, self.crop : -self.crop, side:-side] = self.rows[order]  # the borders stay zero
        return windows[np.arange(count), dy, dx]

    def _mirror(self, images: NDArray[np.uint8], rows: Rows) -> None:
        """Flip some images (M, H, W C) in place; torch does it far faster than numpy, in channels_last above all."""
        flipped = self._tensor(images[rows]).flip(3).permute(0, 2, 3, 1)
        images[rows] = flipped.numpy().reshape(len(rows), *images.shape[1:])

    def _tensor(self, images: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(images).view(len(images), self.height, self.width, self.channels).permute(0, 3, 1, 2)


class _OnDevice:
    """Pixels that were copied to the device, all of them, and are cut there."""

    def __init__(self, split: Split, crop: int, flip: bool, device: torch.device):
        self.crop, self.flip, self.device = crop, flip, device
        # A copy: the arrays may be read-only, which torch warns about.
        images = torch.from_numpy(np.array(split.images)).to(device)
        height, width = images.shape[1:3]
        padded = F.pad(images, (0, 0, crop, crop, crop, crop)) if crop else images
        # Every crop window as a view, without a copy: (N, 2 crop + 1, 2 crop + 1, H, W, channels).
        self.windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)

    def augmented(self, order: Rows, bounds: Bounds, bits: NDArray[np.uint64]) -> Generator[Tensor, None, None]:
        parts = (order, *_shifts(bits[order], self.crop))
        rows, dy, dx, flipped = (torch.from_numpy(part).to(self.device) for part in parts)
        for start, end in pairwise(bounds):
            images = self.windows[rows[start:end], dy[start:end], dx[start:end]]
            if self.flip:
                images = torch.where(flipped[start:end, None, None, None], images.flip(2), images)
            yield images.permute(0, 3, 1, 2)

    def plain(self, batch_size: int) -> Generator[Tensor, None, None]:
        for start in range(0, len(self.windows), batch_size):
            yield self.windows[start : start + batch_size, self.crop, self.crop].permute(0, 3, 1, 2)


class _Streamed:
    """Pixels from files, cut by threads."""

    def __init__(
        self, split: StreamSplit, crop: int, flip: bool, crop_scale: float, threads: int, device: torch.device
    ):
        self.split, self.crop, self.flip, self.crop_scale = split, crop, flip, crop_scale
        self.threads, self.device = threads, device

    def augmented(self, order: Rows, bounds: Bounds, bits: NDArray[np.uint64]) -> Generator[Tensor, None, None]:
        return self._stream([order[start:end] for start, end in pairwise(bounds)], self._random_cut(bits))

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

    def _stream(self, pieces: Sequence[Rows], cut: Cut) -> Generator[Tensor, None, None]:
        with closing(frames(self.split, pieces, cut, self.threads)) as found:
            for images in found:
                batch = torch.from_numpy(images)
                if self.device.type == "cuda":
                    batch = batch.pin_memory().to(self.device, non_blocking=True)
                yield batch.permute(0, 3, 1, 2)


def _shifts(bits: NDArray[np.uint64], crop: int) -> tuple[Rows, Rows, NDArray[np.bool_]]:
    """Row and column (0 to 2 crop) of the crop window of each image (N,), and whether it is flipped."""
    span = np.uint64(2 * crop + 1)
    dy, dx = (((bits >> np.uint64(place)) % span).astype(np.int64) for place in (8, 32))
    return dy, dx, (bits & np.uint64(1)).astype(bool)
