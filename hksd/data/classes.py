"""The order of the classes: it gives each its number, and so says which output of a network stands for which."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator

import numpy as np

from hksd.class_names import composed, difference, read_names
from hksd.data.raw import FileState, RawSet, Source, states_of
from hksd.errors import DataError, some
from hksd.files import expanded

KEY = "data.classes"


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes in the order that numbers them.

    Where all are whole numbers they stand by value, since then they mostly are the labels that a teacher from elsewhere
    was trained with; 2 would come after 10 otherwise. All others stand as texts, as torchvision's ImageFolder has
    them, for the same reason: also ``class2`` after ``class10``.
    """
    names = list(names)
    if all(re.fullmatch("[0-9]+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def ordered(source: Source, classes: tuple[str, ...] | str) -> Source:
    """`source` with the classes in the order that `data.classes` gives.

    Labels without names (``RawSet.named``) get these names in this order; named classes must be the same ones.

    Args:
        source: a recognised data set.
        classes: names in order, or a file of them (see `hksd.class_names.read_names`).

    Raises:
        DataError: on reading, when the names are not those of the data.
    """
    file = expanded(classes, KEY) if isinstance(classes, str) else None
    names = read_names(file, KEY) if file else tuple(map(composed, classes))
    told = str(file) if file else KEY
    opened: list[tuple[str, ...]] = []

    def train() -> RawSet:
        raw = source.train()
        opened[:] = [raw.classes]
        return _renumbered(raw, names, told)

    def test(_: tuple[str, ...]) -> RawSet:
        own = opened[0] if opened else source.train().classes
        return _renumbered(source.test(own), names, told)

    def state() -> Iterator[FileState]:
        found = list(source.state())
        return iter([*found, *states_of([file])] if found and file else found)

    return dataclasses.replace(source, train=train, test=test, state=state)


def _renumbered(raw: RawSet, names: tuple[str, ...], told: str) -> RawSet:
    if not raw.named and set(raw.classes) != set(names):
        if len(raw.classes) != len(names):
            raise DataError(
                f"{told}: {len(names)} names ({some(names)}), but the labels in {raw.where} reach from 0 to "
                f"{len(raw.classes) - 1}; give a name for each"
            )
        return dataclasses.replace(raw, classes=names, named=True)
    own = tuple(map(composed, raw.classes))
    if set(own) != set(names):
        said = difference(names, own, "no such class in the data:", "not named:")
        raise DataError(
            f"{told}: not the classes of {raw.where}: {said} ({told}: {some(names)}; the data: {some(own)}); "
            "name every class of the data once"
        )
    numbers = np.array([names.index(name) for name in own], np.int64)
    return dataclasses.replace(raw, classes=names, labels=numbers[raw.labels])
