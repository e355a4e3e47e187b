"""One process makes, others wait and find; what cannot be locked is told apart from what cannot be made."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from hksd import cache
from hksd.cache import LockError, made_once, sha256_of

TOGETHER = """
import os, sys, time
from pathlib import Path
from hksd.cache import made_once
kept = Path(sys.argv[1])

def make():
    while len(list(kept.parent.glob("ready-*"))) < 3:  # so that nobody comes when it is done
        time.sleep(0.01)
    time.sleep(0.2)
    kept.write_text(str(os.getpid()))
    return kept.read_text()

kept.with_name(f"ready-{os.getpid()}").touch()
print(*made_once(kept.with_name("lock"), lambda: kept.read_text() if kept.exists() else None, make))
"""


def refuse() -> str:
    raise AssertionError("called")


def test_of_processes_that_ask_together_one_makes_and_all_have_the_same(
    child: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    processes = [child(TOGETHER, tmp_path / "kept") for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    values, recalled = zip(*(output.split() for output, _ in outputs), strict=True)
    assert len(set(values)) == 1
    assert sorted(recalled) == ["False", "True", "True"]


def test_what_is_recalled_is_not_made(tmp_path: Path) -> None:
    assert made_once(tmp_path / "lock", lambda: "kept", refuse) == ("kept", True)


@pytest.mark.parametrize("empty", ["", 0, (), False])
def test_an_empty_value_is_a_value(empty: object, tmp_path: Path) -> None:
    assert made_once(tmp_path / "lock", lambda: empty, refuse) == (empty, True)


def test_the_lock_is_held_while_the_value_is_recalled_and_made_and_free_after_an_exception(tmp_path: Path) -> None:
    lock, held = tmp_path / "new" / "folder" / "lock", []

    def look() -> None:
        held.append(not free())

    def free() -> bool:
        probe = FileLock(lock, timeout=0, thread_local=False, is_singleton=False)
        try:
            probe.acquire()
        except TimeoutError:
            return False
        probe.release()
        return True

    def fail() -> str:
        look()
        raise ValueError("cannot be made")

    with pytest.raises(ValueError, match="cannot be made"):
        made_once(lock, look, fail)
    assert held == [True, True]
    assert free()


def test_a_lock_that_cannot_be_had_is_told_with_its_reason_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LockError) as caught:
        made_once(tmp_path / "file" / "lock", refuse, refuse)
    assert caught.value.strerror in ("File exists", "Not a directory")
    assert caught.value.filename == str(tmp_path / "file" / "lock")


def test_a_file_system_without_locks_is_told_like_one_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(_: FileLock) -> None:
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(cache.FileLock, "acquire", acquire)
    with pytest.raises(LockError) as caught:
        made_once(tmp_path / "lock", refuse, refuse)
    assert caught.value.strerror == "no flock here"


def test_a_fault_of_making_is_no_fault_of_the_lock(tmp_path: Path) -> None:
    def fail() -> str:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full") as caught:
        made_once(tmp_path / "lock", lambda: None, fail)
    assert not isinstance(caught.value, LockError)


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 250])
def test_the_sum_of_a_file_does_not_depend_on_how_it_is_read(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "CHUNK", 100)
    content = bytes(range(256))[:size]
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
