"""Data sets in parquet files, in the layout of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hksd.class_names import composed, name_fault
from hksd.data.raw import (
    POINTER,
    TEST_NAMES,
    Pictures,
    RawSet,
    Source,
    first_labelled,
    is_pointer,
    open_picture,
    rename_to_test,
    states_of,
)
from hksd.data.shards import KEEP_ONE, configurations, parquet_files, shards
from hksd.data.splits import Rows
from hksd.errors import DataError, some

LARGEST = 2**31 - 1  # number of a class
IMAGE_COLUMNS = ("img", "image")
EXPECTED = "parquet files train-*.parquet (or train.parquet, or train/*.parquet) in it or in its folder data"


def find_parquet(root: Path, label_columns: Sequence[str]) -> Source | None:
    """Recognise a set of parquet files (see `hksd.data.shards`) in `root` or ``root/data``.

    Args:
        root: folder of the data set.
        label_columns: names that the column of labels may have, best first.

    Raises:
        DataError: files are missing, or belong to several uploads.
    """
    found = {place: files[0] for place in (root, root / "data") if (files := shards(place, "train"))}
    if len(found) > 1:
        names = " lies beside ".join(str(file.relative_to(root)) for file in found.values())
        raise DataError(f"{root}: {names}: these are of two uploads; {KEEP_ONE}")
    return _source(next(iter(found)), label_columns, root) if found else None


def find_configuration(root: Path, label_columns: Sequence[str]) -> Source | None:
    """Recognise the folder of a configuration in `root`, as the Hub has them: ``plain_text/train-*.parquet``.

    Raises:
        DataError: there are several; or as for `find_parquet`.
    """
    found = configurations(root)
    if len(found) > 1:
        names = some([path.name for path in found])
        raise DataError(
            f"{root}: parquet files of {len(found)} configurations ({names}); set data.root to one of them, for "
            f"example {found[0]}"
        )
    return _source(found[0], label_columns) if found else None


def _beside(root: Path, folder: Path) -> str:
    """A line where further training sets lie in other folders than the one that is read; "" for none."""
    try:
        others = [path for path in configurations(root) if path != folder]
    except DataError:  # not whole, which does no harm to the one that is
        return ""
    names = some([str(shards(path, "train")[0].relative_to(root)) for path in others])
    return f"{root}: not read: {names}; the training set is that of {folder}" if others else ""


def _source(folder: Path, label_columns: Sequence[str], root: Path | None = None) -> Source:
    def open_test(classes: tuple[str, ...]) -> RawSet:
        there = {name: files for name in TEST_NAMES if (files := shards(folder, name))}
        if not there:
            looked = ", ".join(f"{name}-*.parquet, {name}.parquet" for name in TEST_NAMES)
            cure = rename_to_test((file.stem.partition("-")[0] for file in parquet_files(folder)), TEST_NAMES)
            raise DataError(
                f"{folder}: no test split: looked for {looked}; {cure or 'put the test images into test.parquet'}"
            )
        name, line = first_labelled(list(there), lambda name: _unlabelled(there[name], label_columns))
        raw = _Parquet.of(there[name], label_columns).raw(classes)
        return replace(raw, line=f"{folder}: {line}" if line else "")

    return Source(
        str(folder),
        lambda: _Parquet.of(shards(folder, "train"), label_columns).raw(None),
        open_test,
        lambda: states_of(shards(folder, "train")),
        lambda: _beside(root, folder) if root else "",
    )


def _unlabelled(files: Sequence[Path], label_columns: Sequence[str]) -> str:
    """Why a set has no labels; "" where it has. The Hub keeps test sets whose labels are not public, with -1."""
    column = None
    for file in files:
        with _opened(file) as opened:
            column = next((name for name in label_columns if name in opened.schema_arrow.names), None)
            if column is None:
                return f"{file.name} has no column of labels"
            values = opened.read(columns=[column]).column(column).drop_null().to_pylist()
        if any(not isinstance(value, int) or value >= 0 for value in values):
            return ""
    return f"all labels in column '{column}' are missing or -1"


@dataclass(frozen=True)
class _Parquet:
    """Parquet files with one image and one label per row.

    Attributes:
        shards: the files, in order.
        image: name of the column of images.
        label: name of the column of labels.
        names: class names from the metadata, where they stand there.
    """

    shards: tuple[Path, ...]
    image: str
    label: str
    names: tuple[str, ...] | None

    @classmethod
    def of(cls, shards: tuple[Path, ...], label_columns: Sequence[str]) -> _Parquet:
        """Read columns and class names, which must be the same in all files."""
        found = [cls._schema(shard, label_columns) for shard in shards]
        for shard, other in zip(shards, found, strict=True):
            if other != found[0]:
                raise DataError(
                    f"{shard}: columns or class names differ from those of {shards[0].name} "
                    f"({other} and {found[0]}); keep only files of one data set in the folder"
                )
        return cls(shards, *found[0])

    @staticmethod
    def _schema(shard: Path, label_columns: Sequence[str]) -> tuple[str, str, tuple[str, ...] | None]:
        import pyarrow as pa

        with _opened(shard) as file:
            schema = file.schema_arrow
        image = _column(shard, schema.names, "images", IMAGE_COLUMNS)
        label = _column(shard, schema.names, "labels", label_columns)
        kind = schema.field(image).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise DataError(
                f"{shard}: column '{image}' holds {kind}, not encoded images; "
                "expected binary, or a struct with the field bytes"
            )
        if not pa.types.is_integer(schema.field(label).type):
            raise DataError(
                f"{shard}: column '{label}' holds {schema.field(label).type}; labels must be whole numbers from 0 "
                "(names of the classes stand in the metadata, as `datasets` writes a ClassLabel, or in data.classes)"
            )
        names = _class_names(schema.metadata, label)
        if names and (wrong := name_fault(names)):
            raise DataError(f"{shard}: the class names in its metadata: {wrong}")
        return image, label, names

    def raw(self, classes: tuple[str, ...] | None) -> RawSet:
        """Read the labels; without `classes` (training) the files define them."""
        where = str(self.shards[0].parent)
        labels = [self._labels(shard) for shard in self.shards]
        starts = np.cumsum([0, *(len(part) for part in labels)])
        together = np.concatenate(labels)
        if not len(together):
            raise DataError(f"{self.shards[0]}: no rows in it; add images, or remove the file")
        if classes is None:
            classes = self.names or self._numbered(together)
        elif self.names and self.names != classes:
            strange = [name for name in self.names if name not in classes]
            raise DataError(
                f"{self.shards[0]}: class names differ from the training files"
                + (f": '{strange[0]}' is not in the training set" if strange else " (other order)")
                + f" (classes: {some(classes)}); write both with the same class names"
            )
        for shard, part in zip(self.shards, labels, strict=True):
            if len(part) and part.max() >= len(classes):
                row = int(np.argmax(part >= len(classes)))
                raise DataError(
                    f"{shard}, row {row}: label {part[row]}, but the training set has {len(classes)} "
                    f"classes (0 to {len(classes) - 1}); correct the label or the class names"
                )

        def pictures(rows: Rows) -> Pictures:
            for shard, start, end in zip(self.shards, starts, starts[1:], strict=False):
                yield from self._pictures(shard, rows[(rows >= start) & (rows < end)] - start)

        return RawSet(where, classes, together, np.arange(len(together)), pictures, named=bool(self.names))

    def _labels(self, shard: Path) -> Rows:
        with _opened(shard) as file:
            column = file.read(columns=[self.label]).column(self.label)
        if column.null_count:
            row = column.to_pylist().index(None)
            raise DataError(f"{shard}, row {row}: no label (null); label it or remove the row")
        labels: Rows = column.to_numpy()
        if len(labels) and labels.max() > LARGEST:
            row = int(labels.argmax())
            raise DataError(f"{shard}, row {row}: label {labels[row]} is no number of a class; correct it")
        labels = labels.astype(np.int64)
        if len(labels) and labels.min() < 0:
            row = int(np.argmax(labels < 0))
            raise DataError(
                f"{shard}, row {row}: label {labels[row]} is negative (-1 often means unlabelled); "
                "label it or remove the row"
            )
        return labels

    def _numbered(self, labels: Rows) -> tuple[str, ...]:
        """Names "0" to "C-1" where the files have none; a gap is more likely a mistake than a class without images."""
        present, count = np.unique(labels), int(labels.max()) + 1
        if len(present) != count:
            gap = int(np.argmax(present != np.arange(len(present))))
            raise DataError(
                f"{self.shards[0].parent}: labels reach {count - 1}, but no image has label {gap}; number "
                f"the classes of column '{self.label}' from 0 without gaps"
            )
        return tuple(str(label) for label in range(count))

    def _pictures(self, shard: Path, rows: Rows) -> Pictures:
        """Open ascending rows of one file, one row group in memory at a time."""
        if not len(rows):
            return
        with _opened(shard) as file:
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                wanted = rows[(rows >= start) & (rows < end)]
                if len(wanted):
                    column = file.read_row_group(group, columns=[self.image]).column(self.image)
                    for row, value in zip(wanted, column.take(wanted - start), strict=True):
                        yield self._picture(f"{shard}, row {row}", value.as_py())
                start = end

    @staticmethod
    def _picture(name: str, value: Any) -> tuple[str, Any]:
        data = value["bytes"] if isinstance(value, dict) else value
        if data is None:
            raise DataError(f"{name}: no image bytes in it (null, or only a path); store the image itself in the file")
        return name, open_picture(name, data)


@contextmanager
def _opened(shard: Path) -> Iterator[Any]:
    """Open a parquet file; damage found now or while reading is told with its name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(shard) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        with suppress(OSError), shard.open("rb") as opened:
            if is_pointer(opened.read(100)):
                raise DataError(f"{shard}: {POINTER}: fetch it by `git lfs pull`") from error
        raise DataError(f"{shard}: cannot be read as parquet, it may be truncated ({error}); fetch it again") from error


def _column(shard: Path, names: Sequence[str], kind: str, known: Sequence[str]) -> str:
    for name in known:
        if names.count(name) > 1:
            raise DataError(f"{shard}: {names.count(name)} columns are called {name}; rename all but one")
        if name in names:
            return name
    raise DataError(
        f"{shard}: no column of {kind}: looked for {' or '.join(known)}, the file has "
        f"{', '.join(names) or 'none'}; rename it"
    )


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> tuple[str, ...] | None:
    """Class names that the `datasets` library writes into the schema; absent or in another form, None."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(composed(str(name)) for name in names) if isinstance(names, list) and names else None
