"""`hksd teacher`: make the teacher."""

from __future__ import annotations

from typing import Annotated

import typer

from search.commands.options import DEFAULT_RUNS, Json, Overrides, Runs
from search.output import Output

EXAMPLE = "`hksd teacher quickstart`"


def teacher(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Run configuration or space: a name or a path.")],
    overrides: Overrides = None,
    views: Annotated[
        int | None, typer.Option(min=0, help="Views of the images to build now; default all, 0 for none.")
    ] = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Train or load the teacher; report accuracy, parameters, FLOPs; build what it knows of the images."""
    from search import single

    single.make_teacher(Output(as_json), config, overrides or [], runs, views)
