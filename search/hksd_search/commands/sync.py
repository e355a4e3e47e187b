"""`hksd sync`: send what could not be sent to MLflow."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hksd.errors import UserError
from hksd_search.commands.options import DEFAULT_RUNS, FAILED, Json, Name, Runs, text
from hksd_search.commands.output import Output

if TYPE_CHECKING:  # imports Optuna
    from hksd_search.study.reading import SearchFolder
    from hksd_search.tracking.address import Address
    from hksd_search.tracking.tracker import Sent

EXAMPLE = "`hksd sync first`"


def sync(
    name: Name,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            parser=text, metavar="URI", help="Another MLflow store: all is written to it, and the search stays with it."
        ),
    ] = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Send the records of a search, and of its confirmation, that did not reach MLflow; again as often as you like."""
    from hksd_search.confirm.files import FOLDER
    from hksd_search.confirm.log import resend
    from hksd_search.session import locked
    from hksd_search.study.reading import open_search
    from hksd_search.tracking import address as addresses

    output = Output(as_json)
    addresses.off_the_command_line(tracking_uri)
    search = open_search(runs, name)
    with locked(search.folder, "at work on this search"):
        store = addresses.choose(search.folder, tracking_uri, move=tracking_uri is not None)
        addresses.must_answer(store)
        sent = send(search, store)
        confirmation = None
        if (folder := search.folder / FOLDER).is_dir() and not sent.problem:
            with locked(folder, "confirming this search"):
                confirmation = resend(search.folder, folder, name, store)
    parts = [sent, *([confirmation] if confirmation else [])]
    count, left = sum(part.sent for part in parts), sum(part.unsent for part in parts)
    problem = next((part.problem for part in parts if part.problem), None)
    line = f"{count} record(s) sent to {store.plain}, {left} left"
    output.give(
        {"name": name, "store": store.plain, "moved_from": store.before, "sent": count, "unsent": left}
        | {"problem": problem},
        lambda out: out.print(f"{line}{f': {problem}' if problem else ''}", highlight=False, markup=False),
    )
    if left or problem:
        raise typer.Exit(FAILED)


def send(search: SearchFolder, store: Address) -> Sent:
    """Send the spool of a search that nobody works at, and see that its runs are in the store, and ended."""
    from hksd_search.space import space as spaces
    from hksd_search.summary import end_run, parent_params
    from hksd_search.tracking.tracker import Tracker

    tracker = Tracker(store.uri, search.folder, search.name, default=store.default)
    try:
        params: dict[str, str] = {}
        with suppress(UserError, KeyError, TypeError):  # what is not known is left out
            params = parent_params(spaces.load(str(search.folder / "space.yaml")), search.facts)
        tracker.know_search(params)
        ended, export = search.facts.get("ended", "interrupted"), search.folder / "export"
        status = "KILLED" if ended == "interrupted" else "FAILED" if search.best is None else "FINISHED"
        end_run(tracker, search, status, export, ended, _texts(search.folder), if_open=True)
    finally:
        sent = tracker.close()
    return sent


def _texts(folder: Path) -> dict[str, Any]:
    found = {}
    for file in ("space.yaml", "report.html"):
        with suppress(OSError, ValueError):
            found[file] = (folder / file).read_text()
    return found
