"""The folders of one class, and what people may take for one class, for two, or for another number, and is not."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hksd.errors import some

Found = tuple[str, os.stat_result]  # name of an image, and its status


@dataclass(frozen=True)
class ClassFolder:
    """The images of one class.

    Attributes:
        name: the class, in Unicode's composed form.
        folders: where they lie: several where names are equal in this form.
        images: their names below the folder of all classes, and status.
        passed: what was passed over among them, for a message; "" for nothing.
    """

    name: str
    folders: list[Path]
    images: list[Found]
    passed: str


def remarks(classes: Sequence[ClassFolder]) -> list[str]:
    """What is remarkable in the folders of the classes, a clause each.

    Args:
        classes: in the order that numbers them.
    """
    said = []
    if twice := [f"'{one.name}' ({_in_both(one)} file names in both)" for one in classes if len(one.folders) > 1]:
        said.append(f"folders whose names differ in their Unicode form alone are one class: {some(twice)}")
    if alike := _groups(classes, lambda one: _folded(one.name)):
        said.append(
            "folders whose names differ in small and capital letters, spaces, leading zeros or forms of a character "
            f"alone are classes of their own: {some(alike)}"
        )
    if linked := _groups(classes, lambda one: tuple(sorted(map(os.path.realpath, one.folders)))):
        said.append(f"links make one folder several classes, so that its images have several labels: {some(linked)}")
    if nested := [f"{one.name}/{inner[0]}, {inner[1]}" for one in classes if len(inner := _inner(one)) > 1]:
        said.append(
            f"folders in {len(nested)} of {len(classes)} class folders are no classes of their own, their images are "
            f"those of the class around them (as {nested[0]})"
        )
    return said + _order([one.name for one in classes])


def _groups(classes: Sequence[ClassFolder], key: Callable[[ClassFolder], Hashable]) -> list[str]:
    """The names of those classes that have a key in common."""
    found: dict[Hashable, list[str]] = {}
    for one in classes:
        found.setdefault(key(one), []).append(one.name)
    return [" and ".join(f"'{name}'" for name in names) for names in found.values() if len(names) > 1]


def _folded(name: str) -> str:
    folded = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    return folded.lstrip("0") or "0" if folded.isdecimal() else folded


def _in_both(one: ClassFolder) -> int:
    """How many names stand in several folders of a class: perhaps the same images twice."""
    return sum(count > 1 for count in Counter(name.partition("/")[2] for name, _ in one.images).values())


def _inner(one: ClassFolder) -> list[str]:
    """Folders right inside that hold images, sorted by name."""
    return sorted({parts[1] for name, _ in one.images if len(parts := name.split("/", 2)) > 2})


def _order(names: Sequence[str]) -> list[str]:
    """Whether most names are whole numbers, and one that is none has put all into the order of texts."""
    numbers = [name for name in names if re.fullmatch("[0-9]+", name)]
    others = [name for name in names if name not in numbers]
    if not others or len(numbers) <= len(others) or numbers == sorted(numbers, key=int):
        return []
    first = next(two for one, two in zip(sorted(numbers, key=int), numbers, strict=True) if one != two)
    return [
        f"'{others[0]}' is no whole number, so the classes are numbered in the order of texts ('{first}' is number "
        f"{names.index(first)}); data.classes gives them another order"
    ]
