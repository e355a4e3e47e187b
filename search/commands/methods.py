"""`hksd methods`: list what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from search.commands.options import Json
from search.output import Output

EXAMPLE = "`hksd methods` or `hksd methods squeeze crd`"


def methods(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Terms or modes to show with their knobs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List loss terms, modes, networks and data sets with their sources; with names, the knobs of these."""
    from search import catalogue

    catalogue.show_methods(Output(as_json), names or [])
