"""The report of a search: one static page to read in five minutes, and a table of all trials.

It is made from what lies in the folder of the search, so it can be made of a search that runs, was killed, or was made
by an older version; what is not known is left out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hksd.config.run import flatten
from hksd.errors import UserError, describe
from hksd_search.confirm import files as confirm_files
from hksd_search.console import Display, relative
from hksd_search.report import figures, findings, page, sections
from hksd_search.report.knobs import knobs
from hksd_search.report.sections import TABLE_FILE
from hksd_search.session import SPACE_FILE, write
from hksd_search.space import space as spaces
from hksd_search.space.space import Space
from hksd_search.study.reading import SearchFolder
from hksd_search.study.records import Record
from hksd_search.tables import as_csv

REPORT_FILE = "report.html"
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


def at_end(search: SearchFolder, display: Display) -> dict[str, str]:
    """Write the report at the end of a search and say where; returns the page by its file name, or nothing.

    The search has its result by then, which no fault of its report may take away.
    """
    try:
        written = write_report(search).page
        display.line(f"report: {relative(written)}")
        return {REPORT_FILE: written.read_text()}
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
    sentences = findings.summary(search, space.search.trials if space else None)
    caveats = findings.caveats(search, search.best is not None and sections.holds(confirmation, search.best))
    parts = [
        page.paragraph(" ".join(sentences), "lead"),
        page.paragraph(" ".join(caveats)) if caveats else "",
        page.section("Comparison", *sections.comparison(search)),
        page.section("Confirmation on the test split", *sections.confirmed(search, confirmation)),
        page.section("Accuracy against size", page.figure(figures.accuracy_against_size(search))),
        page.section("Progress", *map(page.figure, (figures.progress(search), figures.learning_curves(search)))),
        page.section("Which knobs mattered", *sections.knobs(search, found)),
        page.section("Failures and refused draws", *sections.failures(search)),
        page.section("The best student's configuration", *sections.configuration(search)),
        page.section("Facts", page.facts(sections.facts(search, space))),
        page.section("Trials", *sections.trials(search)),
    ]
    versions = (search.facts.get("provenance") or {}).get("versions") or {}
    under = f"Report of a search with hksd {versions['hksd']}" if "hksd" in versions else "Report of a search with hksd"
    return [*sentences, *caveats], page.document(f"Search {search.name}", under, parts)


def table_csv(records: Sequence[Record]) -> str:
    """All trials as CSV, one a line, with their configuration flattened."""
    facts = [{name: value for name, value in record.flat().items() if name != "config"} for record in records]
    configs = [flatten(record.config or {}) for record in records]
    keys = sorted({key for flat in configs for key in flat})
    names = [*dict.fromkeys(name for fact in facts for name in fact), *keys]
    return as_csv(names, ({**fact, **flat} for fact, flat in zip(facts, configs, strict=True)))


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
        if not isinstance(found, dict):
            raise TypeError(f"not an object but {describe(found)}")
        sections.confirmed(search, found)  # reads whatever is read of it
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{file}: damaged: {what}; `hksd confirm {search.name}` writes it again") from error
    return found
