"""What a search says of itself: facts at its start, the parent run in MLflow, the table, the outcome."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hksd import provenance
from hksd.config.run import content_hash, dump
from hksd.data import DataSet
from hksd.deploy.export import CARD_FILE, Row
from hksd.errors import UserError
from hksd.models.size import size_of
from hksd.teacher.teacher import FAMILIAR
from hksd_search.console import Display, how_to_send, relative
from hksd_search.report import report as reports
from hksd_search.report.report import table_csv
from hksd_search.report.sections import TABLE_FILE
from hksd_search.space.space import Space
from hksd_search.study.reading import SearchFolder, counts
from hksd_search.study.records import Record
from hksd_search.teaching import TeacherFacts
from hksd_search.tracking import tracker as tracking


@dataclass(frozen=True)
class Outcome:
    """What a search ends with.

    Attributes:
        name: name of the search.
        trials: number of trials by status.
        best: facts of the best trial.
        arms: facts of the arms by name.
        verdict: what came of `search.max_drop`, in words.
        front: facts of the trials on the front, when there are several objectives.
        rows: the comparison table.
        wall_s: seconds since the start of this call.
        device_s: seconds of training of all trials.
        export: folder of the exported student.
        ended: the cap (``max_device_hours``, ``max_cost``) that ended it early, or None.
        tracking: store, experiment, records sent and unsent, and the command that sends those.
    """

    name: str
    trials: dict[str, int]
    best: dict[str, Any]
    arms: dict[str, Any]
    verdict: str | None
    front: list[dict[str, Any]]
    rows: list[Row]
    wall_s: float
    device_s: float
    export: str
    ended: str | None
    tracking: dict[str, Any]


def facts_of(space: Space, name: str, data: DataSet, teacher: TeacherFacts) -> dict[str, Any]:
    """What is known of a search before its first trial, for `search.json`."""
    settings = space.middle({}).teacher
    assert settings is not None
    size = size_of(settings.spec(), **data.image_shape)
    return {
        "name": name,
        "space": space.name,
        "minimize": list(space.search.minimize),
        "max_drop": space.search.max_drop,
        "arms": space.search.arms,
        "limits": dump(space.search.limits),
        "epochs": space.tree["train"]["epochs"],
        "data": {
            "name": data.name,
            "train": len(data.train),
            "validation": len(data.validation),
            "fingerprint": data.fingerprint,
        },
        "teacher": {
            "model": settings.model,
            "accuracy": teacher.accuracy,
            "params": size.params,
            "mflops": size.mflops,
            "attention_accuracy": list(teacher.attention_accuracy),
            "key": teacher.key,
            **({"familiar": True} if teacher.familiar else {}),
        },
        "provenance": provenance.provenance(),
    }


def note_origin(folder: Path, space: Space, data: DataSet, teacher: TeacherFacts) -> None:
    """Write down what the search is made of, and that a session at it begins."""
    settings = space.middle({}).teacher
    origin = {
        "space_hash": content_hash(json.loads(json.dumps(space.tree))),
        "data": provenance.describe_data(data),
        "teacher": teacher.key,
        "seeds": {"search": space.search.seed, "teacher": settings.seed if settings else None},
    }
    try:
        provenance.note(folder, origin, {})
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error


def teacher_line(facts: Mapping[str, Any], teacher: TeacherFacts) -> str:
    """The teacher in one line."""
    levels = ", ".join(f"{value:.2%}" for value in facts["attention_accuracy"])
    return (
        f"teacher {facts['model']}{' (cached)' if teacher.cached else ''}: validation {facts['accuracy']:.2%}, "
        f"{facts['params']:,} parameters"
        + (f"; its squeezed vectors, level 1-3: {levels}" if levels else "")
        + (f"; {FAMILIAR}" if facts.get("familiar") else "")
    )


def parent_params(space: Space, facts: Mapping[str, Any]) -> dict[str, str]:
    """Parameters of the parent run in MLflow."""
    data, teacher = facts["data"], facts["teacher"]
    ranges = {".".join(map(str, path)): str(spread) for path, spread in space.ranges.items()}
    return {
        "space": space.name,
        "data": data["name"],
        "data.train": str(data["train"]),
        "data.validation": str(data["validation"]),
        "data.fingerprint": data["fingerprint"],
        "teacher": teacher["model"],
        "teacher.accuracy": str(teacher["accuracy"]),
        "teacher.knowledge": facts["teaching"]["knowledge"],
        "precision": facts["teaching"]["precision"],
        **{f"search.{key}": json.dumps(value) for key, value in dump(space.search).items()},
        **{f"range.{key}": value for key, value in ranges.items()},
    }


def finish_tracking(
    tracker: tracking.Tracker,
    found: SearchFolder,
    status: str,
    display: Display,
    export: Path | None,
    ended: str | None,
    report: bool = False,
) -> tracking.Sent:
    """Close the parent run with figures, table, card and, if asked, a report that is written now.

    Says when records could not be delivered. What cannot be read or made is left out: the run is closed in any case.
    """
    try:
        end_run(tracker, found, status, export, ended, reports.at_end(found, display) if report else {})
    finally:
        outcome = tracker.close(tracking.STOP_FLUSH_S if status == "KILLED" else None)
    if outcome.unsent:
        display.line(
            f"warning: {outcome.unsent} record(s) did not reach MLflow ({outcome.problem}); they are kept in "
            f"{relative(found.folder / tracking.SPOOL_FILE)} and sent by `{how_to_send(found.folder)}`, or when the "
            "search is resumed"
        )
    return outcome


def end_run(
    tracker: tracking.Tracker,
    found: SearchFolder,
    status: str,
    export: Path | None,
    ended: str | None,
    texts: Mapping[str, str],
    if_open: bool = False,
) -> None:
    """Tell MLflow how a search ended; `if_open` only where its run has not been ended."""
    best = found.best
    metrics = {f"trials/{key}": float(value) for key, value in counts(found.records).items()}
    tags = {"hksd.status": {"FINISHED": "complete", "KILLED": "interrupted"}.get(status, "failed")}
    tags["hksd.ended"] = ended or ""  # also where an earlier session set it
    if best is not None:
        metrics |= {
            "best/val_accuracy": best.val_accuracy or 0.0,
            "best/params": float(best.params or 0),
            "best/mflops": best.mflops or 0.0,
        }
        tags |= {"hksd.best": best.label}
    files = {TABLE_FILE: table_csv(found.records)}
    if export is not None:
        with suppress(OSError, ValueError):  # a card that was not written, or is of no text
            files["card.md"] = (export / CARD_FILE).read_text()
    tracker.end_search(status, metrics, tags, files | dict(texts), if_open)


def outcome(found: SearchFolder, start: float, where: Path, ended: str | None, seen: dict[str, Any]) -> Outcome:
    """The outcome of a search that began at the monotonic time `start`."""
    best = found.best
    assert best is not None
    return Outcome(
        name=found.name,
        trials=counts(found.records),
        best=public(best),
        arms={name: public(record) for name in found.arm_names() if (record := found.arm(name))},
        verdict=found.verdict(),
        front=[public(record) for record in found.front()] if found.facts["minimize"] else [],
        rows=found.rows(),
        wall_s=time.monotonic() - start,
        device_s=sum(record.seconds for record in found.records),
        export=str(where),
        ended=ended,
        tracking=seen,
    )


def public(record: Record) -> dict[str, Any]:
    """A trial as the command prints it in JSON."""
    return {
        "trial": record.number,
        "status": record.status,
        "val_accuracy": record.val_accuracy,
        **record.costs,
        "config": record.config,
    }
