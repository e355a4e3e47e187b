"""The report of a search: one static page to read in five minutes, and a table of all trials.

It is made from what lies in the folder of the search, so it can be made of a search that runs, was killed, or was made
by an older version; what is not known is left out.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hksd.config import flatten
from hksd.errors import UserError
from hksd.export import Row
from hksd.schema import to_yaml
from search import confirm_files, figures, findings, openings, page, tracking
from search import space as spaces
from search.console import percent
from search.knobs import FEWEST, MODELLED, Knob, knobs
from search.records import Record
from search.results import SearchFolder
from search.session import SPACE_FILE, write
from search.settings import REPORTED
from search.space import Space

REPORT_FILE, TABLE_FILE = "report.html", "trials.csv"
LISTED = 200  # trials in the table of the page, the best ones
REASONS = 30  # different reasons that are listed
NUMBERS = 12  # trials that are named beside a reason
HEADINGS = {
    "params": "parameters",
    "mflops": "MFLOPs",
    "peak_memory_mb": "memory, MB",
    "latency_ms": "latency, ms",
    "latency_p95_ms": "95th percentile, ms",
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """A report on disk.

    Attributes:
        page: the HTML file.
        table: the CSV file.
        summary: the sentences at the top of the page.
    """

    page: Path
    table: Path
    summary: list[str]


def write_report(search: SearchFolder, to: Path | None = None) -> Written:
    """Write `REPORT_FILE` and `TABLE_FILE` into the folder of the search, or into `to`, which is made.

    Raises:
        UserError: a file cannot be read or written.
    """
    where = to or search.folder
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{where}: cannot be made: {error.strerror}") from error
    sentences, text = html(search)
    write(where / TABLE_FILE, table_csv(search.records))
    write(where / REPORT_FILE, text)
    return Written(where / REPORT_FILE, where / TABLE_FILE, sentences)


def at_end(search: SearchFolder) -> dict[str, str]:
    """Write the report at the end of a search; returns the page by its file name, or nothing where that failed.

    The search has its result by then, which no fault of its report may take away.
    """
    try:
        return {REPORT_FILE: write_report(search).page.read_text()}
    except Exception as error:
        log.warning("no report was written: %s; `hksd report %s` tries again", error, search.name)
        return {}


def html(search: SearchFolder) -> tuple[list[str], str]:
    """The sentences at the top of the page, and the page.

    Raises:
        UserError: the journal or confirm.json is damaged.
    """
    space, confirmation = _space(search), _confirmation(search)
    found = knobs(search.folder, search.records)
    sentences = findings.summary(search, space.search.trials if space else None, confirmation is not None)
    parts = [
        page.paragraph(" ".join(sentences), "lead"),
        page.section("Comparison", *_comparison(search)),
        page.section("Confirmation on the test split", *_confirmed(search, confirmation)),
        page.section("Accuracy against size", page.figure(figures.accuracy_against_size(search))),
        page.section("Progress", *map(page.figure, (figures.progress(search), figures.learning_curves(search)))),
        page.section("Which knobs mattered", *_knobs(search, found)),
        page.section("Trials", *_trials(search)),
        page.section("Failures and refused draws", *_failures(search)),
        page.section("The best student's configuration", *_configuration(search)),
        page.section("Facts", page.facts(_facts(search, space))),
    ]
    versions = (search.facts.get("provenance") or {}).get("versions") or {}
    under = f"Report of a search with hksd {versions['hksd']}" if "hksd" in versions else "Report of a search with hksd"
    return sentences, page.document(f"Search {search.name}", under, parts)


def table_csv(records: Sequence[Record]) -> str:
    """All trials as CSV, one a line, with their configuration flattened."""
    facts = [{name: value for name, value in record.flat().items() if name != "config"} for record in records]
    configs = [flatten(record.config or {}) for record in records]
    keys = sorted({key for flat in configs for key in flat})
    names = [*dict.fromkeys(name for fact in facts for name in fact), *keys]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, restval="")
    writer.writeheader()
    writer.writerows({**fact, **flat} for fact, flat in zip(facts, configs, strict=True))
    return buffer.getvalue()


# --- what is read beside the records


def _space(search: SearchFolder) -> Space | None:
    """The space; None where it is missing or this version cannot read it."""
    file = search.folder / SPACE_FILE
    try:
        return spaces.loads(file.read_text(), search.facts.get("space") or search.name, str(file))
    except (OSError, UserError):
        return None


def _confirmation(search: SearchFolder) -> dict[str, Any] | None:
    file = search.folder / confirm_files.FOLDER / confirm_files.JSON_FILE
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: damaged: {error}; `hksd confirm {search.name}` writes it again") from error
    return found


# --- the sections


def _comparison(search: SearchFolder) -> list[str]:
    try:
        rows = search.rows()
    except UserError as error:  # another version's configuration
        return [page.paragraph(f"The comparison cannot be made: {error}")]
    if not rows:
        return []
    teacher, costs = search.facts.get("teacher"), _costs_of_rows(search, rows)
    names = [name for name in REPORTED if any(name in one for one in costs)]
    header = ["network", "model", "accuracy"] + ["points to teacher"] * bool(teacher) + [HEADINGS[n] for n in names]
    cells = [
        [row.name, row.model, percent(row.val_accuracy)]
        + [_points(row, teacher["accuracy"]) for _ in [teacher] if teacher]
        + [findings.cost(name, one) for name in names]
        for row, one in zip(rows, costs, strict=True)
    ]
    best = next((i for i, row in enumerate(rows) if row.name.startswith("best student")), None)
    note = "Accuracy on the validation split, one seed. MFLOPs of one image, 2 × MACs."
    if any("latency_ms" in one for one in costs) and (measured := search.facts.get("latency")):
        note += f" Latency of one image: median, {_latency(measured)}."
    return [page.table(header, cells, 2, best), page.paragraph(note, "soft")]


def _costs_of_rows(search: SearchFolder, rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    """The costs behind each row; a row itself knows parameters and MFLOPs only."""
    arms = [search.arm(name) for name in search.arm_names()]
    students = [*([search.best] if search.best else []), *arms]
    own: list[Mapping[str, Any]] = [record.costs if record else {} for record in students]
    teacher = search.facts.get("teacher") or {}
    return [{key: teacher[key] for key in REPORTED if key in teacher}] * (len(rows) - len(own)) + own


def _points(row: Row, teacher: float) -> str:
    if row.val_accuracy is None or row.name == "teacher":
        return "–"
    return f"{100 * (row.val_accuracy - teacher):+.2f}"


def _latency(measured: Mapping[str, Any]) -> str:
    names = ("target", "runtime", "processor")
    known = [str(measured[name]) for name in names if measured.get(name)]
    return ", ".join([*known, *([f"{measured['threads']} thread(s)"] if "threads" in measured else [])])


def _confirmed(search: SearchFolder, confirmation: Mapping[str, Any] | None) -> list[str]:
    if confirmation is None:
        return []
    header = ["network", "model", "parameters", "in the search", "validation", "test", "95 % interval", "n"]
    teacher, networks = confirmation["teacher"], [*confirmation["students"], *confirmation["arms"]]
    first = ["teacher", teacher["model"] or "–", findings.cost("params", teacher), percent(teacher["val_accuracy"])]
    rows = [[*first, "–", percent(teacher["test_accuracy"]), "–", "1"], *map(_confirmed_row, networks)]
    late = []
    if search.best and not any(one["trial"] == search.best.number for one in networks):
        late = [f"Trial {search.best.number}, the best one by now, is not among those that were confirmed."]
    return [
        page.bullets([*confirmation["sentences"], *late]),
        page.table(header, rows, 2),
        page.figure(figures.confirmed_accuracies(confirmation)),
        page.figure(figures.confirmed_gains(confirmation)),
        page.bullets([*confirmation["notes"], confirm_files.opened(confirmation)]),
    ]


def _confirmed_row(one: Mapping[str, Any]) -> list[str]:
    val, test = one["val_accuracy"], one["test_accuracy"]
    interval = "–"
    if test and test["low"] is not None:
        interval = f"{100 * test['low']:.2f} to {100 * test['high']:.2f}"
    before = percent(one["search_val_accuracy"])
    size = findings.cost("params", one)
    return [
        one["name"],
        one["model"],
        size,
        before,
        _spread(val),
        _spread(test),
        interval,
        str(test["n"] if test else 0),
    ]


def _spread(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    return percent(found["mean"]) + ("" if found["std"] is None else f" ± {100 * found['std']:.2f}")


def _knobs(search: SearchFolder, found: Sequence[Knob]) -> list[str]:
    numbers = {number for knob in found for number in knob.values}
    if not numbers:
        return []
    ranked = [knob for knob in found if knob.importance is not None]
    if ranked:
        top = ranked[0]
        model = f"the {MODELLED:,} of them at even distances" if len(numbers) > MODELLED else f"all {len(numbers)}"
        text = (
            f"{top.name} explains most: {top.importance:.0%} of the variance of accuracy between the drawn trials that "
            f"ran to their end, by functional ANOVA over a random forest ({model}), for the {len(ranked)} of "
            f"{len(found)} knobs that all of these trials have. The sampler tried good regions more often and trials "
            "that were stopped early are not in it, so take the order as a hint, not as a cause."
        )
    elif len(numbers) < FEWEST:
        text = (
            f"{len(numbers)} drawn trials ran to their end; below {FEWEST} the importance of a knob would be noise, so "
            "none is given."
        )
    else:
        text = "No knob has an importance: none is common to all trials that ran to their end, or these are all equal."
    drawn = figures.strips(found, search)
    more = f" The first {len(drawn)} of {len(found)} knobs are drawn." if len(drawn) < len(found) else ""
    how = f"Validation accuracy against the value of each knob; the larger dot is the best student.{more}"
    return [page.paragraph(text), page.paragraph(how, "soft"), page.strips(drawn)]


def _trials(search: SearchFolder) -> list[str]:
    shown = [r for r in search.records if r.status not in ("rejected", "duplicate")]
    if not shown:
        return [page.paragraph("No trial has been trained yet.")]
    order = {"complete": 0, "pruned": 1}
    best = search.best
    ranked = sorted(
        shown, key=lambda r: (r != best, order.get(r.status, 2), -(r.val_accuracy or 0.0), r.params or 0, r.number)
    )
    names = [name for name in REPORTED if any(name in r.costs for r in shown)]
    header = ["trial", "status", "epoch", "accuracy", *(HEADINGS[name] for name in names), "seconds", "remark"]
    rows = [
        [findings.label(r), r.status, str(r.epoch), percent(r.val_accuracy)]
        + [findings.cost(name, r.costs) for name in names]
        + [f"{r.seconds:.1f}", findings.remark(r)]
        for r in ranked[:LISTED]
    ]
    first = f"The first {LISTED} of {len(shown):,} trials" if len(shown) > LISTED else f"All {len(shown)} trials"
    note = f"{first}, complete ones first, the best ones at the top; {TABLE_FILE} has all with all their settings."
    return [page.paragraph(note, "soft"), page.table(header, rows, 2, 0 if best else None)]


def _failures(search: SearchFolder) -> list[str]:
    failed, refused = findings.failures(search.records), findings.refusals(search.records)
    parts = []
    if failed:
        rows = [[reason, str(len(numbers)), _named(numbers)] for reason, numbers in failed[:REASONS]]
        parts.append(page.table(["why trials failed", "trials", "remark"], rows))
    if refused:
        rows = [[reason, str(count)] for reason, count in refused[:REASONS]]
        parts.append(page.table(["why draws were refused before training", "draws"], rows))
    left = max(0, len(failed) - REASONS) + max(0, len(refused) - REASONS)
    return [*parts, page.paragraph(f"{left} rarer reasons are left out.", "soft")] if left else parts


def _named(numbers: Sequence[int]) -> str:
    return f"trial {', '.join(map(str, numbers[:NUMBERS]))}{', ...' if len(numbers) > NUMBERS else ''}"


def _configuration(search: SearchFolder) -> list[str]:
    best = search.best
    if best is None or not best.config:
        return []
    how = "A run configuration: saved as best.yaml, `hksd train best.yaml` trains it again (an export has it too)."
    return [page.paragraph(how), page.code(to_yaml(best.config), f"trial {best.number} as YAML")]


def _facts(search: SearchFolder, space: Space | None) -> list[tuple[str, str]]:
    facts, known = search.facts, search.facts.get("provenance") or {}
    items: list[tuple[str, str]] = []
    if teacher := facts.get("teacher"):
        levels = ", ".join(percent(value) for value in teacher.get("attention_accuracy") or [])
        text = f"{teacher['model']}, {percent(teacher['accuracy'])} on validation, {teacher['params']:,} parameters"
        items.append(("teacher", text + (f"; its squeezed vectors: {levels}" if levels else "")))
    if data := facts.get("data"):
        sizes = f"{data['train']:,} training and {data['validation']:,} validation images"
        items.append(("data", f"{data['name']}, {sizes}, fingerprint {data['fingerprint']}"))
    items.append(("space", f"{facts['space']}, in {SPACE_FILE}" if "space" in facts else SPACE_FILE))
    if space:
        chosen = space.search
        items.append(("sampler and scheduler", f"{chosen.sampler} (seed {chosen.seed}), {chosen.scheduler.name}"))
        limits = ", ".join(f"{name} ≤ {bound:g}" for name, bound in chosen.limits.bounds().items())
        items += [("limits", limits)] if limits else []
    if precision := (facts.get("teaching") or {}).get("precision"):
        items.append(("arithmetic", precision))
    if hardware := known.get("hardware"):
        gpus = f", {len(hardware['gpus'])} × {hardware['gpus'][0]}" if hardware.get("gpus") else ", no GPU"
        items.append(("hardware", f"{hardware['processor']}, {hardware['cores']} cores{gpus}, {hardware['system']}"))
    if versions := known.get("versions"):
        items.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    if git := known.get("git"):
        items.append(("git commit", git["commit"] + (" with changes" if git.get("dirty") else "")))
    items += [("MLflow", line) for line in _tracked(search)]
    opened = openings.count(search.folder)
    items.append(("test split", f"opened {opened} times" if opened != 1 else "opened once"))
    return items


def _tracked(search: SearchFolder) -> list[str]:
    """How to see the search in MLflow; the address is without its password."""
    try:
        known = json.loads((search.folder / tracking.RUNS_FILE).read_text())
        return tracking.how_to_look(known["uri"], "mlflow", known.get("experiment"))
    except (OSError, ValueError, KeyError, TypeError):
        return []
