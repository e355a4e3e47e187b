"""`hksd confirm`: train the best students again, over new seeds, and measure them on the test split."""

from __future__ import annotations

from typing import Annotated

import typer

from hksd import bounds
from hksd.errors import UserError
from hksd_search.commands.options import DEFAULT_RUNS, Address, Json, Name, Runs
from hksd_search.commands.output import Output

EXAMPLE = "`hksd confirm first --top 3 --seeds 5`"


def confirm(
    name: Name,
    top: Annotated[
        int, typer.Option(min=1, max=bounds.TRIALS, help="Students to confirm: the best of the search.")
    ] = 3,
    seeds: Annotated[
        int,
        typer.Option(min=1, max=bounds.GRID_POINTS, help="Seeds for each student and each arm; one gives no interval."),
    ] = 5,
    trials: Annotated[
        str | None, typer.Option(metavar="N,N", help="Students to confirm by number, in place of the best.")
    ] = None,
    address: Address = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Train the best students and the arms again over new seeds; then open the test split, once, and compare."""
    from hksd_search import console
    from hksd_search.backend import last_word
    from hksd_search.confirm import confirm as confirmations
    from hksd_search.confirm import files as confirm_files

    output = Output(as_json)
    display = console.Display(output.console, 0)
    request = confirmations.Request(name, runs, top, seeds, _numbers(trials), address)
    try:
        with last_word.spoken_for(request.command, as_json):
            facts = confirmations.confirm(request, display)
    finally:
        display.close()
    folder = console.relative(runs / name / confirm_files.FOLDER)
    output.give(
        facts | {"folder": folder},
        lambda out: out.print(
            f"{confirm_files.text(facts)}\nwritten to {folder} (confirm.md, confirm.json, confirm.csv)",
            highlight=False,
            markup=False,
        ),
    )


def _numbers(text: str | None) -> tuple[int, ...]:
    """Read ``3,7``."""
    if text is None:
        return ()
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = (-1,)
    if min(numbers) < 0:
        raise UserError(f"--trials {text}: expected numbers of trials with commas between, for example 3,7")
    return numbers
