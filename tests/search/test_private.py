"""The folder of a private Ray: for its user alone, gone with its process, whatever ended that."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hksd_search.backend import private

Make = Callable[..., Any]
LEAVES = """
import time
from hksd_search.backend import private
private.LONGEST = 1000
home = private.Home()
print(home.folder, flush=True)
time.sleep(300)
"""


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the folders of this test are; a long path would not do for the sockets of Ray."""
    monkeypatch.setattr(private, "LONGEST", 1000)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return tmp_path


def test_nobody_else_may_look_into_it_and_it_goes_when_ray_has_ended(root: Path) -> None:
    home = private.Home()
    assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700
    assert home.path.parent == home.folder
    home.path.mkdir(mode=0o777)
    private.remove_left(root)
    assert home.path.exists(), "that of a process that lives was removed"
    home.close()
    assert not list(root.glob(f"{private.FOLDER}*"))


def test_what_a_killed_process_has_left_is_removed_by_the_next_one(root: Path, child: Make) -> None:
    process = child(LEAVES)
    left = Path(process.stdout.readline().strip())
    assert left.parent == root
    private.remove_left(root)
    assert left.exists()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    home = private.Home()
    assert not left.exists()
    home.close()


def test_processes_of_ray_begin_in_a_session_of_their_own_and_do_not_hear_a_sigterm_for_all() -> None:
    from ray._private import services

    sleep = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    with private.apart():
        process = services.ConsolePopen(sleep, preexec_fn=None)
    try:
        assert os.getsid(process.pid) == process.pid
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    finally:
        private.kill_sessions({process.pid})
    assert process.wait(10) == -signal.SIGKILL
