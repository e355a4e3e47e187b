"""`hksd search`: the search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hksd import bounds
from hksd.errors import UserError
from hksd_search.commands.options import (
    DEFAULT_RUNS,
    Address,
    Json,
    Overrides,
    Runs,
    TrackingUri,
    changes,
    number,
    search_name,
    stored_name,
    whole,
)
from hksd_search.commands.output import Output

EXAMPLE = "`hksd search quickstart --trials 12 --name first`"


def search(
    given: Annotated[
        str,
        typer.Argument(
            metavar="SPACE", help="Name of a shipped space, or a path; with --resume or --extend the name of a search."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(parser=search_name, metavar="NAME", help="Name of the search; default the space and the time."),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, bounds.TRIALS), metavar="N", help="Trials to train, in place of the space's number."
        ),
    ] = None,
    max_device_hours: Annotated[
        float | None,
        typer.Option(
            parser=number("hours"),
            metavar="HOURS",
            help="Hours of training, over all devices, after which the search ends.",
        ),
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(parser=number(), metavar="MONEY", help="Money after which the search ends; needs --price."),
    ] = None,
    price: Annotated[
        float | None, typer.Option(parser=number(), metavar="MONEY", help="Money that a device costs in an hour.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the search of that name.")] = False,
    extend: Annotated[
        int | None,
        typer.Option(parser=whole(1, bounds.TRIALS), metavar="TRIALS", help="Continue it with that many trials more."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            parser=number("points"),
            metavar="POINTS",
            help="Find the smallest student that loses at most that many points.",
        ),
    ] = None,
    arms: Annotated[
        str | None, typer.Option(metavar="fixed|tuned|none", help="What to measure against; see docs/arms.md.")
    ] = None,
    warm_start: Annotated[
        list[str] | None,
        typer.Option(
            parser=stored_name,
            metavar="NAME",
            help="Start from an earlier search below --runs; may be given many times.",
        ),
    ] = None,
    address: Address = None,
    tracking_uri: TrackingUri = None,
    move_tracking: Annotated[
        bool, typer.Option("--move-tracking", help="The search goes on in another MLflow store; all is written to it.")
    ] = False,
    tracking_later: Annotated[
        bool, typer.Option("--tracking-later", help="The MLflow store cannot be used now; keep records for hksd sync.")
    ] = False,
    overrides: Overrides = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Search, log every trial in MLflow, export the best student."""
    from hksd_search import console, run, session
    from hksd_search.backend import reach
    from hksd_search.export import files_in
    from hksd_search.space import space as spaces
    from hksd_search.tracking import access
    from hksd_search.tracking import address as addresses

    output = Output(as_json)
    addresses.off_the_command_line(tracking_uri)
    options = {
        "--max-drop": max_drop,
        "--arms": arms,
        "--max-device-hours": max_device_hours,
        "--max-cost": max_cost,
        "--price": price,
    }
    changed = changes(overrides, options)
    if extend and trials:
        raise UserError("--extend adds trials and --trials sets their number; give one of them")
    going_on = resume or extend is not None
    if going_on and warm_start:
        raise UserError("--warm-start is for the start of a search; one that goes on keeps what it took over then")
    if move_tracking and not going_on:
        raise UserError("--move-tracking is for a search that goes on (--resume, --extend); a new one has no store yet")
    parsed, name = session.space_and_name(given, name, runs, changed, going_on, extend or 0)
    parsed = parsed.with_trials(trials)
    reach.must_answer(address)
    display = console.Display(output.console, parsed.search.trials)
    try:
        with spaces.document(parsed.source, changed).placing():
            outcome = run.search(
                parsed,
                name=name,
                runs=runs,
                display=display,
                resume=going_on,
                address=address,
                tracking_uri=tracking_uri,
                move_tracking=move_tracking,
                tracking_later=tracking_later,
                warm=list(dict.fromkeys(warm_start or [])),
                restart=["--json"] if as_json else [],
            )
    finally:
        display.close()

    def show(out: Console) -> None:
        out.print(console.comparison(outcome.rows))
        tally = ", ".join(f"{count} {status}" for status, count in outcome.trials.items() if count)
        out.print(f"trials: {tally}; {outcome.wall_s:.0f} s, {outcome.device_s:.0f} s of training", highlight=False)
        out.print(f"exported to {console.relative(outcome.export)} ({', '.join(files_in(Path(outcome.export)))})")
        if outcome.verdict:
            out.print(outcome.verdict, highlight=False)
        if outcome.front:
            out.print(
                f"front of {len(outcome.front)}: trials {', '.join(str(r['trial']) for r in outcome.front)}; "
                f"export another with `hksd export {outcome.name} --trial N`"
            )
        seen = outcome.tracking
        for line in access.how_to_look(seen["uri"], console.program("mlflow"), seen["experiment"]):
            out.print(line, highlight=False)

    keys = ("name", "trials", "best", "arms", "verdict", "front", "wall_s", "device_s", "export", "ended", "tracking")
    output.give({key: getattr(outcome, key) for key in keys}, show)
