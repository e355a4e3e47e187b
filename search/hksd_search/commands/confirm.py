"""`hksd confirm`: train the best students again, over new seeds, and measure them on the test split."""

from __future__ import annotations

from typing import Annotated

import typer

from hksd import bounds
from hksd.errors import UserError
from hksd_search.commands.options import DEFAULT_RUNS, Address, Json, Name, Runs, whole
from hksd_search.commands.output import Output

TOP = 3  # students that are confirmed where nothing else is said
EXAMPLE = "`hksd confirm first --top 3 --seeds 5`"


def confirm(
    name: Name,
    top: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, bounds.TRIALS), metavar="N", help="Students to confirm: the best of the search; default 3."
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            parser=whole(1, bounds.GRID_POINTS),
            metavar="N",
            help="Seeds for each student and each arm; one gives no interval.",
        ),
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
    from hksd_search.backend import last_word, reach
    from hksd_search.confirm import confirm as confirmations
    from hksd_search.confirm import files as confirm_files

    output = Output(as_json)
    if top is not None and trials is not None:
        raise UserError("--top takes the best students and --trials names them; give one of them")
    reach.must_answer(address)
    display = console.Display(output.console, 0)
    request = confirmations.Request(name, runs, top or TOP, seeds, _numbers(trials), address)
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
        numbers = tuple(map(whole(0, bounds.TRIALS), text.split(",")))
    except typer.BadParameter as error:
        raise UserError(
            f"--trials {text!r}: expected numbers of trials with commas between, for example 3,7"
        ) from error
    twice = [one for one in numbers if numbers.count(one) > 1]
    if twice:
        raise UserError(f"--trials {text}: trial {twice[0]} stands twice; every student once")
    return numbers
