"""The files of a confirmation: confirm.json (all figures), confirm.csv (a line for each run), confirm.md (to read)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hksd.teacher.teacher import FAMILIAR
from hksd_search.confirm.verdicts import shown_p
from hksd_search.session import write
from hksd_search.tables import as_csv

FOLDER = "confirm"  # below the folder of the search
JSON_FILE, CSV_FILE, TEXT_FILE = "confirm.json", "confirm.csv", "confirm.md"


def write_files(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the three files into `folder`."""
    write(folder / JSON_FILE, json.dumps(facts, indent=1))
    write(folder / CSV_FILE, as_csv(list(facts["runs"][0]), facts["runs"]))
    write(folder / TEXT_FILE, text(facts))


def text(facts: Mapping[str, Any]) -> str:
    """Say in Markdown what was found: sentences, tables, notes."""
    parts = [
        f"# Confirmation of {facts['search']}",
        _lines(facts["sentences"]),
        _networks(facts),
        _differences(facts["students"]),
        f"Mean ± sample standard deviation over the seeds {', '.join(map(str, facts['seeds']))}, 95 % t interval in "
        f'brackets; {facts["test_images"]:,} test images, {facts["validation_images"]:,} validation images; "in the '
        'search" is the validation accuracy that the selection saw.',
        "Differences are percentage points on test, paired by seed: a seed fixes the order of images, and the initial "
        "weights of a network. p: paired t test, two-sided; p (Holm): corrected for the number of students, as in the "
        "sentences; intervals are not corrected.",
        _lines([*facts["notes"], *loaded(facts), opened(facts)]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def loaded(facts: Mapping[str, Any]) -> list[str]:
    """Say that the teacher may know the validation images, where it may."""
    return [f"The teacher was loaded: on validation, {FAMILIAR}."] if facts["teacher"].get("familiar") else []


def opened(facts: Mapping[str, Any]) -> str:
    """Say how often the test split was opened; more than once is a warning."""
    count = facts["test_openings"]
    if count == 1:
        return "The test split of this search was opened once."
    return (
        f"Warning: the test split of this search was opened {count} times; the more often it is looked at before a "
        "choice, the less its numbers say of new images."
    )


def _networks(facts: Mapping[str, Any]) -> str:
    teacher = facts["teacher"]
    first = [
        "teacher",
        teacher["model"] or "-",
        _whole(teacher["params"]),
        _number(teacher["mflops"]),
        _percent(teacher["val_accuracy"]),
        "-",
        _percent(teacher["test_accuracy"]),
        "1",
    ]
    header = ["network", "model", "parameters", "MFLOPs", "in the search", "validation", "test", "n"]
    return _table(header, [first, *(_network(one) for one in (*facts["students"], *facts["arms"]))])


def _network(one: Mapping[str, Any]) -> list[str]:
    test = one["test_accuracy"]
    return [
        one["name"],
        one["model"],
        _whole(one["params"]),
        _number(one["mflops"]),
        _percent(one["search_val_accuracy"]),
        _spread(one["val_accuracy"]),
        _spread(test) + _interval(test),
        str(test["n"] if test else 0),
    ]


def _differences(students: Sequence[Mapping[str, Any]]) -> str:
    header = ["student", "against", "points", "95 % interval", "p", "p (Holm)", "n"]
    rows = [
        [
            student["name"],
            arm,
            f"{found['mean']:+.2f}",
            "-" if found["low"] is None else f"{found['low']:.2f} to {found['high']:.2f}",
            *(
                "-" if found[p] is None else shown_p(found[p]).removeprefix("p = ").removeprefix("p ")
                for p in ("p", "p_holm")
            ),
            str(found["n"]),
        ]
        for student in students
        for arm, found in student["against"].items()
        if found is not None
    ]
    return _table(header, rows) if rows else ""


def _spread(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    return _percent(found["mean"]) + ("" if found["std"] is None else f" ± {100 * found['std']:.2f}")


def _interval(found: Mapping[str, Any] | None) -> str:
    if found is None or found["low"] is None:
        return ""
    return f" ({100 * found['low']:.2f} to {100 * found['high']:.2f})"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _lines(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned for people who read it as it is."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
