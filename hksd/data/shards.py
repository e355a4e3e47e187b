"""Which parquet files make up one set: all of them, and none of another upload."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hksd.data.walk import subfolders
from hksd.errors import DataError, some

PARTIAL = "partial-"  # before the name of a set that the Hub's converter cut off at 5 GB
KEEP_ONE = "keep the files of one upload, and move the others elsewhere"
# `push_to_hub` ends the name of a shard with a fingerprint of its content, or does not, by its version.
_SHARD = re.compile(r"(?:(?P<stem>.*)-)?(?P<index>\d+)-of-(?P<count>\d+)(?P<print>-[0-9a-f]+)?")
_NUMBERED = re.compile(r"(?:(?P<stem>.*)[-_])?(?P<index>\d+)")


class _Kind(NamedTuple):
    """What the files of one upload have in common.

    Attributes:
        stem: what their names begin with.
        shards: number of shards that the names tell; None where they tell none.
        numbered: whether the names hold numbers.
        printed: whether the names end with a fingerprint.
    """

    stem: str = ""
    shards: int | None = None
    numbered: bool = False
    printed: bool = False


def shards(folder: Path, name: str) -> tuple[Path, ...]:
    """Files of the set `name` in a folder, sorted by name; none where there is no such set.

    These are ``NAME.parquet``, ``NAME-00000-of-00002.parquet`` (its end may be a fingerprint), ``NAME-0.parquet``,
    other ``NAME-*.parquet``, or the files in the folder ``NAME``, as ``0000.parquet``.

    Raises:
        DataError: files are missing, belong to several uploads, or hold only the first part of the set.
    """
    flat = [file for file in parquet_files(folder) if file.stem == name or file.stem.startswith(f"{name}-")]
    inside = [] if subfolders(folder / name) else parquet_files(folder / name)  # those of class folders are other files
    if flat and inside:
        raise DataError(f"{folder}: {flat[0].name} lies beside {name}/{inside[0].name}: two uploads; {KEEP_ONE}")
    if not flat and not inside and parquet_files(folder / f"{PARTIAL}{name}"):
        raise DataError(
            f"{folder / f'{PARTIAL}{name}'}: holds only a part of {name} (the Hub converts the first 5 GB); fetch the "
            f"files that the data set itself has, or write all images to {name}.parquet"
        )
    found = flat or inside
    if found:
        _check(found[0].parent, name, found)
    return tuple(found)


def configurations(root: Path) -> list[Path]:
    """Folders of `root` that hold a training set, as those of the Hub that are named after a configuration.

    Raises:
        DataError: as for `shards`.
    """
    if not root.is_dir():
        return []
    may = [path for path in subfolders(root) if os.access(path, os.R_OK | os.X_OK)]
    return [path for path in may if shards(path, "train")]


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files right in a folder, sorted by name; none where there is no such folder.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        entries = list(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error
    return sorted(path for path in entries if path.suffix.lower() == ".parquet" and not path.name.startswith("."))


def _kind(file: Path) -> tuple[_Kind, int]:
    """The kind of a file and its number (0 where it has none)."""
    if found := _SHARD.fullmatch(file.stem):
        return _Kind(found["stem"] or "", int(found["count"]), True, bool(found["print"])), int(found["index"])
    if found := _NUMBERED.fullmatch(file.stem):
        return _Kind(found["stem"] or "", None, True), int(found["index"])
    return _Kind(), 0


def _check(folder: Path, name: str, files: Sequence[Path]) -> None:
    """Refuse files that are not all of one upload, and no others."""
    kinds: dict[_Kind, dict[int, list[Path]]] = {}
    for file in files:
        kind, number = _kind(file)
        # A set in one file is an upload by itself.
        kinds.setdefault(_Kind(name) if file.stem == name else kind, {}).setdefault(number, []).append(file)
    if len(kinds) > 1:
        firsts = [min(file.name for one in found.values() for file in one) for found in kinds.values()]
        raise DataError(f"{folder}: {' lies beside '.join(firsts[:2])}: these are of two uploads; {KEEP_ONE}")
    for kind, found in kinds.items():
        if not kind.numbered:
            continue
        if twice := [one for one in found.values() if len(one) > 1]:
            names = some([file.name for file in twice[0]])
            raise DataError(f"{folder}: one part of {name} is there {len(twice[0])} times: {names}; {KEEP_ONE}")
        _complete(folder, name, kind, {number: one[0] for number, one in found.items()})


def _complete(folder: Path, name: str, kind: _Kind, files: Mapping[int, Path]) -> None:
    """Numbers begin at 0, or at 1 where people wrote them, and have no gap."""
    first = files[min(files)]
    if kind.shards is not None:
        expected = range(1, kind.shards + 1) if kind.shards in files else range(kind.shards)
        told = f"{len(files)} {name} file(s), but {first.name} is one of {kind.shards}"
    else:
        # The Hub writes four digits or more, from 0.
        digits = len(first.stem) - len(first.stem.rstrip("0123456789"))
        expected = range(min(files) if min(files) == 1 and digits < 4 else 0, max(files) + 1)
        told = f"{len(files)} {name} file(s) up to {files[max(files)].name}"
    missing = [str(number) for number in expected if number not in files][:1000]
    if missing or len(files) > len(expected):
        lacks = f": no number {some(missing)}" if missing else ""
        raise DataError(
            f"{folder}: {told}{lacks}; complete the download (or remove the files that belong to another set)"
        )
