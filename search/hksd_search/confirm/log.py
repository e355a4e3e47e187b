"""A confirmation in MLflow: one child run beside the trials of its search, in the store that the search wrote to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hksd_search.tracking import address, known
from hksd_search.tracking.tracker import PARENT, Sent, Tracker, waiting

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
    if known.read(search) is None:
        return None
    tracker = _tracker(search, folder, name, address.choose(search, None))
    tracker.log(facts, text)
    return tracker.close()


def resend(search: Path, folder: Path, name: str, store: address.Address) -> Sent | None:
    """Send what is left of a confirmation; None where nothing is."""
    return _tracker(search, folder, name, store).close() if waiting(folder) else None


def _tracker(search: Path, folder: Path, name: str, store: address.Address) -> _ConfirmationTracker:
    """A tracker that goes on with what the confirmation, and the search above it, have in the store."""
    of_search, mine = known.read(search) or known.Known(store.plain), known.read(folder)
    parent = {PARENT: of_search.runs[PARENT]} if PARENT in of_search.runs else {}
    if mine is None or not mine.leads_to(store.uri, search.parent):
        mine = replace(of_search, runs={}, acknowledged=mine.acknowledged if mine else 0)
    facts = replace(mine, uri=store.plain, experiment=of_search.experiment, runs={**mine.runs, **parent})
    known.write(folder, facts)
    return _ConfirmationTracker(store.uri, folder, name)


class _ConfirmationTracker(Tracker):
    """A tracker with a spool of its own, since the search may be running and writing to its own one."""

    study = None  # the search sees to its trials

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
