"""Images: data sets by name, in memory or streamed, splits by seed, and the test split behind a door of its own."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hksd.data import store as kept_images
from hksd.data.crops import centre
from hksd.data.dataset import AnySplit, DataSet, Split
from hksd.data.distort import distorted
from hksd.data.picture import Notes
from hksd.data.raw import Form, RawSet, Source, decode, form_of, whole
from hksd.data.settings import DataConfig
from hksd.data.sources import DISTORTED, IMAGENETS, find_source
from hksd.data.splits import Rows, balanced_subset, sample, stratified_split
from hksd.data.stream import Cut, StreamSplit, frames
from hksd.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# Of ImageNet's training images, as everybody uses them (CONFIRMED: torchvision, transforms/_presets.py).
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SAMPLE = 2000  # images that tell mean, std and channels of a streamed data set
NOTED = 500  # images of a streamed validation or test split that are looked at for what is unusual alone
SAMPLE_BATCH = 64

log = logging.getLogger(__name__)


def load(config: DataConfig, store: Path | None = None) -> DataSet:
    """Read the training set, keep ``limit`` of it, and split off the validation images. The test set stays closed.

    What is passed over in its folders is told in one line, a warning, also where the images come from the store. The
    trials of a search are given the images, so they do not tell it again.

    Args:
        config: which images.
        store: folder that keeps decoded images by content (see `hksd.data.store`); None keeps nothing.

    Returns:
        Images (N, S, S, 1) when all are grayscale, else (N, S, S, 3); S is ``image_size``, or their common size.
        From the store they are read-only. With ``streaming`` the images stay in their files.

    Raises:
        DataError: the files are missing, damaged or do not fit the configuration.
    """
    source = find_source(config)
    _tell(source.line())
    if store is None or config.streaming:
        data = _read(source, config)
    else:
        data = kept_images.remember(store, config, source.state, lambda: _read(source, config))
    for note in data.notes:
        _tell(note)
    return data


def _read(source: Source, config: DataConfig) -> DataSet:
    raw = source.train()
    rows = _kept(raw, config)
    train_rows, held_out = stratified_split(raw.labels[rows], config.validation, config.seed)
    form, notes = _form(raw, rows, config), Notes()
    train, validation = (_split(raw, part, form, config, notes) for part in (rows[train_rows], rows[held_out]))
    published = config.name == "imagenet" and form.channels == 3
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if published else _mean_std(_pixels(train, config, notes, SAMPLE))
    if not published:  # where nothing has to be decoded, nothing is
        _look(validation, config, notes)
    fingerprint = _fingerprint(raw.classes, train, validation, notes=notes)
    return DataSet(config.name, raw.classes, train, validation, mean, std, fingerprint, notes.lines(raw.where))


def load_test(config: DataConfig) -> AnySplit:
    """Read the test set, whole (``limit`` is for training images). Only a final evaluation may ask for it.

    Images have the form that `load` gives: a coloured test image becomes gray where all training images are gray. What
    is passed over in its folders, or that another folder has the labels, is told in one line, a warning; and so is what
    is unusual in its pictures (streamed: in a sample of them).

    Raises:
        DataError: there is no test set, or as for `load`.
    """
    source = find_source(config)
    train = source.train()
    form = _form(train, _kept(train, config), config)
    raw, notes = source.test(train.classes), Notes()
    test = _split(raw, np.arange(len(raw.labels)), form, config, notes, test=True)
    _look(test, config, notes)
    for line in (raw.line, *notes.lines(raw.where)):
        _tell(line)
    return test


def check_test(config: DataConfig) -> None:
    """Find out, without looking at an image of it, that there is a test set; before a long work that ends with it.

    The line about it is told as by `load_test`, since what is passed over may be a reason not to begin.

    Raises:
        DataError: there is none.
    """
    source = find_source(config)
    _tell(source.test(source.train().classes).line)


def _tell(line: str) -> None:
    if line:
        log.warning("%s", line)


def evaluation_cut(split: StreamSplit) -> Cut:
    """What evaluation takes of a streamed image: the centre, or all of it."""
    if split.centre:
        return lambda name, picture, row: centre(name, picture, split.form)
    return lambda name, picture, row: whole(name, picture, split.form)


def _form(raw: RawSet, rows: Rows, config: DataConfig) -> Form:
    """Common form of the images; streamed ones tell it by a sample, the ImageNets by their name."""
    if config.crop_scale and not config.streaming:
        raise DataError(
            f"{raw.where}: data.crop_scale is {config.crop_scale:g}, but images in memory are padded and cropped; "
            "set data.streaming: true, or data.crop_scale: 0"
        )
    if not config.streaming:
        return form_of(raw, rows, config.image_size)
    if raw.files is None:
        raise DataError(
            f"{raw.where}: data.streaming reads images in class folders (train/CLASS/), and these are in other files; "
            "set data.streaming: false (the images then have to fit into memory), or unpack them"
        )
    if config.crop_scale and config.image_size is None:
        raise DataError(
            f"{raw.where}: data.crop_scale needs to know the size that parts of images are brought to; "
            "set data.image_size, for example 224"
        )
    if config.name in IMAGENETS:
        assert config.image_size is not None, "DataConfig gives the ImageNets a size"
        return Form(config.image_size, 3, True, raw.where)
    return form_of(raw, rows[sample(len(rows), SAMPLE, config.seed)], config.image_size)


def _split(raw: RawSet, rows: Rows, form: Form, config: DataConfig, notes: Notes, *, test: bool = False) -> AnySplit:
    if config.streaming:
        if raw.files is None:
            raise DataError(f"{raw.where}: data.streaming reads class folders; set data.streaming: false")
        files = raw.files.select(rows)
        return StreamSplit(files, raw.labels[rows], raw.index[rows], form, centre=bool(config.crop_scale))
    images, index = decode(raw, rows, form, notes), raw.index[rows]
    if config.name in DISTORTED:
        images = distorted(images, index, config.noise, config.seed, test=test)
    return Split(images, raw.labels[rows], index)


def _look(split: AnySplit, config: DataConfig, notes: Notes) -> None:
    """Count in `notes` what is unusual in a sample of streamed images; of those in memory it is known."""
    if isinstance(split, StreamSplit):
        for _ in _pixels(split, config, notes, NOTED):
            pass


def _pixels(split: AnySplit, config: DataConfig, notes: Notes, most: int) -> Iterable[NDArray[np.uint8]]:
    """Images in parts (n, S, S, channels); of streamed ones at most `most`, and `notes` counts what is unusual."""
    if isinstance(split, StreamSplit):
        cut = evaluation_cut(split)

        def noted(name: str, picture: Image, row: int) -> NDArray[np.uint8]:
            image = cut(name, picture, row)
            notes.see(name, picture, split.channels)
            return image

        rows = sample(len(split), most, config.seed)
        parts = (rows[at : at + SAMPLE_BATCH] for at in range(0, len(rows), SAMPLE_BATCH))
        return frames(split, parts, noted, config.threads)
    # In parts, because numpy counts in int64: eight times the memory of the images it is given.
    return (split.images[at : at + 1024] for at in range(0, len(split), 1024))


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


def _mean_std(parts: Iterable[NDArray[np.uint8]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of (n, H, W, channels) on the 0..1 scale, exact, from histograms."""
    counts: NDArray[np.int64] | int = 0
    for part in parts:
        counts = counts + np.stack(
            [np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(part, -1, 0)]
        )
    assert not isinstance(counts, int), "a training split has images"
    share, values = counts / counts.sum(1, keepdims=True), np.arange(256) / 255
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(1)
    # The floor keeps images of a single colour from dividing by zero.
    return tuple(mean.tolist()), tuple(np.maximum(np.sqrt(variance), 1e-6).tolist())


def _fingerprint(classes: tuple[str, ...], *splits: AnySplit, notes: Notes) -> str:
    digest = hashlib.sha256("\0".join(classes).encode())
    for split in splits:
        pixels: tuple[NDArray[np.uint8] | NDArray[np.int64], ...]
        if isinstance(split, StreamSplit):
            digest.update(f"streamed {split.form.size} {split.form.channels} {split.centre}".encode())
            # What a teacher said of these was once of the picture as stored: lying on its side, or with what it hides.
            digest.update(" ".join(sorted(notes.counts.keys() & {"turned", "transparent"})).encode())
            pixels = (split.files.text, split.files.ends, split.files.sizes)
        else:
            pixels = (split.images,)
        for array in (*pixels, split.labels, split.index):
            # Shape and type keep different arrays of equal bytes apart.
            digest.update(f"{array.shape}{array.dtype.name}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


__all__ = ["AnySplit", "DataSet", "Split", "StreamSplit", "check_test", "evaluation_cut", "load", "load_test"]
