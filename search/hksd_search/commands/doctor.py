"""`hksd doctor`: check that this machine, or every node of a cluster, can run searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from hksd.errors import UserError
from hksd_search.commands.options import DEFAULT_RUNS, FAILED, Json, Runs, text
from hksd_search.commands.output import Output

if TYPE_CHECKING:
    from hksd_search.health.finding import Finding

EXAMPLE = "`hksd doctor`"


def doctor(
    runs: Runs = DEFAULT_RUNS,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            parser=text,
            metavar="URI",
            help="MLflow store to check; default $MLFLOW_TRACKING_URI, else SQLite in --runs.",
        ),
    ] = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="Also check every node of a Ray cluster.")] = False,
    address: Annotated[
        str | None, typer.Option(parser=text, metavar="TEXT", help="Ray cluster for --cluster; default auto.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that this machine (or every node of a cluster) can run searches."""
    from hksd_search.health.cluster import Examined, check_cluster
    from hksd_search.health.machine import check_machine

    output = Output(as_json)
    if address is not None and not cluster:
        raise UserError("--address is for the check of a cluster; add --cluster, or leave it out")
    findings = check_machine(runs, tracking_uri, cluster)
    examined = check_cluster(address, runs) if cluster else Examined([])
    findings += examined.findings
    good = all(finding.ok for finding in findings)

    def show(console: Console) -> None:
        for line in lines(findings):
            console.print(line, highlight=False, markup=False)

    told = {"ok": good, "checks": [asdict(finding) for finding in findings]}
    output.give(told | ({"nodes": examined.nodes} if cluster else {}), show)
    if not good:
        raise typer.Exit(FAILED)


def lines(findings: Sequence[Finding]) -> list[str]:
    """Findings for people, one a line; what is well at one node stands in one line."""
    found: list[str] = []
    for node, group in groupby(findings, key=lambda finding: finding.node):
        members = list(group)
        if node is None:
            found += [f"{'ok  ' if one.ok else 'FAIL'} {one.name}: {one.detail}" for one in members]
            continue
        if well := "; ".join(one.detail for one in members if one.ok):
            found.append(f"ok   node {node}: {well}")
        found += [f"FAIL node {node}, {one.name}: {one.detail}" for one in members if not one.ok]
    return found
