"""Two processes in one folder: the second is refused and told who is there; a dead holder is in nobody's way."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hksd.errors import UserError
from hksd_search.session import HOLDER, holder, is_halted, locked

Make = Callable[..., Any]
HOLDS = """
import sys, time
from pathlib import Path
from hksd_search.session import locked

with locked(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def other(child: Make, tmp_path: Path) -> Any:
    """Another process, which holds the folder."""
    process = child(HOLDS, tmp_path)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_told_who_holds_the_folder_and_since_when(other: Any, tmp_path: Path) -> None:
    for _ in range(2):
        expected = rf"another process is training \(process {other.pid} on \S+, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\)"
        with pytest.raises(UserError, match=expected), locked(tmp_path, "training"):
            raise AssertionError


def test_a_holder_that_was_killed_is_in_nobodys_way(other: Any, tmp_path: Path) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    with locked(tmp_path):
        assert (tmp_path / HOLDER).exists()
    assert not (tmp_path / HOLDER).exists()


def test_who_holds_a_folder_is_known_to_others_also_when_it_is_halted_and_nobody_does_after_a_kill(
    other: Any, tmp_path: Path
) -> None:
    found = holder(tmp_path)
    assert found is not None
    assert found.startswith(f"process {other.pid} on ")
    assert not is_halted(found)
    other.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, other.pid, os.WSTOPPED)
    assert is_halted(found)
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert holder(tmp_path) is None
    assert (tmp_path / HOLDER).exists(), "it was killed"
    assert holder(tmp_path / "nowhere") is None


def test_a_note_that_cannot_be_removed_neither_hides_what_happened_nor_keeps_the_lock(tmp_path: Path) -> None:
    note = tmp_path / HOLDER
    with pytest.raises(RuntimeError, match="what happened"), locked(tmp_path):
        note.unlink()
        (note / "inside").mkdir(parents=True)  # no unlink removes that, whoever tries
        raise RuntimeError("what happened")
    shutil.rmtree(note)
    with locked(tmp_path):
        assert note.is_file()
