"""Runs of a search that a tracking store has deleted or lost: which are there, and what to write to it again.

The study knows of every trial what it was given, how it ended, and its validation accuracy after each epoch. Losses
and diagnostics of epochs that are over are gone with the store.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hksd.config.run import from_tree
from hksd_search.study.records import Assignment, read_records
from hksd_search.tracking.facts import ACCURACY, STATUS, trial_end, trial_start

MAKE = (
    "import sys; from mlflow.tracking import MlflowClient; MlflowClient(tracking_uri=sys.argv[1]).search_experiments()"
)
PARENT_TAG = "mlflow.parentRunId"
WHOSE = ("hksd.search", "hksd.kind", "hksd.trial", PARENT_TAG)  # tags that only one run of a search has like that
PAGE = 1000  # runs that MLflow gives at once
Told = dict[str, list[dict[str, Any]]]


def is_gone(error: Exception) -> bool:
    """Whether an error of MLflow says that a run or an experiment is not there."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


def has_no_tables(error: Exception) -> bool:
    """Whether an error of MLflow says that a database is empty."""
    return "no such table" in str(error)


def is_deleted(error: Exception) -> bool:
    """Whether an error of MLflow says that a run or an experiment bears the mark of one that was deleted."""
    code = getattr(error, "error_code", None)
    return code in ("INVALID_PARAMETER_VALUE", "INVALID_STATE") and bool(
        re.search(r"must be in the 'active' state|deleted state|lifecycle.stage", str(error))
    )


def find_runs(client: Any, experiments: list[str], search: str, at_most: int = 0, deleted: bool = False) -> list[Any]:
    """The runs that bear the name of a search, deleted ones too, or those alone; all, or the first so many."""
    from mlflow.entities import ViewType

    view = ViewType.DELETED_ONLY if deleted else ViewType.ALL
    found, token = [], None
    while True:
        page = client.search_runs(
            experiments, f"tags.`hksd.search` = '{search}'", view, max_results=at_most or PAGE, page_token=token
        )
        found += page
        if not (token := page.token) or at_most:
            return found


def made(client: Any, experiment: str, tags: Mapping[str, str], at: int) -> Any:
    """The run with these tags, if it is there; one of a search itself only if it began at that time.

    Args:
        client: of MLflow.
        experiment: its id.
        tags: what the run was made with.
        at: milliseconds since 1970.
    """
    from mlflow.entities import ViewType

    where = [f"tags.`{key}` = '{tags[key]}'" for key in WHOSE if key in tags]
    where += [] if PARENT_TAG in tags else [f"attributes.start_time = {at}"]
    return next(iter(client.search_runs([experiment], " AND ".join(where), ViewType.ALL, max_results=1)), None)


def ours(found: Sequence[Any], known: Mapping[str, str], study: Told, parent: str) -> dict[str, Any]:
    """Which of the runs with the name of a search are its own, by the number of the trial, and `parent`.

    Another search of that name may be in the same store. Runs whose ids are known are ours, and so are those below
    our parent run. Where no id of a parent is known, it is the one whose trials have the configurations of the study.

    Args:
        found: all runs with the name.
        known: ids of ours, as far as they are known.
        study: what the study has (`told_by_study`).
        parent: key of the search's own run.
    """
    by_id = {run.info.run_id: run for run in found}
    mine = {name: by_id[run] for name, run in known.items() if run in by_id}
    above = known.get(parent)
    if above not in by_id:
        above = _likely(found, study, parent) or above
    for run in found:
        name = name_of(run, parent)
        if name is not None and (run.data.tags.get(PARENT_TAG) == above or run.info.run_id == above) and above:
            mine.setdefault(name, run)
    return mine


def _likely(found: Sequence[Any], study: Told, parent: str) -> str | None:
    """The parent run with most trials of the study below it; one without trials where none has any."""
    hashes = {name: records[0]["tags"]["hksd.config_hash"] for name, records in study.items()}
    below: dict[str, list[bool]] = {run.info.run_id: [] for run in found if name_of(run, parent) == parent}
    for run in found:
        tags = run.data.tags
        if (above := tags.get(PARENT_TAG)) in below:
            below[above].append(hashes.get(name_of(run, parent) or "") == tags.get("hksd.config_hash"))
    likely = {run: sum(same) for run, same in below.items() if any(same) or not same}
    return max(likely, key=lambda run: likely[run], default=None)


def name_of(run: Any, parent: str) -> str | None:
    """Which run of a search a run is: the number of its trial, `parent`, or its kind; None where nobody can tell."""
    kind: str | None = run.data.tags.get("hksd.kind")
    if kind != "trial":
        return parent if kind == "search" else kind
    number = run.data.tags.get("hksd.trial") or re.match(r"\d*", str(run.info.run_name))[0]  # type: ignore[index]
    return str(int(number)) if number else None


def make_tables(uri: str) -> None:
    """Make the tables of a SQLite store; by a process of its own, since MLflow makes them once in a process.

    Raises:
        OSError: that did not work; whoever writes next will tell why.
    """
    done = subprocess.run([sys.executable, "-c", MAKE, uri], capture_output=True, check=False)
    if done.returncode:
        raise OSError(f"the tables of {uri} cannot be made")


def told_by_study(folder: Path, search: str, now: int) -> Told:
    """The records of a tracker (`tracking.tracker.Tracker`) that make the runs of all trials, as the study has them.

    Args:
        folder: of the search.
        search: its name.
        now: milliseconds since 1970.

    Returns:
        For each trial by its number: its start, its accuracies, and its end, where it has ended.

    Raises:
        UserError: there is no study, or it cannot be read.
    """
    told: Told = {}
    for trial in read_records(folder):
        if trial.config is None or trial.status in ("rejected", "duplicate"):
            continue
        run = {"run": str(trial.number), "time": now}
        given = Assignment(trial.number, from_tree(trial.config), trial.arm, trial.costs)
        records = [{"kind": "start", **run, **trial_start(search, given)}]
        for epoch, accuracy in sorted(trial.accuracies.items()):
            records.append({"kind": "metrics", **run, "metrics": {ACCURACY: accuracy}, "step": epoch})
        if trial.status in STATUS:
            records.append({"kind": "end", **run, **trial_end(trial)})
        told[str(trial.number)] = records
    return told
