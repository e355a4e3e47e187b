"""`hksd doctor`: check that searches can run."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from search.commands.options import DEFAULT_RUNS, FAILED, Json, Runs
from search.output import Output

EXAMPLE = "`hksd doctor`"


def doctor(
    runs: Runs = DEFAULT_RUNS,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow store to check; default the one below --runs.")
    ] = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="Also check every node of a Ray cluster.")] = False,
    address: Annotated[str, typer.Option(help="Ray cluster for --cluster.")] = "auto",
    as_json: Json = False,
) -> None:
    """Check that this machine (or every node of a cluster) can run searches."""
    from search import doctor as checks

    output = Output(as_json)
    findings = checks.check_machine(runs, tracking_uri)
    if cluster:
        findings += checks.check_cluster(address)
    good = all(finding.ok for finding in findings)

    def show(console: Console) -> None:
        for finding in findings:
            console.print(
                f"{'ok  ' if finding.ok else 'FAIL'} {finding.name}: {finding.detail}", highlight=False, markup=False
            )

    output.give({"ok": good, "checks": [finding.__dict__ for finding in findings]}, show)
    if not good:
        raise typer.Exit(FAILED)
