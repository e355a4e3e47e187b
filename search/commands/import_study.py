"""`hksd import-study`: an Optuna study of another program, to start from."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from search.commands.options import DEFAULT_RUNS, Json, Overrides, Runs
from search.output import Output

EXAMPLE = "`hksd import-study sqlite:///old.db quickstart --as old`, then `hksd search quickstart --warm-start old`"


def import_study(
    storage: Annotated[str, typer.Argument(metavar="STORAGE", help="sqlite:///FILE, a database, or a journal file.")],
    space: Annotated[str, typer.Argument(metavar="SPACE", help="Name of a shipped space, or a path.")],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="Name of the search to write.")],
    study: Annotated[str | None, typer.Option(help="Which study, where the storage has several.")] = None,
    overrides: Overrides = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Read the finished trials of an Optuna study, so that a search can start from the best of them."""
    from search import space as spaces
    from search.sampling import import_study as studies

    output = Output(as_json)
    found = studies.import_study(storage, spaces.load(space, overrides or []), runs, name, study)

    def show(out: Console) -> None:
        out.print(f"{found.trials} trials of the study {found.study} with {', '.join(found.used)}", highlight=False)
        if found.unused:
            out.print(f"not in the space, left out: {', '.join(found.unused)}", highlight=False)
        out.print(f"start from the best of them with `hksd search {space} --warm-start {name}`", highlight=False)

    output.give({**found.__dict__, "folder": str(found.folder)}, show)
