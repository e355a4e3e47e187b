"""Reading a search: the best student, the arms, the table, and the export."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hksd import data as datasets
from hksd import export as core
from hksd import loop, models, weights
from hksd.config import RunConfig, from_tree
from hksd.data import DataSet, store
from hksd.errors import UserError
from hksd.export import Row
from hksd.train import WEIGHTS_FILE
from search.arms import ARMS
from search.costs import shown
from search.records import Record, read_records, trial_folder

FACTS_FILE, EXPORT_FOLDER = "search.json", "export"
TRAINED = ("complete", "pruned", "failed")
STATUSES = (*TRAINED, "rejected", "duplicate")
EPSILON = 1e-9  # of an accuracy: sums of shares do not end in exact numbers


@dataclass(frozen=True)
class SearchFolder:
    """A search on disk.

    Attributes:
        name: name of the search.
        folder: its folder.
        records: its trials.
        facts: teacher, objectives and the like, written at the start and the end.
    """

    name: str
    folder: Path
    records: list[Record]
    facts: dict[str, Any]

    @property
    def best(self) -> Record | None:
        """The best trial among full-length ones; see `best`."""
        return best(self.records, self.target, self.facts.get("minimize", ()))

    @property
    def target(self) -> float | None:
        """The accuracy that a student has to reach (`search.max_drop`), or None."""
        drop = self.facts.get("max_drop")
        return None if drop is None else target(self.facts["teacher"]["accuracy"], drop)

    def verdict(self) -> str | None:
        """What came of `search.max_drop`, in words."""
        if self.target is None or (found := self.best) is None:
            return None
        drop, lost = self.facts["max_drop"], self.facts["teacher"]["accuracy"] - (found.val_accuracy or 0.0)
        if lost <= drop / 100 + EPSILON:
            cost = self.facts["minimize"][0]
            value = shown(cost, found.costs[cost])
            return f"the smallest student within {_points(drop)} of the teacher is trial {found.number}: {cost} {value}"
        return (
            f"no student came within {_points(drop)} of the teacher: the most accurate, trial {found.number}, lies "
            f"{100 * lost:.2f} points below it; more epochs, trials or larger students may help"
        )

    def arm(self, name: str) -> Record | None:
        """The best trial of an arm, or its first when none is complete."""
        own = [record for record in self.records if record.arm == name]
        return best(own) or next(iter(own), None)

    def arm_names(self) -> list[str]:
        """The arms of the search, in their order."""
        return [] if self.facts.get("arms") == "none" else list(ARMS)

    def front(self) -> list[Record]:
        """The trials that no other beats in every objective, by falling accuracy."""
        return front(self.records, self.facts.get("minimize", []))

    def rows(self, chosen: Record | None = None) -> list[Row]:
        """The comparison: teacher, chosen (or best) student, arms."""
        chosen, teacher = chosen or self.best, self.facts.get("teacher")
        rows = []
        if teacher:
            rows.append(Row("teacher", teacher["model"], teacher["accuracy"], teacher["params"], teacher["mflops"]))
        if chosen is not None:
            rows.append(
                _row(
                    f"best student (trial {chosen.number})" if chosen == self.best else f"trial {chosen.number}", chosen
                )
            )
        for name in self.arm_names():
            count = sum(r.arm == name for r in self.records if r.status in TRAINED)
            rows.append(_row(f"arm: {name}" + (f", best of {count}" if count > 1 else ""), self.arm(name)))
        return rows


def _points(value: float) -> str:
    return f"{value:g} point{'' if value == 1 else 's'}"


def target(teacher: float, max_drop: float) -> float:
    """The accuracy (0 to 1) of a student that loses at most `max_drop` points against a teacher of that accuracy."""
    return teacher - max_drop / 100 - EPSILON


def best(records: Sequence[Record], target: float | None = None, minimize: Sequence[str] = ()) -> Record | None:
    """The best of the full-length trials.

    It has the highest validation accuracy; of equal ones the fewest parameters, and came first. With a `target` it is
    the one with the smallest first cost in `minimize` among those that reach it, where there are any.
    """
    complete = [r for r in records if r.status == "complete"]
    if target is not None and (good := [r for r in complete if (r.val_accuracy or 0.0) >= target]):
        return min(good, key=lambda r: (r.costs[minimize[0]], -(r.val_accuracy or 0.0), r.number))
    return max(complete, key=lambda r: (r.val_accuracy or 0.0, -(r.params or 0), -r.number), default=None)


def front(records: Sequence[Record], minimize: Sequence[str]) -> list[Record]:
    """The full-length trials that no other dominates in accuracy and the sizes in `minimize`."""
    complete = sorted((r for r in records if r.status == "complete"), key=lambda r: -(r.val_accuracy or 0.0))

    def costs(r: Record) -> list[float]:
        return [-(r.val_accuracy or 0.0), *(r.costs[name] for name in minimize)]

    def dominated(r: Record) -> bool:
        return any(
            all(a <= b for a, b in zip(costs(o), costs(r), strict=True)) and costs(o) != costs(r) for o in complete
        )

    return [r for r in complete if not dominated(r)]


def counts(records: Sequence[Record]) -> dict[str, int]:
    """Number of trials by status, every status named."""
    found: Counter[str] = Counter(record.status for record in records)
    return {status: found.get(status, 0) for status in STATUSES}


def _row(name: str, record: Record | None) -> Row:
    if record is None or record.config is None:
        return Row(name, "not trained yet", None, None, None)
    config = from_tree(record.config)
    accuracy = record.val_accuracy if record.status == "complete" else None
    model = f"{config.student.model} w{config.student.width:g}"
    return Row(
        name,
        model + ("" if record.status == "complete" else f" ({record.status})"),
        accuracy,
        record.params,
        record.mflops,
    )


def open_search(runs: Path, name: str) -> SearchFolder:
    """Open the search `name` below the folder `runs`.

    Raises:
        UserError: there is none; lists those there are.
    """
    where = runs / name
    if not where.is_dir():
        known = sorted(p.parent.name for p in runs.glob(f"*/{FACTS_FILE}"))
        raise UserError(f"{where}: no such search" + (f" (there are: {', '.join(known)})" if known else ""))
    try:
        facts = json.loads((where / FACTS_FILE).read_text())
    except FileNotFoundError:
        facts = {}
    except ValueError as error:
        raise UserError(f"{where / FACTS_FILE}: damaged: {error}") from error
    return SearchFolder(name, where, read_records(where), facts)


def load_student(config: RunConfig, data: DataSet, file: Path) -> tuple[Any, dict[str, str]]:
    """Build the student of `config` with the weights in `file`; returns it with the metadata of the file."""
    student = models.make(config.student.spec(), **loop.image_shape(data))
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
    student, metadata = load_student(config, data, trial_folder(search.folder, chosen.number) / WEIGHTS_FILE)
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
