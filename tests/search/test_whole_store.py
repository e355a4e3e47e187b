"""The SQLite file of a new store is there whole or not at all, though its maker is killed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hksd_search.tracking import access, examine

Make = Callable[..., Any]
MAKES = """
import sys
from hksd_search.tracking import access
access.quiet_environment()
access.make_whole(sys.argv[1])
"""


def test_a_maker_that_is_killed_leaves_no_file_and_the_next_one_makes_it_whole(tmp_path: Path, child: Make) -> None:
    file = tmp_path / "runs" / "mlflow.db"
    uri = f"sqlite:///{file}"
    maker = child(MAKES, uri)
    part = file.with_name(".mlflow.db.part")
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 100_000):  # in the middle of its tables
        assert maker.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    maker.send_signal(signal.SIGKILL)
    maker.communicate()
    assert not file.exists()
    access.quiet_environment()
    access.make_whole(uri)
    assert examine.examine(uri) is None
    assert not list(file.parent.glob("*.part*"))
    before = file.stat().st_mtime_ns
    access.make_whole(uri)
    assert file.stat().st_mtime_ns == before, "one that is there is left alone"
