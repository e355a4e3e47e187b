"""Find the data set that a configuration names: digits, the files of its authors, or parquet files and folders."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hksd.data import folders, parquet
from hksd.data.classes import ordered
from hksd.data.misplaced import misplaced
from hksd.data.official import OFFICIAL, source_of
from hksd.data.raw import RawSet, Source, array_pictures
from hksd.data.settings import DataConfig
from hksd.data.splits import Rows, stratified_split
from hksd.errors import DataError
from hksd.files import expanded

DIGITS_TEST_SHARE = 0.2
# Data sets made of another one's files.
DISTORTED = {"tcifar10": "cifar10", "tcifar100": "cifar100"}
# Folder that the archive unpacks to, where it has one, and number of classes.
IMAGENETS = {"imagenet": ("ILSVRC/Data/CLS-LOC", 1000), "tiny_imagenet": ("tiny-imagenet-200", 200)}
CLASSES = {name: known.classes for name, known in OFFICIAL.items()} | {name: n for name, (_, n) in IMAGENETS.items()}


def find_source(config: DataConfig) -> Source:
    """Recognise the layout below ``data.root``: the files of the authors, then parquet, then class folders.

    A streaming run looks for class folders before parquet: only they can be streamed. Last comes parquet in the folder
    of a configuration of the Hub, since a folder with any name may lie beside class folders.

    Raises:
        UserError: the root begins with the home folder of a user that there is not.
        DataError: root does not exist or holds nothing known, or fetching failed.
    """
    source = _found(config)
    return ordered(source, config.classes) if config.classes else source


def _found(config: DataConfig) -> Source:
    if config.name == "digits":
        return _digits(config.seed)
    assert config.root is not None, "DataConfig demands a root"
    root = expanded(config.root, "data.root")
    _check_root(root)
    name = DISTORTED.get(config.name, config.name)
    official = OFFICIAL.get(name)
    if official and (place := official.place(root)):
        return source_of(name, place, config.download)
    source = _own(root, name, config.streaming)
    if source is None and official and config.download:
        return source_of(name, root, True)
    if source is None:
        raise _nothing(root, name)
    return _with_classes(source, name, CLASSES[name]) if name in CLASSES else source


def _own(root: Path, name: str, streaming: bool | None) -> Source | None:
    """Parquet files or class folders."""
    # CIFAR-100 also has 20 coarse classes.
    labels = ("fine_label", "label") if name == "cifar100" else ("label",)

    def in_folders() -> Source | None:
        if name not in IMAGENETS:
            return folders.find_folders(root)
        return folders.find_imagenet(root) or folders.find_imagenet(root / IMAGENETS[name][0])

    if streaming:
        found = in_folders() or parquet.find_parquet(root, labels)
    else:
        found = parquet.find_parquet(root, labels) or in_folders()
    return found or parquet.find_configuration(root, labels)


def _check_root(root: Path) -> None:
    """Refuse a path that no file system takes, and one that may not be looked at."""
    try:
        root.stat()
    except (FileNotFoundError, NotADirectoryError):
        return  # told where it is known what is looked for
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        shown = str(root) if len(str(root)) < 200 else f"{str(root)[:200]}..."
        raise DataError(f"{shown!r}: data.root cannot be opened ({reason}); correct the path") from error


def _nothing(root: Path, name: str) -> DataError:
    cure = f", or let torchvision fetch {name} with data.download: true" if name in OFFICIAL else ""
    if not root.exists():
        return DataError(f"{root}: data.root does not exist; correct the path{cure}")
    if not root.is_dir():
        return DataError(f"{root}: data.root is a file; give the folder that holds the data set")
    expected = [parquet.EXPECTED, folders.EXPECTED]
    if name in OFFICIAL:
        expected.insert(0, _files_of(name))
    for other, known in OFFICIAL.items():
        if other != name and known.place(root):
            cure = f"; these look like torchvision's files of {other}: set data.name: {other}"
    if found := misplaced(root):
        cure = f"; {found}"
    return DataError(f"{root}: no data set recognised in data.root; expected {', or '.join(expected)}{cure}")


def _files_of(name: str) -> str:
    folder = OFFICIAL[name].folder
    return f"torchvision's folder {folder}" if folder else "torchvision's files train_32x32.mat and test_32x32.mat"


def _with_classes(source: Source, name: str, count: int) -> Source:
    """Refuse a CIFAR that has not the classes of CIFAR: its results would be compared with published ones."""

    def train() -> RawSet:
        raw = source.train()
        if len(raw.classes) != count:
            raise DataError(
                f"{raw.where}: {len(raw.classes)} classes, but {name} has {count}; "
                "for data of your own set data.name: folder"
            )
        return raw

    return dataclasses.replace(source, train=train)


def _digits(seed: int) -> Source:
    """scikit-learn's 1,797 digits. They have no official test set, so the seed draws one."""

    def part(side: int) -> RawSet:
        table = _digits_table()
        # Pixels are counts of 0 to 16.
        images = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        labels: Rows = table[:, -1].astype(np.int64)
        # Positions among all digits: what is train, validation or test stays disjoint by its index.
        index = stratified_split(labels, DIGITS_TEST_SHARE, seed)[side]
        classes = tuple(map(str, range(10)))
        where = "scikit-learn's digits"
        return RawSet(where, classes, labels[index], index, array_pictures(where, images[index]))

    return Source("scikit-learn's digits", lambda: part(0), lambda classes: part(1), lambda: iter(()))


def _digits_table() -> NDArray[np.float64]:
    """The digits as scikit-learn ships them, (1797, 65): 64 pixels and the label.

    Its file is read where it lies, since importing scikit-learn takes a second.
    """
    package = importlib.util.find_spec("sklearn")
    for folder in (package.submodule_search_locations or ()) if package else ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.exists():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
