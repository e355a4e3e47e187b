"""The sections of a report as markup, each a list of parts; an empty one is left out of the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hksd.deploy.export import Row
from hksd.errors import UserError
from hksd.teacher.teacher import FAMILIAR
from hksd.yaml import to_yaml
from hksd_search.confirm import files as confirm_files
from hksd_search.console import percent
from hksd_search.report import figures, findings, page
from hksd_search.report.knobs import FEWEST, MODELLED, Drawn
from hksd_search.session import SPACE_FILE
from hksd_search.space.settings import REPORTED
from hksd_search.space.space import Space
from hksd_search.study import openings
from hksd_search.study.reading import SearchFolder
from hksd_search.study.records import Record
from hksd_search.tracking import access
from hksd_search.tracking.tracker import RUNS_FILE

TABLE_FILE = "trials.csv"
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


def holds(confirmation: Mapping[str, Any] | None, trial: Record) -> bool:
    """Whether a confirmation trained a trial again."""
    networks = [*confirmation["students"], *confirmation["arms"]] if confirmation else []
    return any(one["trial"] == trial.number for one in networks)


def comparison(search: SearchFolder) -> list[str]:
    """Teacher, best student and arms with their costs."""
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
        return "-"
    return f"{100 * (row.val_accuracy - teacher):+.2f}"


def _latency(measured: Mapping[str, Any]) -> str:
    names = ("target", "runtime", "processor")
    known = [str(measured[name]) for name in names if measured.get(name)]
    return ", ".join([*known, *([f"{measured['threads']} thread(s)"] if "threads" in measured else [])])


def confirmed(search: SearchFolder, confirmation: Mapping[str, Any] | None) -> list[str]:
    """What `hksd confirm` found; nothing where it was not called."""
    if confirmation is None:
        return []
    header = ["network", "model", "parameters", "in the search", "validation", "test", "95 % interval", "n"]
    teacher, networks = confirmation["teacher"], [*confirmation["students"], *confirmation["arms"]]
    first = ["teacher", teacher["model"] or "-", findings.cost("params", teacher), percent(teacher["val_accuracy"])]
    rows = [[*first, "-", percent(teacher["test_accuracy"]), "-", "1"], *map(_confirmed_row, networks)]
    late = []
    if search.best and not holds(confirmation, search.best):
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
    interval = "-"
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
        return "-"
    return percent(found["mean"]) + ("" if found["std"] is None else f" ± {100 * found['std']:.2f}")


def knobs(search: SearchFolder, found: Sequence[Drawn]) -> list[str]:
    """How much each knob explains, in words and as strips."""
    numbers = {number for knob in found for number in knob.values}
    if not numbers:
        return []
    ranked = [knob for knob in found if knob.importance is not None]
    if ranked:
        top = ranked[0]
        some = f"{MODELLED} of the {len(numbers):,}" if len(numbers) > MODELLED else f"the {len(numbers)}"
        text = (
            f"{top.name} explains most: by itself {top.importance:.0%} of the variance of accuracy between {some} "
            "drawn trials that ran to their end (functional ANOVA over a random forest). Only the "
            f"{len(ranked)} of {len(found)} knobs that all of these trials have are compared so. The sampler tries "
            "good regions more often, and trials that were stopped early are left out: take the order as a hint, not "
            "as a cause."
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


def trials(search: SearchFolder) -> list[str]:
    """The table of trials, the best ones at the top."""
    shown = [r for r in search.records if r.status not in ("rejected", "duplicate")]
    if not shown:
        return [page.paragraph("No trial has been trained yet.")]
    order = {"complete": 0, "pruned": 1}
    best = search.best
    ranked = sorted(
        shown, key=lambda r: (r != best, order.get(r.status, 2), -(r.val_accuracy or 0.0), r.params or 0, r.number)
    )
    names = [name for name in REPORTED if any(name in r.costs for r in shown)]
    header = [
        "trial",
        "student",
        "status",
        "epoch",
        "accuracy",
        *(HEADINGS[name] for name in names),
        "seconds",
        "remark",
    ]
    rows = [
        [str(r.number), findings.described(r), r.status, str(r.epoch), percent(r.val_accuracy)]
        + [findings.cost(name, r.costs) for name in names]
        + [f"{r.seconds:.1f}", findings.remark(r)]
        for r in ranked[:LISTED]
    ]
    first = f"The first {LISTED} of {len(shown):,} trials" if len(shown) > LISTED else f"All {len(shown)} trials"
    note = f"{first}, complete ones first, the best ones at the top; {TABLE_FILE} has all with all their settings."
    return [page.paragraph(note, "soft"), page.table(header, rows, 3, 0 if best else None)]


def failures(search: SearchFolder) -> list[str]:
    """Why trials failed and draws were refused."""
    failed, refused = findings.failures(search.records), findings.refusals(search.records)
    parts = []
    if failed:
        rows = [[reason, str(len(numbers)), _named(numbers)] for reason, numbers in failed[:REASONS]]
        parts.append(page.table(["why trials failed", "trials", "which"], rows))
    if refused:
        rows = [[reason, str(count)] for reason, count in refused[:REASONS]]
        parts.append(page.table(["why draws were refused before training", "draws"], rows))
    left = max(0, len(failed) - REASONS) + max(0, len(refused) - REASONS)
    return [*parts, page.paragraph(f"{left} rarer reasons are left out.", "soft")] if left else parts


def _named(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:NUMBERS])) + (", ..." if len(numbers) > NUMBERS else "")


def configuration(search: SearchFolder) -> list[str]:
    """The best student's run configuration as YAML."""
    best = search.best
    if best is None or not best.config:
        return []
    how = "A run configuration: saved as best.yaml, `hksd train best.yaml` trains it again (an export has it too)."
    return [page.paragraph(how), page.code(to_yaml(best.config), f"trial {best.number} as YAML")]


def facts(search: SearchFolder, space: Space | None) -> list[tuple[str, str]]:
    """Where the result comes from: names with their values."""
    facts, known = search.facts, search.facts.get("provenance") or {}
    items: list[tuple[str, str]] = []
    if teacher := facts.get("teacher"):
        levels = ", ".join(percent(value) for value in teacher.get("attention_accuracy") or [])
        text = f"{teacher['model']}, {percent(teacher['accuracy'])} on validation, {teacher['params']:,} parameters"
        text += f"; its squeezed vectors: {levels}" if levels else ""
        items.append(("teacher", text + (f"; {FAMILIAR}" if teacher.get("familiar") else "")))
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
        known = json.loads((search.folder / RUNS_FILE).read_text())
        return access.how_to_look(known["uri"], "mlflow", known.get("experiment"))
    except (OSError, ValueError, KeyError, TypeError):
        return []
