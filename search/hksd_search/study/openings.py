"""The book of the test split: whoever reports its numbers can see how often it was opened, and for what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from hksd.errors import UserError

OPENINGS_FILE = "test-openings.jsonl"


def note(folder: Path, by: str, scored: Sequence[str]) -> None:
    """Write down, before it happens, that the test split is opened.

    Args:
        folder: folder of the student, or of the search.
        by: the command.
        scored: names of the networks that are scored.

    Raises:
        UserError: it cannot be written; the split then has to stay closed.
    """
    opened = datetime.now(timezone.utc).isoformat(timespec="seconds")
    try:
        with (folder / OPENINGS_FILE).open("a") as file:
            file.write(json.dumps({"opened": opened, "by": by, "scored": list(scored)}) + "\n")
    except OSError as error:
        raise UserError(
            f"{folder / OPENINGS_FILE}: the opening of the test split cannot be recorded: {error.strerror}"
        ) from error


def count(folder: Path) -> int:
    """How often the test split was opened for a search: for it, its trials, its export."""
    return sum(len(file.read_text().splitlines()) for file in folder.rglob(OPENINGS_FILE))
