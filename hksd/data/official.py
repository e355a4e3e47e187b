"""Data sets in the files of their authors, which torchvision knows, checks and, when asked, fetches."""

from __future__ import annotations

import gzip
import math
import pickle
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hksd.data.raw import FileState, RawSet, Source, array_pictures, states_of
from hksd.errors import DataError
from hksd.torchvision_guard import import_datasets

Arrays = tuple[NDArray[np.uint8], Any, tuple[str, ...]]  # images (N, H, W) or (N, H, W, 3), labels (N,), class names


@dataclass(frozen=True)
class Official:
    """A data set that torchvision knows.

    Attributes:
        kind: its class in torchvision.datasets.
        classes: number of classes.
        folder: folder of its files below the root that torchvision takes.
        open: reads one part; torchvision's class, the root, whether the training part, whether to fetch it first.
        files: the files of one part with their MD5 (None where only their form is known), relative to `folder`.
    """

    kind: str
    classes: int
    folder: str
    open: Callable[[Any, Path, bool, bool], Arrays]
    files: Callable[[Any, bool], Iterator[tuple[str, str | None]]]

    def place(self, root: Path) -> Path | None:
        """Root for torchvision, when the files lie in `root` or its folder, or `root` is that folder itself."""
        parts = Path(self.folder).parts
        for depth in range(len(parts), -1, -1):
            # `root` may be any of the folders on the way to the files.
            if depth and root.parts[-depth:] != parts[:depth]:
                continue
            above = Path(*root.parts[: len(root.parts) - depth])
            if self._here(above / self.folder):
                return above
        return None

    def _here(self, where: Path) -> bool:
        if self.folder:
            return where.is_dir()
        kind = getattr(import_datasets(), self.kind)
        return any((where / name).is_file() for train in (True, False) for name, _ in self.files(kind, train))


def source_of(name: str, root: Path, download: bool) -> Source:
    """The files of the data set `name` below `root`, fetched first when they are not whole and `download` is set."""
    known = OFFICIAL[name]

    def part(train: bool) -> RawSet:
        kind = getattr(import_datasets(), known.kind)
        where = root / known.folder
        try:
            images, labels, classes = _open(known, kind, root, train, download)
        except (RuntimeError, OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError, zlib.error) as error:
            there = any((where / file).exists() for file, _ in known.files(kind, train))
            if download and not (where.is_dir() if known.folder else there):
                raise DataError(
                    f"{root}: torchvision could not fetch {name} ({error}); check the network and that the "
                    "folder can be written, or put the files there"
                ) from error
            # A wrong form, unlike a wrong checksum, is told by the reader itself; torchvision would not fetch it again.
            formless = isinstance(error, ValueError)
            damage = (not formless and _damaged(known, kind, where, train)) or str(error)
            if formless:
                cure = "delete the folder and set data.download: true to fetch it again"
            elif download:
                cure = f"fetching it again failed ({error}); check the network, or delete the folder and run again"
            else:
                cure = "set data.download: true to fetch it again"
            raise DataError(
                f"{where}: torchvision's files of {name} are incomplete or damaged ({damage}); {cure}"
            ) from error
        numbers = np.array(labels, np.int64)
        pictures = array_pictures(str(where), images)
        return RawSet(str(where), classes, numbers, np.arange(len(numbers)), pictures)

    def state() -> Iterator[FileState]:
        where = root / known.folder
        # All files of a folder of its own: torchvision checks those of the test part too, and need not be imported.
        names = sorted(where.glob("*" if known.folder else "*.mat"))
        return states_of(file for file in names if file.is_file())

    return Source(str(root), lambda: part(True), lambda classes: part(False), state)


def _open(known: Official, kind: Any, root: Path, train: bool, download: bool) -> Arrays:
    try:
        return known.open(kind, root, train, False)
    except (RuntimeError, OSError):
        if not download:
            raise
    from filelock import FileLock

    root.mkdir(parents=True, exist_ok=True)
    # Trials of one machine may start together: the first fetches, the others then find the files.
    with FileLock(root / f".{known.kind}.lock"):
        return known.open(kind, root, train, True)


def _damaged(known: Official, kind: Any, where: Path, train: bool) -> str:
    """Name the files that are missing or fail their checksum."""
    from torchvision.datasets.utils import check_integrity

    bad = [file for file, md5 in known.files(kind, train) if not check_integrity(where / file, md5)]
    return f"missing or wrong: {', '.join(bad)}" if bad else ""


def _open_cifar(kind: Any, root: Path, train: bool, fetch: bool) -> Arrays:
    data = kind(str(root), train=train, download=fetch)
    return data.data, data.targets, tuple(data.classes)


def _cifar_files(kind: Any, train: bool) -> Iterator[tuple[str, str | None]]:
    yield from (*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"]))


def _open_svhn(kind: Any, root: Path, train: bool, fetch: bool) -> Arrays:
    """The cropped digits; the 531,131 simpler images of the part `extra` are left out."""
    data = kind(str(root), split="train" if train else "test", download=fetch)
    return np.ascontiguousarray(data.data.transpose(0, 2, 3, 1)), data.labels, tuple("0123456789")


def _svhn_files(kind: Any, train: bool) -> Iterator[tuple[str, str | None]]:
    _, file, md5 = kind.split_list["train" if train else "test"]
    yield file, md5


def _open_stl10(kind: Any, root: Path, train: bool, fetch: bool) -> Arrays:
    """The labelled images: without the 100,000 others, whose 2.7 GB torchvision would read for their checksum."""
    labelled = type(kind.__name__, (kind,), {"train_list": kind.train_list[:2]})
    data = labelled(str(root), split="train" if train else "test", download=fetch)
    names = getattr(data, "classes", None) or [str(label) for label in range(10)]
    return np.ascontiguousarray(data.data.transpose(0, 2, 3, 1)), data.labels, tuple(names)


def _stl10_files(kind: Any, train: bool) -> Iterator[tuple[str, str | None]]:
    yield from (*kind.train_list[:2], *kind.test_list)


def _open_fashion(kind: Any, root: Path, train: bool, fetch: bool) -> Arrays:
    """Packed files are read as they are; torchvision itself reads only what it has unpacked."""
    where = root / "FashionMNIST" / "raw"
    if fetch:
        kind(str(root), train=train, download=True)
    images, labels = (_idx(where / name, md5) for name, md5 in _fashion_files(kind, train))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(f"{len(images)} images, {len(labels)} labels")
    return images, labels, tuple(kind.classes)


def _fashion_files(kind: Any, train: bool) -> Iterator[tuple[str, str | None]]:
    yield from kind.resources[:2] if train else kind.resources[2:]


def _idx(packed: Path, md5: str | None) -> NDArray[np.uint8]:
    """Read ``NAME`` or else ``NAME.gz`` in the IDX format of MNIST: a count of axes, their lengths, bytes."""
    from torchvision.datasets.utils import check_integrity

    plain = packed.with_suffix("")
    if plain.is_file():
        data = plain.read_bytes()
    elif check_integrity(packed, md5):
        data = gzip.decompress(packed.read_bytes())
    else:
        raise RuntimeError(f"{packed.name} is missing or fails its checksum")
    if data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise ValueError(f"{plain.name} is no IDX file of bytes")
    shape = tuple(np.frombuffer(data, ">i4", data[3], 4).tolist())
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != math.prod(shape):
        raise ValueError(f"{plain.name} holds {values.size} bytes, not the {math.prod(shape)} that its head tells")
    return values.reshape(shape)


OFFICIAL = {
    "cifar10": Official("CIFAR10", 10, "cifar-10-batches-py", _open_cifar, _cifar_files),
    "cifar100": Official("CIFAR100", 100, "cifar-100-python", _open_cifar, _cifar_files),
    "svhn": Official("SVHN", 10, "", _open_svhn, _svhn_files),
    "stl10": Official("STL10", 10, "stl10_binary", _open_stl10, _stl10_files),
    "fashion_mnist": Official("FashionMNIST", 10, "FashionMNIST/raw", _open_fashion, _fashion_files),
}
