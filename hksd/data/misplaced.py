"""A data set that lies a little elsewhere, or under other names, than it is looked for."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from hksd.data import folders, parquet
from hksd.data.shards import parquet_files
from hksd.data.walk import count_images, holds_images, subfolders
from hksd.errors import DataError, some

FEW = 20  # folders in a folder that are looked into


def misplaced(root: Path) -> str:
    """What to do where no data set is recognised in `root`, which is a folder; "" where none is seen nearby."""
    return _of_parquet(root) or _of_folders(root)


def _of_parquet(root: Path) -> str:
    below = [path for one in _near(root) for path in (one, *_near(one))]
    for place in (root.parent, *below) if root.name == "train" else below:
        with suppress(DataError):
            if parquet.find_parquet(place, ("label",)):
                return f"the files of a training set lie in {place}: set data.root: {place}"
    for place in (root, root / "data", *below):
        if files := [file.name for file in parquet_files(place)]:
            return f"no parquet file in {place} is called train ({some(files)}): rename those of the training set"
    if any(root.glob("*.arrow")) or any(root.glob("*/*.arrow")):
        return "these are files of `save_to_disk`: write each split by `to_parquet` of the library datasets"
    return ""


def _near(folder: Path) -> list[Path]:
    """The first folders in a folder; none in one that cannot be listed."""
    with suppress(DataError):
        return subfolders(folder)[:FEW]
    return []


def _of_folders(root: Path) -> str:
    inside = root.parent if root.name == "train" else next((path.parent for path in sorted(root.glob("*/train"))), None)
    if inside and folders.find_folders(inside):
        return f"class folders lie in {inside / 'train'}: set data.root: {inside}"
    inside = next((path for path in subfolders(root) if path.name.lower() in ("train", "training")), None)
    if inside and inside.name == "train":
        return f"{inside} holds {count_images(inside)} image(s) and no class folders, so they have no labels"
    if inside:
        return f"rename {inside.name} to train"
    inverted = [path.name for path in subfolders(root) if holds_images(path / "train")]
    if len(inverted) > 1:
        one = inverted[0]
        return f"each class has a folder train of its own here: move {one}/train to train/{one}, and so on"
    if sum(map(holds_images, subfolders(root))) > 1:
        return f"class folders lie in {root} itself: move them into {root / 'train'}"
    return ""
