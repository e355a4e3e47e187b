"""`hksd status`: how a search stands."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console

from hksd import bounds
from hksd_search.commands.options import DEFAULT_RUNS, Json, Name, Runs, whole
from hksd_search.commands.output import Output

EXTRA = ("running", "interrupted", "waiting", "imported")  # statuses that a search that has ended may not have
ENDED_EARLY = {  # what `search.json` says of a search that may go on
    "killed": "its last one did not come to an end of its own",
    "interrupted": "it was stopped",
    "max_device_hours": "it had reached search.max_device_hours",
    "max_cost": "it had reached search.max_cost",
}
EXAMPLE = "`hksd status first`"


def status(
    name: Name,
    last: Annotated[
        int, typer.Option(parser=whole(0, bounds.TRIALS), metavar="N", help="Newest trials to list; 0 for all.")
    ] = 50,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Show how a search stands, also while it runs."""
    from hksd_search import console, session
    from hksd_search.study import reading
    from hksd_search.study.records import STUDY_FILE
    from hksd_search.tracking.tracker import waiting

    process = session.holder(runs / name)  # before the books are read: a search that ends now has then ended
    folder = runs / name
    if (folder / session.SPACE_FILE).exists() and not (folder / STUDY_FILE).exists():  # not beyond its teacher yet
        found = reading.SearchFolder(name, folder, [], {})
    else:
        found = reading.open_search(runs, name)
    output, ended = Output(as_json), found.facts.get("ended", "killed")
    state = "running" if process else "stopped" if ended in ENDED_EARLY else "ended"
    if not process:  # nothing runs where no process does, whatever one that was killed has left in the study
        cut = [replace(r, status="interrupted") if r.status == "running" else r for r in found.records]
        found = replace(found, records=cut)
    kept = 0 if process else waiting(folder)  # a search that runs sends them
    resume = session.how_to_resume(name, runs, found.facts.get("address")) if state == "stopped" else None
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
        if process:
            halted = "; it is halted (SIGSTOP or Ctrl-Z) and goes on with SIGCONT" if session.is_halted(process) else ""
            out.print(f"running: {process}{halted}", highlight=False)
        elif resume:
            out.print(f"no process runs this search ({ENDED_EARLY[ended]}). Resume with:\n  {resume}", highlight=False)
        if kept:
            out.print(
                f"MLflow may lack {kept} record(s) of it; `{console.how_to_send(folder)}` sends them", highlight=False
            )

    output.give(
        {
            "name": name,
            "state": state,
            "process": process,
            "resume": resume,
            "unsent": kept,
            "resend": console.how_to_send(folder) if kept else None,
            "trials": tally,
            "best": best.number if best else None,
            "records": [record.flat() for record in found.records],
        },
        show,
    )
