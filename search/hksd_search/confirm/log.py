"""A confirmation in MLflow: one child run beside the trials of its search, in the store that the search wrote to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hksd.files import write_atomically
from hksd_search.tracking.spool import Spool
from hksd_search.tracking.tracker import NOTES_FILE, PARENT, RUNS_FILE, Sent, Tracker

CHILD = "confirm"


def log_confirmation(search: Path, folder: Path, name: str, facts: Mapping[str, Any], text: str) -> Sent | None:
    """Write a confirmation to the store of its search; a second one continues the first one's run.

    Args:
        search: folder of the search.
        folder: folder of the confirmation; keeps what could not be sent, for the next one.
        name: name of the search.
        facts: what `confirm.json` holds.
        text: what `confirm.md` holds.

    Returns:
        How it went; None where the search was not tracked.
    """
    known = _runs_of_search(search)
    if known is None:
        return None
    mine = folder / RUNS_FILE
    if not mine.exists() or json.loads(mine.read_text())["uri"] != known["uri"]:
        seed = {**known, "runs": {PARENT: known["runs"][PARENT]}, "acknowledged": 0}
        write_atomically(mine, json.dumps(seed).encode())
    tracker = _ConfirmationTracker(known["uri"], folder, name)
    tracker.log(facts, text)
    return tracker.close()


class _ConfirmationTracker(Tracker):
    """A tracker with a spool of its own, since the search may be running and writing to its own one."""

    def log(self, facts: Mapping[str, Any], text: str) -> None:
        """Log figures at the step that counts the openings of the test split."""
        tags = {"hksd.search": self.name, "hksd.kind": CHILD, "hksd.status": "running"}
        self._put("start", CHILD, name=CHILD, tags=tags, params={})
        self._put("text", CHILD, file="confirm.md", text=text)
        self._put("metrics", CHILD, metrics=metrics(facts), step=int(facts["test_openings"]))
        self._put("end", CHILD, status="FINISHED", tags={"hksd.status": "complete"})


def metrics(facts: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a confirmation under their MLflow names; those that are undefined are left out."""
    found: dict[str, float | None] = {
        "teacher/test_accuracy": facts["teacher"]["test_accuracy"],
        "test/openings": facts["test_openings"],
    }
    for one in (*facts["students"], *facts["arms"]):
        for split in ("val", "test"):
            for name, value in (one[f"{split}_accuracy"] or {}).items():
                found[f"{one['folder']}/{split}_accuracy{'' if name == 'mean' else f'/{name}'}"] = value
        for arm, difference in one.get("against", {}).items():
            for name, value in (difference or {}).items():
                found[f"{one['folder']}/over {re.sub('[^A-Za-z0-9]+', ' ', arm)}/{name}"] = value
    return {name: float(value) for name, value in found.items() if value is not None}


def _runs_of_search(search: Path) -> dict[str, Any] | None:
    """Store, experiment and runs of a search, which may be running; None where it has no run in a store."""
    try:
        facts: dict[str, Any] = json.loads((search / RUNS_FILE).read_text())
    except (OSError, ValueError):
        return None
    for note in Spool(search / NOTES_FILE).read(0):
        facts = {**facts, "experiment": note["experiment"], "runs": facts["runs"] | note["runs"]}
    return facts if PARENT in facts["runs"] else None
