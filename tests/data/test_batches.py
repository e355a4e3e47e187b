"""Batches of images in memory: the same values wherever the pixels lie, and no pixel touched that is not asked for."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hksd.data import DataSet, Split, augment
from hksd.data.augment import Batches, views

CPU = torch.device("cpu")
SHAPES = [(32, 32, 3), (8, 8, 1), (5, 6, 3), (28, 28, 1)]
CUTS = [(0, False), (0, True), (1, True), (4, False), (4, True)]


def made(count: int, shape: tuple[int, int, int]) -> DataSet:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *shape), np.uint8)
    images.flags.writeable = False  # as from the store, or from Ray
    split = Split(images, rng.integers(0, 9, count), rng.permutation(10 * count)[:count])
    mean, std = rng.random(shape[-1]).tolist(), rng.random(shape[-1]).tolist()
    return DataSet("made", tuple("012345678"), split, split, tuple(mean), tuple(std), "")


def by_hand(data: DataSet, crop: int, flip: bool, seed: int, epoch: int) -> Tensor:
    """All views of an epoch in the order of the split: every image padded, cut, flipped and normalised alone."""
    std, mean = (torch.tensor(part, dtype=torch.float32)[:, None, None] for part in (data.std, data.mean))
    scale, shift = 1 / (255 * std), -mean / std
    found = []
    for image, bits in zip(data.train.images, views(seed, epoch, data.train.index).tolist(), strict=True):
        height, width = image.shape[:2]
        padded = F.pad(torch.from_numpy(image.copy()).permute(2, 0, 1), (crop,) * 4)
        y, x = ((bits >> place) % (2 * crop + 1) for place in (8, 32))
        view = padded[:, y : y + height, x : x + width]
        view = view.flip(2) if flip and bits & 1 else view
        found.append(view.float() * scale + shift)
    return torch.stack(found)


def batches(data: DataSet, crop: int, flip: bool, kind: str = "held") -> Batches:
    found = Batches(data.train, data, crop=crop, flip=flip, seed=7, device=CPU)
    if kind == "on a device":
        found.pixels = augment._OnDevice(data.train, crop, flip, CPU)
    return found


@pytest.mark.parametrize("kind", ["held", "on a device"])
@pytest.mark.parametrize(("crop", "flip"), CUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_augmented_batches_are_bit_for_bit_the_views_of_each_image_alone(
    shape: tuple[int, int, int], crop: int, flip: bool, kind: str
) -> None:
    data = made(130, shape)
    expected = by_hand(data, crop, flip, 7, epoch=3)
    for size in (16, 43, 130):  # 130 = 3 x 43 + 1: the last image joins the batch before it
        seen = []
        for batch in batches(data, crop, flip, kind).augmented(3, size, order_seed=1):
            assert torch.equal(batch.images, expected[batch.index])
            assert torch.equal(batch.labels, torch.from_numpy(data.train.labels)[batch.index])
            assert batch.images.dtype == torch.float32
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert len(batch.labels) > 1
            seen += batch.index.tolist()
        assert sorted(seen) == list(range(130))


@pytest.mark.parametrize("kind", ["held", "on a device"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_plain_batches_are_bit_for_bit_the_images_themselves(shape: tuple[int, int, int], kind: str) -> None:
    data = made(21, shape)
    source = batches(data, 2, True, kind)
    for found in (source.plain(8), source.raw(8)):
        parts = [part if isinstance(part, tuple) else (part.images, part.labels) for part in found]
        images, labels = (torch.cat(each) for each in zip(*parts, strict=True))
        expected: Any = by_hand(data, 0, False, 7, 0)
        if images.dtype == torch.uint8:
            expected = torch.from_numpy(data.train.images.copy()).permute(0, 3, 1, 2)
        assert torch.equal(images, expected)
        assert torch.equal(labels, torch.from_numpy(data.train.labels))


@pytest.mark.parametrize("group_bytes", [1, 1000, 10**9])
def test_how_many_batches_are_cut_at_once_changes_nothing(group_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(65, (8, 8, 1))
    before = [batch.images for batch in batches(data, 1, True).augmented(0, 16, 0)]
    monkeypatch.setattr(augment, "GROUP_BYTES", group_bytes)
    after = [batch.images for batch in batches(data, 1, True).augmented(0, 16, 0)]
    assert [len(images) for images in before] == [16, 16, 16, 17]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_batches_of_two_epochs_at_once_do_not_disturb_each_other() -> None:
    source = batches(made(64, (8, 8, 3)), 2, True)
    apart = [[batch.images for batch in source.augmented(epoch, 16, 0)] for epoch in (0, 1)]
    together = list(zip(source.augmented(0, 16, 0), source.augmented(1, 16, 0), strict=True))
    for epoch in (0, 1):
        assert all(torch.equal(pair[epoch].images, one) for pair, one in zip(together, apart[epoch], strict=True))


def test_a_batch_that_is_changed_leaves_the_images_and_the_other_batches_alone() -> None:
    data = made(48, (8, 8, 1))
    source, before = batches(data, 1, True), data.train.images.copy()
    expected = [batch.images for batch in source.augmented(0, 16, 0)]
    for batch, images in zip(source.augmented(0, 16, 0), expected, strict=True):
        assert torch.equal(batch.images, images)
        batch.images.zero_()
    for pixels, _ in source.raw(16):
        pixels.zero_()
    assert np.array_equal(data.train.images, before)


class Watched(np.ndarray[Any, np.dtype[np.uint8]]):
    """Images that note which rows were read."""

    read: list[NDArray[np.int64]]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, np.ndarray):
            type(self).read.append(key)
            return np.asarray(self)[key]
        return super().__getitem__(key)


def test_only_the_images_of_the_next_batch_are_read() -> None:
    data = made(600, (32, 32, 3))
    source, Watched.read = batches(data, 4, True), []
    assert np.shares_memory(source.pixels.rows, data.train.images)  # not a copy
    source.pixels.rows = source.pixels.rows.view(Watched)
    found = source.augmented(0, 128, 0)
    for number, (start, end) in enumerate(pairwise([0, 128, 256]), 1):
        batch = next(found)
        assert sum(map(len, Watched.read)) == end
        assert Watched.read[number - 1].tolist() == batch.index.tolist(), start
