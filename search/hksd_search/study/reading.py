"""Reading a search: the best student, the arms, the table, and the export."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from hksd.config.run import from_tree
from hksd.deploy.export import Row
from hksd.errors import UserError, key_path
from hksd.files import expanded
from hksd.schema import check
from hksd.teacher.teacher import FAMILIAR
from hksd_search.space.arms import ARMS
from hksd_search.space.settings import Cost, shown
from hksd_search.study import pareto
from hksd_search.study.records import Record, read_records

FACTS_FILE, EXPORT_FOLDER = "search.json", "export"
TRAINED = ("complete", "pruned", "failed")
STATUSES = (*TRAINED, "rejected", "duplicate")
MEND_FACTS = "`hksd search NAME --resume` writes it again"
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
        teacher = self.facts["teacher"]
        drop, lost = self.facts["max_drop"], teacher["accuracy"] - (found.val_accuracy or 0.0)
        beside = f" (of the teacher: {FAMILIAR})" if teacher.get("familiar") else ""
        if lost <= drop / 100 + EPSILON:
            cost = self.facts["minimize"][0]
            value = shown(cost, found.costs[cost])
            which = f"the smallest student within {_points(drop)} of the teacher is trial {found.number}"
            return f"{which}: {cost} {value}{beside}"
        return (
            f"no student came within {_points(drop)} of the teacher: the most accurate, trial {found.number}, lies "
            f"{100 * lost:.2f} points below it; more epochs, trials or larger students may help{beside}"
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

    points = [[-(r.val_accuracy or 0.0), *(r.costs[name] for name in minimize)] for r in complete]
    return [r for r, others in zip(complete, pareto.beaten(points), strict=True) if not others]


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


_FINITE = ConfigDict(allow_inf_nan=False)


@with_config(_FINITE)
class _Teacher(TypedDict):
    model: str
    accuracy: Annotated[float, Field(ge=0, le=1)]
    params: int
    mflops: float


@with_config(_FINITE)
class _Facts(TypedDict, total=False):
    """What is read of search.json; more may stand there."""

    space: str
    address: str | None
    teacher: _Teacher
    data: dict[str, Any] | None
    provenance: dict[str, Any] | None
    teaching: dict[str, Any] | None
    latency: dict[str, Any] | None
    minimize: tuple[Cost, ...] | None
    max_drop: Annotated[float, Field(ge=0, le=100)] | None
    arms: Literal["fixed", "tuned", "none"]
    epochs: Annotated[int, Field(ge=1)]
    ended: str | None


def _fault_of(facts: Any) -> str | None:
    """What is wrong with the content of search.json, or None."""
    _, problems = check(_Facts, facts)
    if problems:
        return f"{key_path(problems[0].path) or 'the file'} {problems[0].message}"
    for key in ("teacher", "minimize") if facts.get("max_drop") is not None else ():
        if not facts.get(key):
            return f"{key} is missing, which max_drop needs"
    return None


def _in_words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "lists and sections of thousands of levels"
    return "no text in UTF-8" if isinstance(error, UnicodeDecodeError) else f"no JSON: {str(error).partition(';')[0]}"


def open_search(runs: Path, name: str) -> SearchFolder:
    """Open the search `name` below the folder `runs`.

    Raises:
        UserError: there is none; lists those there are.
    """
    where = expanded(runs / name, "NAME") if name else runs
    if not name or not where.is_dir():
        known = sorted(p.parent.name for p in runs.glob(f"*/{FACTS_FILE}"))
        raise UserError(f"{where}: no such search" + (f" (there are: {', '.join(known)})" if known else ""))
    try:
        facts = json.loads((where / FACTS_FILE).read_text())
    except FileNotFoundError:
        facts = {}
    except OSError as error:
        raise UserError(f"{where / FACTS_FILE}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # a RecursionError is one of thousands of levels
        raise UserError(f"{where / FACTS_FILE}: damaged: {_in_words(error)}; {MEND_FACTS}") from error
    if fault := _fault_of(facts):
        raise UserError(f"{where / FACTS_FILE}: damaged: {fault}; {MEND_FACTS}")
    return SearchFolder(name, where, read_records(where), facts)
