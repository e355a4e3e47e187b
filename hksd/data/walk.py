"""Walking class folders: which files are the images, what is passed over, and one line that says so."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from hksd.class_names import composed, has_control
from hksd.data.class_folders import ClassFolder, Found, remarks
from hksd.data.classes import in_order
from hksd.data.passed import Tally, line, reasons
from hksd.data.raw import SUFFIXES
from hksd.errors import DataError

# Folders that systems, storage boxes and viewers put beside or into those of people: thumbnails, what was deleted, or
# the second half of every file. In small letters, since not every system keeps the case.
SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "@tmp", "@sharebin", "@__thumb", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
        *("$recycle.bin", "system volume information", "found.000", "lost+found"),
        *("__macosx", "network trash folder", "temporary items", ".trashes", ".spotlight-v100", ".fseventsd"),
        *(".temporaryitems", ".appledouble", ".thumbnails", ".@__thumb", ".ipynb_checkpoints", "__pycache__"),
    }
)
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", ".ds_store"})


@dataclass(frozen=True)
class Walked:
    """The class folders of one set.

    Attributes:
        classes: in the order that numbers them.
        line: what was passed over, for a warning; "" for nothing.
    """

    classes: list[ClassFolder]
    line: str


def walk(folder: Path) -> Walked:
    """Find the images in ``folder/CLASS/``, at any depth.

    Passed over and counted is what is hidden or of a system, what has another suffix or lies beside the class folders,
    and links that lead nowhere. Folders whose names differ in their Unicode form alone are one class.

    Raises:
        DataError: a folder cannot be listed, leads to one around it or has a name that is no UTF-8; a link in the
            place of a class leads nowhere; images are empty or may not be read.
    """
    top = Tally()
    folders = _class_folders(folder, top)
    tallies: dict[str, Tally] = {}
    classes = []
    for name in in_order(folders):
        tally = tallies[name] = Tally()
        images = [one for path in folders[name] for one in _images(path, f"{path.name}/", tally)]
        classes.append(ClassFolder(name, folders[name], images, "; ".join(reasons({name: tally}))))
    _refuse(folder, [top, *tallies.values()])
    return Walked(classes, line(folder, reasons(tallies, top), remarks(classes)))


def walk_flat(folder: Path) -> tuple[list[Found], str]:
    """Find the images in a folder without classes, at any depth; with the line as in `Walked`.

    Raises:
        DataError: as for `walk`.
    """
    tally = Tally()
    found = _images(folder, "", tally)
    _refuse(folder, [tally])
    return found, line(folder, reasons({"": tally}))


def count_images(folder: Path) -> int:
    """How many images lie below a folder.

    Raises:
        DataError: it cannot be listed.
    """
    return len(_images(folder, "", Tally()))


def holds_images(folder: Path) -> bool:
    """Whether an image lies in a folder itself, not below it; nothing does in one that cannot be listed."""
    with suppress(OSError), os.scandir(folder) as entries:
        return any(_is_image(entry.name) for entry in entries)
    return False


def subfolders(folder: Path) -> list[Path]:
    """Folders that may be those of classes, sorted by name: none that is hidden or belongs to a system.

    Raises:
        DataError: it cannot be listed.
    """
    if not folder.is_dir():
        return []
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if _is_folder(entry) and not _passed(entry, "", Tally())]
    except OSError as error:
        raise _unlisted(folder, error) from error
    return sorted(found)


def _class_folders(folder: Path, tally: Tally) -> dict[str, list[Path]]:
    """Class -> its folders, sorted by name; what else lies there is counted."""
    found: dict[str, list[Path]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if _passed(entry, entry.name, tally):
                    continue
                if _is_folder(entry):
                    _check_name(folder, entry.name)
                    found.setdefault(composed(entry.name), []).append(Path(entry.path))
                    continue
                if entry.is_symlink() and not _is_image(entry.name) and not Path(entry.path).exists():
                    raise DataError(
                        f"{entry.path}: this link leads nowhere, and its class would be missing; bring back what it "
                        "leads to, or remove the link"
                    )
                tally.files += 1
                tally.other("beside the class folders", entry.name)
    except OSError as error:
        raise _unlisted(folder, error) from error
    return found


def _check_name(folder: Path, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{folder}: the name of the class folder {os.fsencode(name)!r} is no UTF-8 (unpacked from an archive of "
            "another system?); rename it"
        ) from error
    if has_control(name):
        raise DataError(f"{folder}: the name of the class folder {name!r} holds a control character; rename it")


def _images(folder: Path, prefix: str, tally: Tally) -> list[Found]:
    """Names (with `prefix`) and status of all images below a folder, sorted by name."""
    found: list[Found] = []
    try:
        _descend(str(folder), prefix, tally, found, frozenset())
    except OSError as error:
        raise _unlisted(folder, error) from error
    return sorted(found, key=itemgetter(0))


def _unlisted(folder: Path, error: OSError) -> DataError:
    return DataError(f"{error.filename or folder}: cannot be listed ({error.strerror}); check its permissions")


def _descend(folder: str, prefix: str, tally: Tally, found: list[Found], above: frozenset[str]) -> None:
    real = os.path.realpath(folder)
    if real in above:
        raise DataError(f"{folder}: this link leads to a folder around it; remove it")
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if _passed(entry, name, tally):
                continue
            if _is_folder(entry):
                _descend(entry.path, f"{name}/", tally, found, above | {real})
                continue
            tally.files += 1
            if not _is_image(entry.name):
                if not entry.name.endswith("_boxes.txt"):  # of Tiny-ImageNet's archive, one in every class
                    tally.not_read(entry.name)
            elif status := _status(entry, name, tally):
                found.append((name, status))


def _passed(entry: os.DirEntry[str], name: str, tally: Tally) -> bool:
    """Whether something is passed over for its name alone; then it is counted."""
    small = entry.name.lower()
    if small in SYSTEM_FOLDERS:
        if not _is_folder(entry):
            return False
        tally.systems[entry.name] += 1
        return True
    if small in SYSTEM_FILES:
        tally.systems[entry.name] += 1
    elif small.startswith("._"):  # AppleDouble: what macOS knows of a file, beside it
        tally.systems["._*"] += 1
    elif small.startswith("."):
        tally.other("hidden", name)
    else:
        return False
    tally.files += not _is_folder(entry)
    return True


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # A link in a circle is an error to the entry, and nothing to the path.
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def _status(entry: os.DirEntry[str], name: str, tally: Tally) -> os.stat_result | None:
    """Status of an image; None, and counted, for what nobody can decode."""
    if entry.is_symlink() and not Path(entry.path).exists():
        tally.other("links that lead nowhere", name)
        return None
    status = entry.stat()
    if not stat.S_ISREG(status.st_mode):
        tally.other("pipes and devices", name)
    elif not status.st_size:
        tally.empty.append(entry.path)
    # Asked only where the mode leaves a doubt: a million such calls take seconds.
    elif status.st_mode & 0o444 != 0o444 and not os.access(entry.path, os.R_OK):
        tally.closed.append(entry.path)
    else:
        return status
    return None


def _refuse(folder: Path, tallies: Iterable[Tally]) -> None:
    """Images that nobody can decode are told at once and together; streamed, they would end a run in its middle."""
    tallies = list(tallies)
    for what, cure, names in (
        ("has 0 bytes", "complete the copy, or replace or remove it", [n for t in tallies for n in t.empty]),
        ("may not be read", "check its permissions", [n for t in tallies for n in t.closed]),
    ):
        if names:
            others = f", like {len(names) - 1} more below {folder}" if len(names) > 1 else ""
            raise DataError(f"{min(names)}: this image {what}{others}; {cure}")
