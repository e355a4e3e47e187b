"""A file that is replaced is old or new, whatever happens in between, and on the disk when the call returns."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from hksd import files
from hksd.files import replaced, write_atomically

Event = tuple[Any, ...]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "file"


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What was made durable, in order.

    ("fsync", inode, what the disk was given of it so far: content or names), ("rename", inode, old name, new name).
    """
    found: list[Event] = []
    fsync, replace = os.fsync, Path.replace

    def content(descriptor: int) -> object:
        where = Path(f"/proc/self/fd/{descriptor}").readlink()
        return sorted(file.name for file in where.iterdir()) if where.is_dir() else where.read_bytes()

    def noted_fsync(descriptor: int) -> None:
        found.append(("fsync", os.fstat(descriptor).st_ino, content(descriptor)))
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> Path:
        if source.exists():
            found.append(("rename", source.stat().st_ino, source.name, target.name))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    return found


@pytest.fixture
def folder_fault(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """folder_fault(call, number): os.open or os.fsync of a folder fails with this errno."""

    def set_up(call: str, number: int) -> None:
        real = getattr(os, call)

        def faulty(what: Any, *rest: Any, **named: Any) -> Any:
            if stat.S_ISDIR(os.stat(what).st_mode):  # noqa: PTH116 - a descriptor or a path
                raise OSError(number, os.strerror(number))
            return real(what, *rest, **named)

        monkeypatch.setattr(os, call, faulty)

    return set_up


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


def test_a_file_is_written_made_durable_renamed_and_its_name_made_durable(path: Path, events: list[Event]) -> None:
    write_atomically(path, b"content")
    temporary = f".file.{os.getpid()}.tmp"
    file, folder = path.stat().st_ino, path.parent.stat().st_ino
    assert events == [
        ("fsync", file, b"content"),
        ("rename", file, temporary, "file"),
        ("fsync", folder, ["file"]),
    ]
    assert path.read_bytes() == b"content"


def test_what_is_written_bit_by_bit_is_made_durable_as_a_whole(path: Path, events: list[Event]) -> None:
    with replaced(path) as file:
        file.write(b"0ne")
        file.write(b" two")
        file.seek(0)
        file.write(b"o")
        assert not events
        assert not path.exists()
    assert [event[0] for event in events] == ["fsync", "rename", "fsync"]
    assert events[0][2] == path.read_bytes() == b"one two"


def test_the_old_content_is_kept_where_it_is_asked_for_once_the_new_is_durable(path: Path, events: list[Event]) -> None:
    write_atomically(path, b"old")
    old, aside = path.stat().st_ino, path.with_name("aside")
    events.clear()
    with replaced(path, previous=aside) as file:
        file.write(b"new")
    assert [event[:2] for event in events] == [
        ("fsync", path.stat().st_ino),
        ("rename", old),
        ("rename", path.stat().st_ino),
        ("fsync", path.parent.stat().st_ino),
    ]
    assert (path.read_bytes(), aside.read_bytes()) == (b"new", b"old")


def test_without_old_content_there_is_nothing_to_keep(path: Path) -> None:
    with replaced(path, previous=path.with_name("aside")) as file:
        file.write(b"new")
    assert names(path) == ["file"]


@pytest.mark.parametrize("fault", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_after_an_exception_nothing_has_changed(fault: type[BaseException], path: Path) -> None:
    write_atomically(path, b"old")
    with pytest.raises(fault), replaced(path, previous=path.with_name("aside")) as file:
        file.write(b"half")
        raise fault
    assert names(path) == ["file"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_step_that_fails_leaves_the_old_content_alone(call: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(path, b"old")

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
        with pytest.raises(OSError, match="Input/output"):
            write_atomically(path, b"new")
    assert names(path) == ["file"]
    assert path.read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_content_alone(
    path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    write_atomically(path, b"old")
    with full_disk(1000), pytest.raises(OSError, match="too large"):
        write_atomically(path, bytes(2000))
    assert names(path) == ["file"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("call", ["open", "fsync"])
@pytest.mark.parametrize("number", sorted(files.NO_SYNC), ids=errno.errorcode.get)
def test_a_folder_that_cannot_be_synchronised_is_no_fault(
    number: int, call: str, path: Path, folder_fault: Callable[[str, int], None]
) -> None:
    folder_fault(call, number)
    write_atomically(path, b"content")
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize("call", ["open", "fsync"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_folder_whose_disk_fails_is_told(
    number: int, call: str, path: Path, folder_fault: Callable[[str, int], None]
) -> None:
    folder_fault(call, number)
    with pytest.raises(OSError, match=os.strerror(number)):
        write_atomically(path, b"content")


def test_no_file_stays_open(path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        write_atomically(path, b"content")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
