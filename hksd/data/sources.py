"""Find the data set that a configuration names: digits, torchvision's CIFAR files, or files of one's own."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hksd.data.files import EXPECTED, find_folders, find_parquet
from hksd.data.raw import RawSet, Source, array_pictures
from hksd.data.splits import Rows, stratified_split
from hksd.data.torchvision_guard import import_datasets
from hksd.errors import DataError

if TYPE_CHECKING:
    from hksd.config import DataConfig

# Folder of torchvision's files and number of classes.
CIFAR = {"cifar10": ("cifar-10-batches-py", 10), "cifar100": ("cifar-100-python", 100)}
DIGITS_TEST_SHARE = 0.2


def find_source(config: DataConfig) -> Source:
    """Recognise the layout below ``data.root``: torchvision's files, then parquet, then class folders.

    Raises:
        DataError: root does not exist or holds nothing known, or fetching CIFAR failed.
    """
    if config.name == "digits":
        return _digits(config.seed)
    assert config.root is not None, "DataConfig demands a root"
    root = Path(config.root).expanduser()
    folder, count = CIFAR.get(config.name, (None, None))
    if folder and root.name == folder and root.is_dir():
        return _torchvision(root.parent, config.name, config.download)
    if folder and (root / folder).is_dir():
        return _torchvision(root, config.name, config.download)
    # CIFAR-100 also has 20 coarse classes.
    labels = ("fine_label", "label") if config.name == "cifar100" else ("label",)
    source = find_parquet(root, labels) or find_folders(root)
    if source is None and folder and config.download:
        return _torchvision(root, config.name, config.download)
    if source is None:
        raise _nothing(root, config.name)
    return source if count is None else _with_classes(source, config.name, count)


def _nothing(root: Path, name: str) -> DataError:
    cure = f", or let torchvision fetch {name} with data.download: true" if name in CIFAR else ""
    if not root.exists():
        return DataError(f"{root}: data.root does not exist; correct the path{cure}")
    if not root.is_dir():
        return DataError(f"{root}: data.root is a file; give the folder that holds the data set")
    expected = [*([f"torchvision's folder {CIFAR[name][0]}"] if name in CIFAR else []), *EXPECTED]
    for cifar, (folder, _) in CIFAR.items():
        if cifar != name and (root.name == folder or (root / folder).is_dir()):
            cure = f"; these look like torchvision's files of {cifar}: set data.name: {cifar}"
    return DataError(f"{root}: no data set recognised in data.root; expected {', or '.join(expected)}{cure}")


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

    return Source(source.where, train, source.test)


def _digits(seed: int) -> Source:
    """scikit-learn's 1,797 digits. They have no official test set, so the seed draws one."""

    def part(side: int) -> RawSet:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        # Pixels are counts of 0 to 16.
        images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
        labels: Rows = bunch.target.astype(np.int64)
        # Positions among all digits: what is train, validation or test stays disjoint by its index.
        index = stratified_split(labels, DIGITS_TEST_SHARE, seed)[side]
        classes = tuple(str(name) for name in bunch.target_names)
        where = "scikit-learn's digits"
        return RawSet(where, classes, labels[index], index, array_pictures(where, images[index]))

    return Source("scikit-learn's digits", lambda: part(0), lambda classes: part(1))


def _torchvision(root: Path, name: str, download: bool) -> Source:
    """CIFAR in the files of its authors, which torchvision checks and, when asked, fetches."""

    def part(train: bool) -> RawSet:
        kind = getattr(import_datasets(), name.upper())
        where = root / kind.base_folder
        try:
            data = _open_cifar(kind, root, train, download)
        except (RuntimeError, OSError, KeyError, pickle.UnpicklingError) as error:
            if download and not where.is_dir():
                raise DataError(
                    f"{root}: torchvision could not fetch {name} ({error}); check the network and that the "
                    "folder can be written, or put the files there"
                ) from error
            damage = _damaged(kind, where) or str(error)
            if download:
                cure = f"fetching it again failed ({error}); check the network, or delete the folder and run again"
            else:
                cure = "set data.download: true to fetch it again"
            raise DataError(
                f"{where}: torchvision's files of {name} are incomplete or damaged ({damage}); {cure}"
            ) from error
        labels = np.array(data.targets, np.int64)
        pictures = array_pictures(str(where), data.data)
        return RawSet(str(where), tuple(data.classes), labels, np.arange(len(labels)), pictures)

    return Source(str(root), lambda: part(True), lambda classes: part(False))


def _open_cifar(kind: Any, root: Path, train: bool, download: bool) -> Any:
    try:
        return kind(str(root), train=train)
    except RuntimeError:
        if not download:
            raise
    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    # Trials of one machine may start together: the first fetches, the others then find the files.
    with FileLock(root / f".{kind.base_folder}.lock"):
        return kind(str(root), train=train, download=True)


def _damaged(kind: Any, folder: Path) -> str:
    """Name the files that are missing or fail their checksum."""
    from torchvision.datasets.utils import check_integrity

    meta = (kind.meta["filename"], kind.meta["md5"])
    bad = [file for file, md5 in (*kind.train_list, *kind.test_list, meta) if not check_integrity(folder / file, md5)]
    return f"missing or wrong: {', '.join(bad)}" if bad else ""
