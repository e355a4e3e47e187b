"""The usual mistakes about a teacher from elsewhere, undone one by one on a few hundred images.

Another normalisation, pixels on 0..255, blue before red, another size, another order of the classes, running statistics
that were never gathered: each is tried, and what the teacher knows then is counted.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hksd.config.networks import TeacherConfig
from hksd.data import IMAGENET_MEAN, IMAGENET_STD, AnySplit, DataSet, Split
from hksd.data.augment import batches_of
from hksd.data.settings import DataConfig
from hksd.errors import some
from hksd.models.taps import TappedNet
from hksd.run.evaluate import accuracy
from hksd.teacher.inputs import Inputs, OwnInputs, inputs_of
from hksd.teacher.resized import mflops_of, resized, sizes_to_try

TRIED, TRIED_LARGE, LARGE = 384, 96, 64  # images of a trial; fewer of those above so many pixels
LEAST, BUDGET = 24, 4e5  # of a trial of another size: images, and MFLOPs, which are some ten seconds
BATCH = 96
RARE = 1e-3  # what chance does no oftener is no chance
FINE = 0.9  # from here on no repair can give far more
FAR = 0.1  # a repair gives far more when it gives so much more accuracy, and chance would not
NORMAL, CHANNELS = "another normalisation", "teacher.channels"
ORDERED = 0.5  # the least that another order has to give: some order suits the answers of an untrained network too
LISTED = 20  # classes whose order a message shows
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Some:
    """Some images with their labels: validation images first, training images where there are few of them.

    Attributes:
        images: (N, channels, H, W), as everybody sees them.
        labels: (N,), int64.
        of: number of images that these are a part of; 0 where they are all.
    """

    images: Tensor
    labels: Tensor
    of: int = 0


@dataclass(frozen=True)
class Repair:
    """What a repair gives.

    Attributes:
        text: the repair, as it is to be set.
        accuracy: with it, on the images of the trial.
        count: number of these images.
        changes: how many things it changes.
        some: they are a part of the images that other repairs were tried on.
    """

    text: str
    accuracy: float
    count: int
    changes: int = 1
    some: bool = False

    def __str__(self) -> str:
        return f"with {self.text} it has {self.accuracy:.2%}{f' (of {self.count} of them)' if self.some else ''}"


def some_of(data: DataSet, config: DataConfig, device: torch.device) -> Some:
    """A few hundred images, evenly from the whole split, neither cropped nor flipped."""
    count = TRIED if data.image_size <= LARGE else TRIED_LARGE
    parts = [_evenly(data.validation, count)]
    if len(data.validation) < count:
        parts.append(_evenly(data.train, count - len(data.validation)))
    found = [
        batch for part in parts for batch in batches_of(part, data, config, device, augment=False).plain(len(part))
    ]
    return Some(torch.cat([batch.images for batch in found]), torch.cat([batch.labels for batch in found]).cpu())


def _evenly(split: AnySplit, count: int) -> AnySplit:
    rows = np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(np.int64))
    if isinstance(split, Split):
        return Split(split.images[rows], split.labels[rows], split.index[rows])
    return dataclasses.replace(
        split, files=split.files.select(rows), labels=split.labels[rows], index=split.index[rows]
    )


@torch.no_grad()
def answers(network: nn.Module, images: Tensor) -> Tensor:
    """Outputs (N, C) of a network for images, on the CPU; in the mode that it is in."""
    return torch.cat([network(part).float().cpu() for part in torch.split(images, BATCH)])


def repairs(
    network: TappedNet, settings: TeacherConfig, data: DataSet, seen: Some, known: Inputs | None
) -> list[Repair]:
    """What the repairs give on some images, the best one first; none that changes more things and gives no more."""
    now = inputs_of(settings, data)
    inner = network.network if isinstance(network, OwnInputs) else network
    ways = {"": now, **_candidates(now, data, known)}
    tried = {text: _tried(inner, text, inputs, seen, data) for text, inputs in ways.items()}
    found = [one for ones in tried.values() for one in ones]
    likely = max(tried, key=lambda text: tried[text][0].accuracy)
    good = max(one.accuracy for one in found) > FINE
    for size in () if good else sizes_to_try(now, known, data):
        if (other := resized(inner, settings, data, size)) is not None:
            affordable = max(LEAST, int(BUDGET / max(1.0, mflops_of(settings, data, size))))
            few = _fewer(seen, min(affordable, TRIED if size <= LARGE else TRIED_LARGE))
            for text in dict.fromkeys(("", likely)):
                words = f"{text}{' and ' if text else ''}another size, teacher.image_size: {size}"
                found += _tried(other, words, dataclasses.replace(ways[text], size=size), few, data)
    found = [one for one in found if one.text]
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        mixed = torch.randperm(len(seen.labels), generator=torch.Generator().manual_seed(0))
        given = answers(_with_batch_statistics(network), seen.images[mixed.to(seen.images.device)])
        found.append(
            Repair(
                "the statistics of each batch in its batch norms (train mode; save running means and variances of "
                "its training images with its weights)",
                accuracy(given, seen.labels[mixed]),
                len(mixed),
            )
        )
    found.sort(key=lambda one: (-one.accuracy, one.changes))
    best = found[0] if found else None
    return [one for one in found if best and one.changes <= best.changes and one.accuracy > best.accuracy - FAR]


def _tried(network: TappedNet, text: str, inputs: Inputs, seen: Some, data: DataSet) -> list[Repair]:
    """What a network gives that sees its images so; and with its classes in another order, where that gives far more.

    Nothing where it does not take them.
    """
    shown = dataclasses.replace(inputs, size=None if inputs.size == data.image_size else inputs.size)
    try:
        given = answers(OwnInputs(network, shown, data).to(seen.images.device), seen.images)
    except Exception as error:  # a stranger's network, with images of a size that it was not tried on
        if inputs.size is None:
            raise
        log.debug("%s: %s", text, error)
        return []
    plain, changes = accuracy(given, seen.labels), text.count(" and ") + bool(text) + (", " + CHANNELS in text)
    part, count = len(seen.labels) < seen.of, len(seen.labels)
    found = [Repair(text, plain, count, changes, part)]
    moved, order = reordered(given.argmax(1).numpy(), seen.labels.numpy(), len(data.classes))
    if moved > ORDERED and far_more(moved, plain, count):
        words = f"{text + ' and ' if text else ''}{_order(order, data.classes)}"
        found.append(Repair(words, moved, count, changes + 1, part))
    return found


def _fewer(seen: Some, count: int) -> Some:
    """At most `count` of some images, evenly from all."""
    rows = torch.linspace(0, len(seen.labels) - 1, min(count, len(seen.labels))).round().long()
    return Some(seen.images[rows.to(seen.images.device)], seen.labels[rows], len(seen.labels))


def _candidates(now: Inputs, data: DataSet, known: Inputs | None) -> dict[str, Inputs]:
    """Other ways to show it the images, by the keys that say so."""
    count = data.channels
    half, zero, one, byte = (0.5,) * count, (0.0,) * count, (1.0,) * count, (1 / 255,) * count
    ways = {
        f"{NORMAL}, teacher.preprocess: own": Inputs(data.mean, data.std),
        f"{NORMAL}, teacher.preprocess: none": Inputs(zero, one),
        f"{NORMAL}, {keys_of(Inputs(half, half))}": Inputs(half, half),
        f"pixels on 0..255 ({keys_of(Inputs(zero, byte))})": Inputs(zero, byte),
    }
    if count == len(IMAGENET_MEAN):
        ways[f"{NORMAL}, teacher.preprocess: imagenet"] = Inputs(IMAGENET_MEAN, IMAGENET_STD)
        caffe = Inputs(IMAGENET_MEAN, byte)
        ways[f"pixels on 0..255 less ImageNet's mean ({keys_of(caffe)})"] = caffe
    if known is not None and len(known.mean) == count:
        known = dataclasses.replace(known, size=None if known.size == data.image_size else known.size)
        ways[f"what its file says ({keys_of(known)})"] = known
    ways = {text: dataclasses.replace(way, size=way.size or now.size) for text, way in ways.items()}
    if count == 3:
        order = "rgb" if now.bgr else "bgr"
        turned = {f"teacher.channels: {order}": now}
        turned |= {
            f"{text}, teacher.channels: {order}": way for text, way in ways.items() if "teacher.mean" not in text
        }
        flipped = {
            text: Inputs(way.mean[::-1], way.std[::-1], not now.bgr, way.size or now.size)
            for text, way in turned.items()
        }
        ways = {text: _as(way, now.bgr) for text, way in ways.items()} | flipped
    shown: dict[str, Inputs] = {}
    for text, way in ways.items():
        if way != now and way not in shown.values():
            shown[text] = way
    return shown


def _as(way: Inputs, bgr: bool) -> Inputs:
    return dataclasses.replace(way, mean=way.mean[::-1], std=way.std[::-1], bgr=True) if bgr else way


def keys_of(inputs: Inputs) -> str:
    """Mean and standard deviation, and a size if it wants one, as they are to be set."""
    size = f", teacher.image_size: {inputs.size}" if inputs.size else ""
    mean, std = (", ".join(f"{value:.6g}" for value in part) for part in (inputs.mean, inputs.std))
    return f"teacher.mean: [{mean}], teacher.std: [{std}]{size}"


def _with_batch_statistics(network: TappedNet) -> TappedNet:
    """A copy whose batch norms take the statistics of the batch."""
    other = copy.deepcopy(network)
    for module in other.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    return other


def reordered(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> tuple[float, NDArray[np.int64]]:
    """How right the answers would be with the classes in the order that suits them best.

    The order is found on one half of the images and tried on the other, and the other way round: on images that tell
    it, some order always looks better than chance.

    Returns:
        The accuracy, and the class (C,) that each output would stand for, found on all images.
    """
    even = np.arange(len(labels)) % 2 == 0
    right = 0
    for part in (even, ~even):
        order = _matched(predicted[part], labels[part], classes)
        right += int((order[predicted[~part]] == labels[~part]).sum())
    return right / len(labels), _matched(predicted, labels, classes)


def _matched(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """A class for each output, the most frequent pairs first; what is left keeps its number where that is free."""
    counts = np.bincount(predicted * classes + labels, minlength=classes * classes)
    order = np.full(classes, -1, np.int64)
    taken = np.zeros(classes, bool)
    for pair in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]:
        output, label = divmod(int(pair), classes)
        if order[output] < 0 and not taken[label]:
            order[output], taken[label] = label, True
    same = np.flatnonzero((order < 0) & ~taken)
    order[same], taken[same] = same, True
    order[order < 0] = np.flatnonzero(~taken)
    return order


def _order(order: NDArray[np.int64], classes: Sequence[str]) -> str:
    """The repair of another order of the classes, in words."""
    names = [classes[label] for label in order]
    kind = next((word for word, like in _usual(classes) if names == like), "the order that suits its answers")
    listed = f"[{', '.join(names)}]" if len(names) <= LISTED else f"a file of these names ({some(names)})"
    return f"its classes in another order, teacher.classes: {listed} ({kind})"


def _usual(classes: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    if all(name.isdecimal() for name in classes):
        yield "the numeric order of their names", sorted(classes, key=int)
    yield "the order of their names as texts", sorted(classes)
    yield "the order of their names whatever the case", sorted(classes, key=str.lower)


def far_more(better: float, now: float, count: int) -> bool:
    """Whether an accuracy on `count` images is so much higher than another that neither is chance."""
    return better >= now + FAR and at_least(round(better * count), count, now) < RARE


def at_least(right: int, count: int, share: float) -> float:
    """Probability that at least `right` of `count` independent answers are right, each with probability `share`."""
    if right <= 0 or share >= 1:
        return 1.0
    if share <= 0:
        return 0.0
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        + k * math.log(share) + (count - k) * math.log1p(-share)
        for k in range(right, count + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(map(math.exp, logs)))
