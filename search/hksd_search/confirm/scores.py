"""Test scores of a confirmation: what is known, and the one pass over the test split that adds what is missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hksd import data as datasets
from hksd.config.run import RunConfig
from hksd.data import DataSet
from hksd.data.augment import batches_of
from hksd.device import process
from hksd.errors import UserError
from hksd.fit import WEIGHTS_FILE
from hksd.models.taps import TappedNet
from hksd.run import evaluate
from hksd.run.evaluate import EVALUATION_BATCH
from hksd_search.confirm.contenders import Run
from hksd_search.export import load_student
from hksd_search.session import write
from hksd_search.study import openings

SCORES_FILE = "test-scores.json"
TEACHER = "teacher"  # its key among the scores
Scores = dict[str, dict[str, Any]]  # by key of a run, or TEACHER: accuracy, nll, ece, count, hash of the weights


def read(folder: Path, runs: Sequence[Run]) -> Scores:
    """Read the scores so far; those of `runs` only where the weights are still the ones that were scored.

    Raises:
        UserError: the file is damaged.
    """
    try:
        known: Scores = json.loads((folder / SCORES_FILE).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{folder / SCORES_FILE}: damaged: {error}; remove it to score again") from error
    by_key = {run.key: run for run in runs}
    return {key: one for key, one in known.items() if key not in by_key or one["weights"] == _digest(by_key[key])}


def add(
    folder: Path,
    known: Scores,
    pending: Sequence[Run],
    teacher: TappedNet | None,
    config: RunConfig,
    data: DataSet,
    on_scored: Callable[[int], None],
) -> None:
    """Open the test split and score everything that is pending; the opening is recorded before the first score.

    Args:
        folder: folder of the confirmation, below that of the search, which keeps the record.
        known: scores so far.
        pending: runs to score.
        teacher: the teacher where it has no score yet, else None.
        config: any run of the search: they all see the same data.
        data: its images.
        on_scored: called with the number of runs that are scored.
    """
    known, test = dict(known), datasets.load_test(config.data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = batches_of(test, data, config.data, device, augment=False)

    def score(network: TappedNet) -> dict[str, Any]:
        found = evaluate.score(*evaluate.predict(network.to(device), batches.plain(EVALUATION_BATCH)))
        return {"accuracy": found.accuracy, "nll": found.nll, "ece": found.ece, "count": found.count}

    openings.note(folder.parent, "hksd confirm", [run.key for run in pending] + ([TEACHER] if teacher else []))
    if teacher is not None:
        known[TEACHER] = score(teacher)
    for done, run in enumerate(pending, 1):
        with process.restored(run.config.seed):  # networks of the user's own may set what they like
            student, _ = load_student(run.config, data, run.folder / WEIGHTS_FILE)
            known[run.key] = score(student) | {"weights": _digest(run)}
        on_scored(done)
    write(folder / SCORES_FILE, json.dumps(known, indent=1))


def _digest(run: Run) -> str | None:
    """Hash of the weights of a run; None where there are none."""
    file = run.folder / WEIGHTS_FILE
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None
