"""How training hears that it is to stop after its step: the trials of a search by a file, a single run by a signal."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

STOP_FILE = "stop"  # in the folder of a search
LOOK_EVERY = 0.2  # seconds between two looks of a trial for that file


def told_to_stop(folder: Path) -> Callable[[], bool]:
    """For a trial of the search in `folder`: whether it is to end now. May be asked after every step."""
    file, looked, found = folder / STOP_FILE, -LOOK_EVERY, False

    def look() -> bool:
        nonlocal looked, found
        now = time.monotonic()
        if now - looked >= LOOK_EVERY:
            looked, found = now, file.exists()
        return found

    return look
