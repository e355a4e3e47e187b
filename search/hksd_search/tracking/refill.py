"""A tracking store that has lost the runs of a search (deleted, restored from an old copy): what to write to it again.

The study knows of every trial what it was given, how it ended, and its validation accuracy after each epoch. Losses
and diagnostics of epochs that are over are gone with the store.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hksd.config.run import from_tree
from hksd_search.study.records import Assignment, read_records
from hksd_search.tracking.facts import STATUS, trial_end, trial_start

MAKE = (
    "import sys; from mlflow.tracking import MlflowClient; MlflowClient(tracking_uri=sys.argv[1]).search_experiments()"
)


def is_lost(error: Exception) -> bool:
    """Whether an error of MLflow says that a run of ours, or every table, is not there any more."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST" or "no such table" in str(error)


def find_runs(client: Any, experiment: str, search: str, parent: str) -> dict[str, str]:
    """Ids of the runs of a search in a store, by the number of the trial; that of the search itself as `parent`."""
    found, token = {}, None
    while True:
        page = client.search_runs([experiment], f"tags.`hksd.search` = '{search}'", max_results=1000, page_token=token)
        for run in page:
            if (kind := run.data.tags.get("hksd.kind")) in ("search", "trial"):
                found[parent if kind == "search" else str(int(run.info.run_name.split()[0]))] = run.info.run_id
        if not (token := page.token):
            return found


def make_tables(uri: str) -> None:
    """Make the tables of a SQLite store; by a process of its own, since MLflow makes them once in a process.

    Raises:
        OSError: that did not work; whoever writes next will tell why.
    """
    done = subprocess.run([sys.executable, "-c", MAKE, uri], capture_output=True, check=False)
    if done.returncode:
        raise OSError(f"the tables of {uri} cannot be made")


def told_by_study(folder: Path, search: str, now: int) -> Iterator[dict[str, Any]]:
    """The records of a tracker (`tracking.tracker.Tracker`) that make the runs of all trials, as the study has them.

    Args:
        folder: of the search.
        search: its name.
        now: milliseconds since 1970.
    """
    for trial in read_records(folder):
        if trial.config is None or trial.status in ("rejected", "duplicate"):
            continue
        run = {"run": str(trial.number), "time": now}
        given = Assignment(trial.number, from_tree(trial.config), trial.arm, trial.costs)
        yield {"kind": "start", **run, **trial_start(search, given)}
        for epoch, accuracy in sorted(trial.accuracies.items()):
            yield {"kind": "metrics", **run, "metrics": {"val/accuracy": accuracy}, "step": epoch}
        if trial.status in STATUS:
            yield {"kind": "end", **run, **trial_end(trial)}
