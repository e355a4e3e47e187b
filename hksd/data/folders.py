"""Data sets of one folder per class: one's own, ImageNet, and Tiny-ImageNet with its list of validation labels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np

from hksd.data.files import Files
from hksd.data.raw import SUFFIXES, TEST_NAMES, FileState, Pictures, RawSet, Source, open_file, some
from hksd.data.splits import Rows
from hksd.errors import DataError

EXPECTED = f"class folders train/CLASS/*.{{{','.join(suffix[1:] for suffix in SUFFIXES)}}}"
# What tests a network is ImageNet's official validation set: the labels of the test images are not public.
IMAGENET_TEST_NAMES = ("val", "validation", "valid")
ANNOTATIONS = "val_annotations.txt"

Found = tuple[str, os.stat_result]  # name of an image, and its status


def find_folders(root: Path, test_names: tuple[str, ...] = TEST_NAMES) -> Source | None:
    """Recognise ``root/train/CLASS/``.

    Args:
        root: folder of the data set.
        test_names: names that the folder of test images may have, best first.
    """
    if not _subfolders(root / "train"):
        return None

    def open_test(classes: tuple[str, ...]) -> RawSet:
        for name in test_names:
            if (root / name).is_dir():
                return _class_folders(root / name, classes)
        raise DataError(
            f"{root}: no test split: looked for the folders {', '.join(test_names)} beside train; "
            f"put the test images into {test_names[0]}/CLASS/"
        )

    return Source(str(root), lambda: _class_folders(root / "train", None), open_test, lambda: _states(root / "train"))


def find_imagenet(root: Path) -> Source | None:
    """Recognise ImageNet or Tiny-ImageNet; their official validation set is the test split.

    Tiny-ImageNet's images lie in ``train/CLASS/images`` and ``val/images``, with labels in ``val/val_annotations.txt``;
    a ``val`` that somebody sorted into class folders is read too.
    """
    source = find_folders(root, IMAGENET_TEST_NAMES)
    if source is None:
        return None

    def open_test(classes: tuple[str, ...]) -> RawSet:
        val = root / "val"
        if (val / ANNOTATIONS).is_file():
            return _annotated(val, classes)
        if [folder.name for folder in _subfolders(val)] == ["images"]:
            raise DataError(
                f"{val / ANNOTATIONS}: not there; Tiny-ImageNet's validation labels stand in it: unpack the archive "
                "again, or sort the images into val/CLASS/"
            )
        if val.is_dir() and not _subfolders(val):
            raise DataError(
                f"{val}: no class folders in it; expected val/CLASS/*.JPEG as in train (the official archive of "
                f"ImageNet is flat: sort its images into class folders) or, for Tiny-ImageNet, val/{ANNOTATIONS}"
            )
        return source.test(classes)

    return dataclasses.replace(source, test=open_test)


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images_below(folder: str, prefix: str, above: frozenset[str] = frozenset()) -> Iterator[Found]:
    """Names (with `prefix`) and status of all images below a folder, at any depth; hidden ones are passed over."""
    real = os.path.realpath(folder)
    if real in above:
        raise DataError(f"{folder}: this link leads to a folder around it; remove it")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _images_below(entry.path, f"{prefix}{entry.name}/", above | {real})
            elif entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                yield f"{prefix}{entry.name}", entry.stat()


def _listed(folder: Path, prefix: str = "") -> list[Found]:
    try:
        return sorted(_images_below(str(folder), prefix), key=itemgetter(0))
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: cannot be listed ({error.strerror}); check its permissions"
        ) from error


def _states(folder: Path) -> Iterator[FileState]:
    """State of all images in class folders; of the folders their names, since an empty one matters too."""
    for path in _subfolders(folder):
        above = f"{path.absolute()}/"
        yield FileState(above, 0, 0)
        yield from (FileState(name, found.st_size, found.st_mtime_ns) for name, found in _listed(path, above))


def _class_folders(folder: Path, classes: tuple[str, ...] | None) -> RawSet:
    """Open one folder per class; without `classes` (training) the folders define them."""
    folders = _subfolders(folder)
    names = [path.name for path in folders]
    if not names:
        raise DataError(f"{folder}: no class folders in it; expected {folder.name}/CLASS/*.png")
    classes = classes or tuple(names)
    numbers = {name: number for number, name in enumerate(classes)}
    if strange := [name for name in names if name not in numbers]:
        raise DataError(
            f"{folder / strange[0]}: class '{strange[0]}' is not in the training set "
            f"(classes: {some(classes)}); remove the folder, or add training images of that class"
        )
    files: list[Found] = []
    labels: list[int] = []
    for path in folders:
        found = _listed(path, f"{path.name}/")
        if not found:
            raise DataError(
                f"{path}: no images in this class folder (looked for *{', *'.join(SUFFIXES)} in it and below); "
                "add some or remove the folder"
            )
        files += found
        labels += [numbers[path.name]] * len(found)
    return _raw(folder, classes, files, labels)


def _annotated(val: Path, classes: tuple[str, ...]) -> RawSet:
    """Tiny-ImageNet's validation set: ``images/*.JPEG`` and a line per image (name, class, box; between tabs)."""
    annotations = val / ANNOTATIONS
    numbers = {name: number for number, name in enumerate(classes)}
    try:
        lines = annotations.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{annotations}: cannot be read ({error}); unpack the archive again") from error
    told: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, *rest = line.split("\t")
        if not rest:
            raise DataError(
                f"{annotations}, line {number}: no class in it (expected IMAGE, CLASS and a box between tabs); "
                "unpack the archive again"
            )
        if rest[0].strip() not in numbers:
            raise DataError(
                f"{annotations}, line {number}: class '{rest[0].strip()}' is not in the training set "
                f"(classes: {some(classes)}); complete the folder train"
            )
        told[name] = numbers[rest[0].strip()]
    found = _listed(val / "images")
    there = {name for name, _ in found}
    if missing := [name for name in told if name not in there]:
        raise DataError(
            f"{val / 'images' / missing[0]}: not there, but {ANNOTATIONS} names it "
            f"({len(missing)} such image(s)); unpack the archive again"
        )
    if unknown := [name for name, _ in found if name not in told]:
        raise DataError(
            f"{val / 'images' / unknown[0]}: no label for it in {ANNOTATIONS} ({len(unknown)} such image(s)); "
            "remove it, or unpack the archive again"
        )
    if not found:
        raise DataError(f"{val / 'images'}: no images in it; unpack the archive again")
    return _raw(val / "images", classes, found, [told[name] for name, _ in found])


def _raw(folder: Path, classes: tuple[str, ...], found: list[Found], labels: list[int]) -> RawSet:
    files = Files.of(str(folder), ((name, status.st_size) for name, status in found))
    return RawSet(str(folder), classes, np.array(labels, np.int64), np.arange(len(files)), _opener(files), files)


def _opener(files: Files) -> Callable[[Rows], Pictures]:
    def pictures(rows: Rows) -> Pictures:
        for row in rows.tolist():
            file = files.path(row)
            yield file, open_file(file)

    return pictures
