"""The student of a trial as files that people take home."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hksd import data as datasets
from hksd import models
from hksd.config.run import RunConfig, from_tree
from hksd.data import DataSet, store
from hksd.deploy import export as core
from hksd.errors import UserError
from hksd.fit import WEIGHTS_FILE, unfinished
from hksd.models import weights
from hksd_search.session import how_to_resume
from hksd_search.study.reading import EXPORT_FOLDER, SearchFolder, counts
from hksd_search.study.records import trial_folder


def load_student(config: RunConfig, data: DataSet, file: Path) -> tuple[Any, dict[str, str]]:
    """Build the student of `config` with the weights in `file`; returns it with the metadata of the file."""
    student = models.make(config.student.spec(), **data.image_shape)
    return student.eval(), weights.load_into(student, file)


def export_trial(
    search: SearchFolder,
    number: int | None = None,
    to: Path | None = None,
    data: DataSet | None = None,
    onnx: bool = False,
) -> Path:
    """Export a trial of a search, the best one by default, with the comparison on its card; as ONNX too when asked.

    Returns:
        The folder of the export.

    Raises:
        UserError: no such trial, or it has no finished student.
    """
    chosen = search.best
    if number is not None:
        chosen = next((r for r in search.records if r.number == number), None)
        if chosen is None:
            raise UserError(f"{search.name}: no trial {number} (0 to {len(search.records) - 1})")
    if chosen is None:
        raise UserError(f"{search.name}: no trial has run to the end yet, so there is nothing to export")
    if chosen.status != "complete" or chosen.config is None:
        raise UserError(
            f"{search.name}: trial {chosen.number} is {chosen.status}; only complete trials can be exported"
        )
    config = from_tree(chosen.config)
    data = data or datasets.load(config.data, search.folder.parent / store.FOLDER)
    trial = trial_folder(search.folder, chosen.number)
    if (fault := unfinished(trial)) and fault.startswith(WEIGHTS_FILE):
        resume = how_to_resume(search.name, search.folder.parent, None, None)
        raise UserError(f"{trial / fault}; `{resume}` trains it again")
    student, metadata = load_student(config, data, trial / WEIGHTS_FILE)
    tally = ", ".join(f"{count} {status}" for status, count in counts(search.records).items() if count)
    origin = f"Trial {chosen.number} of the search `{search.name}` (trials: {tally})."
    notes = []
    if search.arm_names():
        tuned = search.facts.get("arms") == "tuned"
        notes.append(
            "The arms began with the largest student within the limits and the middle of every range"
            + (", and then had as many draws each as the search itself." if tuned else "; they were not tuned.")
        )
    if verdict := search.verdict():
        notes.append(verdict[0].upper() + verdict[1:] + ".")
    if chosen.arm:
        notes.append(f'This student is the arm "{chosen.arm}": no drawn trial was better.')
    if "latency_ms" in chosen.costs and "latency" in search.facts:
        notes.append(_latency_note(chosen.costs, search.facts["latency"]))
    where, rows = to or search.folder / EXPORT_FOLDER, search.rows(chosen)
    core.export(config, student, data, where, metadata=metadata, rows=rows, origin=origin, notes=notes, onnx=onnx)
    return where


def _latency_note(costs: Mapping[str, float], facts: Mapping[str, Any]) -> str:
    return (
        f"Latency of one image: median {costs['latency_ms']:.3g} ms, 95th percentile {costs['latency_p95_ms']:.3g} ms "
        f"({facts['runtime']}, {facts['threads']} thread(s), {facts['processor']}; the least disturbed "
        f"{facts['runs']} runs). It holds for that machine alone."
    )
