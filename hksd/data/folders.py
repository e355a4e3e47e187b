"""Data sets of one folder per class: one's own, ImageNet, and Tiny-ImageNet with its list of validation labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from hksd.class_names import composed
from hksd.data.class_folders import Found
from hksd.data.files import Files
from hksd.data.raw import (
    SUFFIXES,
    TEST_NAMES,
    FileState,
    Pictures,
    RawSet,
    Source,
    first_labelled,
    open_file,
    rename_to_test,
)
from hksd.data.splits import Rows
from hksd.data.walk import Walked, count_images, subfolders, walk, walk_flat
from hksd.errors import DataError, nearest, some

EXPECTED = f"class folders train/CLASS/*.{{{','.join(suffix[1:] for suffix in SUFFIXES)}}}"
# What tests a network is ImageNet's official validation set: the labels of the test images are not public.
IMAGENET_TEST_NAMES = ("val", "validation", "valid")
ANNOTATIONS = "val_annotations.txt"


def find_folders(root: Path, test_names: tuple[str, ...] = TEST_NAMES) -> Source | None:
    """Recognise ``root/train/CLASS/``.

    Args:
        root: folder of the data set.
        test_names: names that the folder of test images may have, best first; one without labels is passed over where
            a later one has them.
    """
    if not subfolders(root / "train"):
        return None
    train = _Train(root / "train")
    return Source(
        str(root),
        train.open,
        lambda classes: _open_test(root, test_names, classes),
        train.state,
        lambda: train.now.line,
    )


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
        if [folder.name for folder in subfolders(val)] == ["images"]:
            raise DataError(
                f"{val / ANNOTATIONS}: not there; Tiny-ImageNet's validation labels stand in it: unpack the archive "
                "again, or sort the images into val/CLASS/"
            )
        if val.is_dir() and not subfolders(val):
            raise DataError(
                f"{val}: no class folders in it; expected val/CLASS/*.JPEG as in train (the official archive of "
                f"ImageNet is flat: sort its images into class folders) or, for Tiny-ImageNet, val/{ANNOTATIONS}"
            )
        return source.test(classes)

    return dataclasses.replace(source, test=open_test)


class _Train:
    """The class folders of a training set, walked when they are first asked for.

    Walking a million files takes seconds, so one walk serves the line, the first states and the images. Later states
    are those of another walk: they tell whether files changed meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._now: Walked | None = None
        self._told = False  # whether `state` has told of this walk

    @property
    def now(self) -> Walked:
        """The last walk."""
        if self._now is None:
            self._now = walk(self.folder)
        return self._now

    def open(self) -> RawSet:
        """The images of the last walk."""
        return _raw_set(self.folder, self.now, None)

    def state(self) -> Iterator[FileState]:
        """State of all images; of the folders their names, since an empty one matters too."""
        if self._told:
            self._now = None
        self._told = True
        root = self.folder.absolute()
        for one in self.now.classes:
            for folder in one.folders:
                yield FileState(f"{folder.absolute()}/", 0, 0)
                if folder.name != one.name:
                    yield FileState(f"{one.name}/", 0, 0)  # what older releases kept has the folder's name
            for name, found in one.images:
                yield FileState(f"{root}/{name}", found.st_size, found.st_mtime_ns)


def _open_test(root: Path, names: tuple[str, ...], classes: tuple[str, ...]) -> RawSet:
    """Open the first folder of test images that has labels."""
    there = [name for name in names if (root / name).is_dir()]
    if not there:
        cure = rename_to_test((folder.name for folder in subfolders(root)), names)
        raise DataError(
            f"{root}: no test split: looked for the folders {', '.join(names)} beside train; "
            f"{cure or f'put the test images into {names[0]}/CLASS/'}"
        )
    name, line = first_labelled(there, lambda name: _unlabelled(root / name, classes))
    folder = root / name
    if not subfolders(folder):
        raise DataError(
            f"{folder}: {_unlabelled(folder, classes)}, so its images have no labels; expected {name}/CLASS/*.png: "
            f"sort them into class folders, or put labelled ones into {names[1]}/CLASS/"
        )
    raw = _raw_set(folder, walk(folder), classes)
    same = f"{folder}: leads to the training images; a network was trained on what it is tested on here"
    lines = (line and f"{root}: {line}", same if folder.samefile(root / "train") else "", raw.line)
    return dataclasses.replace(raw, line="; ".join(filter(None, lines)))


def _unlabelled(folder: Path, classes: tuple[str, ...]) -> str:
    """Why the images in a folder have no labels; "" where they have.

    Kaggle and ImageNet publish test images in one heap, and some loaders want that heap in a folder of any name.
    """
    inside = subfolders(folder)
    if not inside:
        return f"{count_images(folder)} image(s) and no class folders in it"
    if len(inside) == 1 and composed(inside[0].name) not in classes:
        return f"the only folder in it, {inside[0].name}, is none of the classes"
    return ""


def _raw_set(folder: Path, walked: Walked, classes: tuple[str, ...] | None) -> RawSet:
    """The images in the folders of the classes; without `classes` (training) the folders define them."""
    names = tuple(one.name for one in walked.classes)
    if not names:
        raise DataError(f"{folder}: no class folders in it; expected {folder.name}/CLASS/*.png")
    classes = classes or names
    numbers = {composed(name): number for number, name in enumerate(classes)}
    files: list[Found] = []
    labels: list[int] = []
    for one in walked.classes:
        if one.name not in numbers:
            raise DataError(
                f"{one.folders[0]}: class '{one.name}' is not in the training set{nearest(one.name, classes)} "
                f"(classes: {some(classes)}); remove the folder, or add training images of that class"
            )
        if not one.images:
            passed = f"; passed over: {one.passed}" if one.passed else ""
            raise DataError(
                f"{one.folders[0]}: no images in this class folder (looked for *{', *'.join(SUFFIXES)} in it and below"
                f"{passed}); add some or remove the folder"
            )
        files += one.images
        labels += [numbers[one.name]] * len(one.images)
    return _raw(folder, classes, files, labels, walked.line)


def _annotated(val: Path, classes: tuple[str, ...]) -> RawSet:
    """Tiny-ImageNet's validation set: ``images/*.JPEG`` and a line per image (name, class, box; between tabs)."""
    annotations = val / ANNOTATIONS
    numbers = {composed(name): number for number, name in enumerate(classes)}
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
        label = composed(rest[0].strip())
        if label not in numbers:
            raise DataError(
                f"{annotations}, line {number}: class '{label}' is not in the training set "
                f"(classes: {some(classes)}); complete the folder train"
            )
        told[name] = numbers[label]
    found, line = walk_flat(val / "images")
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
    return _raw(val / "images", classes, found, [told[name] for name, _ in found], line)


def _raw(folder: Path, classes: tuple[str, ...], found: list[Found], labels: list[int], line: str) -> RawSet:
    files = Files.of(str(folder), ((name, status.st_size) for name, status in found))
    index = np.arange(len(files))
    return RawSet(str(folder), classes, np.array(labels, np.int64), index, _opener(files), files, line=line)


def _opener(files: Files) -> Callable[[Rows], Pictures]:
    def pictures(rows: Rows) -> Pictures:
        for row in rows.tolist():
            file = files.path(row)
            yield file, open_file(file)

    return pictures
