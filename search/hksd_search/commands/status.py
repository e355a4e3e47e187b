"""`hksd status`: how a search stands."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from hksd_search.commands.options import DEFAULT_RUNS, Json, Name, Runs
from hksd_search.commands.output import Output

EXTRA = ("running", "interrupted", "waiting", "imported")  # statuses that a search that has ended may not have
EXAMPLE = "`hksd status first`"


def status(
    name: Name,
    last: Annotated[int, typer.Option(min=0, help="Newest trials to list; 0 for all.")] = 50,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Show how a search stands, also while it runs."""
    from hksd_search import console
    from hksd_search.study import reading

    found = reading.open_search(runs, name)
    output = Output(as_json)
    tally = {
        **reading.counts(found.records),
        **{key: sum(r.status == key for r in found.records) for key in EXTRA},
    }
    best = found.best

    def show(out: Console) -> None:
        trained = [r for r in found.records if r.status not in ("rejected", "duplicate", "imported")]
        out.print(console.trials(trained[-last:]))  # -0: all
        if 0 < last < len(trained):
            out.print(f"{len(trained) - last} earlier trials are left out (--last 0 lists all)")
        out.print(console.comparison(found.rows()))
        out.print(
            ", ".join(f"{count} {key}" for key, count in tally.items() if count) or "no trial yet", highlight=False
        )

    output.give(
        {
            "name": name,
            "trials": tally,
            "best": best.number if best else None,
            "records": [record.flat() for record in found.records],
        },
        show,
    )
