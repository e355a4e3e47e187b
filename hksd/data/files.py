"""Images that stay in their files, as a list of paths."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hksd.data.splits import Rows


@dataclass(frozen=True)
class Files:
    """Many files below one folder.

    Names are packed into two arrays: a million of them then travel between processes without a copy.

    Attributes:
        root: the folder.
        text: (bytes of all names,), uint8, one name after the other, relative to the folder.
        ends: (N,), int64, where each name ends in `text`.
        sizes: (N,), int64, bytes of each file.
    """

    root: str
    text: NDArray[np.uint8]
    ends: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, root: str, found: Iterable[tuple[str, int]]) -> Files:
        """Pack names (relative to `root`) and sizes."""
        pairs = [(os.fsencode(name), size) for name, size in found]
        ends = np.cumsum([len(name) for name, _ in pairs], dtype=np.int64)
        text = np.frombuffer(b"".join(name for name, _ in pairs), np.uint8)
        return cls(root, text, ends, np.array([size for _, size in pairs], np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, row: int) -> str:
        """Name of a file relative to the folder."""
        start = self.ends[row - 1] if row else 0
        return os.fsdecode(self.text[start : self.ends[row]].tobytes())

    def path(self, row: int) -> str:
        """Name of a file with its folder."""
        return os.path.join(self.root, self.name(row))  # noqa: PTH118  # a million Path objects are slow

    def select(self, rows: Rows) -> Files:
        """Only the files `rows` (M,), in that order."""
        return Files.of(self.root, ((self.name(row), int(self.sizes[row])) for row in rows.tolist()))
