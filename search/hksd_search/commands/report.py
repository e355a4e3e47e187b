"""`hksd report`: the page that says what a search found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hksd_search.commands.options import DEFAULT_RUNS, Json, Name, Runs, path
from hksd_search.commands.output import Output

EXAMPLE = "`hksd report first`"


def report(
    name: Name,
    to: Annotated[
        Path | None, typer.Option(parser=path, metavar="PATH", help="Folder to write to; default runs/NAME.")
    ] = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Write report.html (one page, opens anywhere) and trials.csv (all trials), also while the search runs."""
    from hksd_search import console
    from hksd_search.report import report as reports
    from hksd_search.study import reading

    output = Output(as_json)
    written = reports.write_report(reading.open_search(runs, name), to)
    output.give(
        {"name": name, "report": str(written.page), "table": str(written.table), "summary": written.summary},
        lambda out: out.print(
            f"{' '.join(written.summary)}\nwritten to {console.relative(written.page)} and "
            f"{console.relative(written.table)}",
            highlight=False,
            markup=False,
        ),
    )
