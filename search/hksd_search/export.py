"""The student of a trial as files that people take home."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hksd import data as datasets
from hksd import models
from hksd.config.run import RunConfig, from_tree
from hksd.data import DataSet, store
from hksd.deploy import export as core
from hksd.deploy.export import Exported
from hksd.errors import UserError
from hksd.fit import WEIGHTS_FILE, unfinished
from hksd.models import classes, weights
from hksd.teacher.inputs import trained_on
from hksd.teacher.teacher import FAMILIAR
from hksd_search.session import how_to_resume
from hksd_search.study.reading import EXPORT_FOLDER, SearchFolder, counts
from hksd_search.study.records import trial_folder

log = logging.getLogger(__name__)


def load_student(config: RunConfig, data: DataSet, file: Path) -> tuple[Any, dict[str, str]]:
    """Build the student of `config` with the weights in `file`; returns it with the metadata of the file.

    Where the file names the classes of the data in another order, the student is brought into that of the data.

    Raises:
        UserError: the weights do not fit, or are of other classes.
    """
    student = models.make(config.student.spec(), **data.image_shape)
    metadata = weights.load_into(student.eval(), file)
    order = classes.order_of(classes.classes_of(metadata), data.classes, str(file))
    if order is not None:
        size = data.image_size
        images = torch.randn(4, data.channels, size, size, generator=torch.Generator().manual_seed(0))
        classes.rearrange(student, order, images, str(file))
        metadata["classes"] = json.dumps(data.classes)
        log.warning("%s: %s", file, classes.MOVED)
    return student, metadata


def as_trained(data: DataSet, metadata: Mapping[str, str]) -> DataSet:
    """`data`, normalised as the images were that a student learned from, by the header of its weights file.

    The statistics of other images, or of a part of them, are others; a student goes on seeing pixels as it learned to.
    """
    known = trained_on(metadata)
    if known is None or len(known.mean) != data.channels or (known.mean, known.std) == (data.mean, data.std):
        return data
    log.warning("images are normalised as in the training of the student, not by the statistics of these ones")
    return dataclasses.replace(data, mean=known.mean, std=known.std)


def export_trial(
    search: SearchFolder,
    number: int | None = None,
    to: Path | None = None,
    data: DataSet | None = None,
    onnx: bool = False,
) -> Path:
    """Like `write_trial`; warns of a program that could not be made, and returns the folder of the export alone."""
    where, made = write_trial(search, number, to, data, onnx)
    for name, why in made.missing.items():
        log.warning("%s: %s cannot be made: %s; everything else is there", where, name, why)
    return where


def write_trial(
    search: SearchFolder,
    number: int | None = None,
    to: Path | None = None,
    data: DataSet | None = None,
    onnx: bool = False,
) -> tuple[Path, Exported]:
    """Export a trial of a search, the best one by default, with the comparison on its card; as ONNX too when asked.

    Returns:
        The folder of the export, and what came of it.

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
        resume = how_to_resume(search.name, search.folder.parent, None)
        raise UserError(f"{trial / fault}; `{resume}` trains it again")
    student, metadata = load_student(config, data, trial / WEIGHTS_FILE)
    data = as_trained(data, metadata)
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
    elif search.facts.get("teacher", {}).get("familiar"):
        notes.append(f"The teacher was loaded: {FAMILIAR}.")
    if chosen.arm:
        notes.append(f'This student is the arm "{chosen.arm}": no drawn trial was better.')
    if "latency_ms" in chosen.costs and "latency" in search.facts:
        notes.append(_latency_note(chosen.costs, search.facts["latency"]))
    where, rows = to or search.folder / EXPORT_FOLDER, search.rows(chosen)
    words: dict[str, Any] = {"rows": rows, "origin": origin, "notes": notes}
    return where, core.export(config, student, data, where, metadata=metadata, onnx=onnx, **words)


def files_in(folder: Path) -> list[str]:
    """Names of the files of an export that are there."""
    return [name for name in core.FILES if (folder / name).exists()]


def _latency_note(costs: Mapping[str, float], facts: Mapping[str, Any]) -> str:
    return (
        f"Latency of one image: median {costs['latency_ms']:.3g} ms, 95th percentile {costs['latency_p95_ms']:.3g} ms "
        f"({facts['runtime']}, {facts['threads']} thread(s), {facts['processor']}; the least disturbed "
        f"{facts['runs']} runs). It holds for that machine alone."
    )
