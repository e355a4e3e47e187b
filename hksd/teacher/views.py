"""Files that keep what a teacher knows of the views of a data set: one for each view and field.

A file is a safetensors file with one matrix (n, values), memory-mapped when it is read, so that all processes of a
machine share it through the page cache. Its header carries the SHA-256 of the matrix. Files are written under another
name and renamed, one process at a time for each view.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from hksd.files import FULL, write_atomically

FORMAT = "hksd view 1"
VALUES = "values"  # name of the matrix inside a file
RESERVE = 1 << 30  # bytes that views leave free on a disk: checkpoints and journals need room too
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Field:
    """One field of a view.

    Attributes:
        values: (n, total), float16 or float32: one row for each training image, its tensors side by side.
        shapes: shape of each of these tensors, without the images' dimension.
    """

    values: Tensor
    shapes: tuple[tuple[int, ...], ...]

    def rows(self, index: Tensor) -> list[Tensor]:
        """The tensors (N, ...) of the images `index` (N,), float32."""
        picked = self.values[index.to(self.values.device)].float()
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = torch.split(picked, sizes, 1)
        return [part.reshape(len(index), *shape) for part, shape in zip(parts, self.shapes, strict=True)]


class Unwritable(Exception):  # noqa: N818 - a state of the disk, not a fault of a run
    """The folder takes no files; the text says why."""


class ViewStore:
    """The views below one folder.

    Args:
        folder: where they are; its name stands for everything that makes their content.
        images: number of training images; a file with another number of rows is damaged.
    """

    def __init__(self, folder: Path, images: int):
        self.folder, self.images = folder, images

    def read(self, view: int, names: Sequence[str]) -> dict[str, Field]:
        """The fields of `names` that are there and whole; a damaged file is taken away, with a warning."""
        found = {name: self._read(self._path(view, name)) for name in names}
        return {name: field for name, field in found.items() if field is not None}

    def write(self, view: int, fields: Mapping[str, Field]) -> None:
        """Write fields of a view; the caller holds its lock.

        Raises:
            Unwritable: the disk is full, or the folder cannot be written.
        """
        try:
            for leftover in self.folder.glob(f".{view:04d}.*.tmp"):  # of a process that was killed
                leftover.unlink(missing_ok=True)
            if self.room() < sum(field.values.nbytes for field in fields.values()):
                raise Unwritable(f"views leave {RESERVE / 1e9:.1f} GB of the disk free")
            for name, field in fields.items():
                values = field.values.cpu().contiguous()
                facts = {"format": FORMAT, "shapes": json.dumps(field.shapes), "sha256": _digest(values)}
                write_atomically(self._path(view, name), to_bytes({VALUES: values}, facts))
        except OSError as error:
            raise Unwritable(_why(error)) from error

    def room(self) -> int:
        """Bytes that views may still take on the disk."""
        place = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        return max(0, shutil.disk_usage(place).free - RESERVE)

    @contextmanager
    def claim(self, view: int) -> Iterator[bool]:
        """Try to become the one who builds `view`; tells whether that is so. Does not wait.

        Raises:
            Unwritable: there can be no lock here.
        """
        lock = FileLock(self.folder / f"{view:04d}.lock", timeout=0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            yield False
            return
        except OSError as error:
            raise Unwritable(_why(error)) from error
        try:
            yield True
        finally:
            lock.release()

    def _path(self, view: int, name: str) -> Path:
        return self.folder / f"{view:04d}.{name.replace(' ', '-')}.safetensors"

    def _read(self, path: Path) -> Field | None:
        try:
            with safe_open(str(path), framework="pt") as file:
                facts, values = file.metadata() or {}, file.get_tensor(VALUES)
            if facts.get("format") != FORMAT:
                raise ValueError(f"format {facts.get('format')!r} in place of {FORMAT!r}")
            if len(values) != self.images or _digest(values) != facts["sha256"]:
                raise ValueError("checksum or number of images")
            return Field(values, tuple(tuple(shape) for shape in json.loads(facts["shapes"])))
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: a damaged view of the teacher (%s); it is computed again", path, error)
            try:
                path.unlink(missing_ok=True)
            except OSError:
                log.debug("%s: cannot be removed", path)
            return None


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.numpy().data).hexdigest()


def _why(error: OSError) -> str:
    if error.errno in FULL:
        return "the disk is full"
    return error.strerror or str(error)
