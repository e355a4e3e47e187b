"""`hksd logs`: all that is known of one trial."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from hksd import bounds
from hksd_search.commands.options import DEFAULT_RUNS, Json, Name, Runs, whole
from hksd_search.commands.output import Output

if TYPE_CHECKING:  # imports Optuna
    from pathlib import Path

    from hksd_search.study.trial_log import TrialLog

EXAMPLE = "`hksd logs first 7`"
MEGABYTE = 1e6
OPEN = ("running", "interrupted", "waiting")  # statuses of a trial that may go on


@dataclass(frozen=True)
class Place:
    """Where the run of a trial is in MLflow.

    Attributes:
        store: its address.
        experiment: id of the experiment.
        run: id of the run.
        page: its address in a browser, without a server before it where the store is none.
    """

    store: str
    experiment: str
    run: str
    page: str


def logs(
    name: Name,
    trial: Annotated[
        int, typer.Argument(parser=whole(0, bounds.TRIALS), metavar="TRIAL", help="Number of a trial of it.")
    ],
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Show all that is known of one trial: how it stands, its machines, what went wrong, its stack trace, its run.

    Works while it runs too, and where only the study of the search is there.
    """
    from hksd_search import session
    from hksd_search.study import reading, trial_log

    process = session.holder(runs / name)
    if not (runs / name / session.SPACE_FILE).exists():
        reading.open_search(runs, name)  # says which searches there are
    found = trial_log.read(runs / name, trial)
    if not process and found.record.status == "running":  # whatever a process that was killed has left in the study
        found = replace(found, record=replace(found.record, status="interrupted"))
    place = place_of(runs / name, trial)
    said = lines(found, place, name)

    def show(console: Console) -> None:
        for line in said:
            console.print(line, highlight=False, markup=False)

    record = found.record
    facts = {**record.flat(), "trial": record.number, "nodes": list(record.nodes), "epochs": _epochs(found)}
    told = {key: value for key, value in asdict(found).items() if key != "record"}
    mlflow = None if place is None else asdict(place)
    Output(as_json).give({"name": name, **facts, **told, "mlflow": mlflow}, show)


def place_of(folder: Path, trial: int) -> Place | None:
    """Where MLflow has the run of a trial of the search in `folder`; None where it has none."""
    from hksd_search.tracking import access, known

    tracked = known.read(folder)
    if tracked is None or str(trial) not in tracked.runs:
        return None
    store = access.store_uri(None, folder.parent) if tracked.default else tracked.uri
    page = f"/#/experiments/{tracked.experiment}/runs/{tracked.runs[str(trial)]}"
    web = store.rstrip("/") if access.scheme_of(store) in access.WEB else ""
    return Place(store, str(tracked.experiment), tracked.runs[str(trial)], f"{web}{page}")


def lines(found: TrialLog, place: Place | None, name: str) -> list[str]:
    """A trial for people: a line for each fact, then what its workers and its last fault left to read."""
    record, epochs = found.record, _epochs(found)
    reached = f" at epoch {record.epoch}{f' of {epochs}' if epochs else ''}" if record.epoch else ""
    accuracy = "" if record.val_accuracy is None else f", validation {record.val_accuracy:.2%}"
    said = [f"trial {record.label}: {record.status}{reached}{accuracy}, {record.seconds:.1f} s of training"]
    if record.reason:
        said.append(f"reason: {record.reason}")
    if record.arm or record.fork:
        said.append("; ".join(filter(None, (record.arm and f"arm: {record.arm}", str(record.fork or "")))))
    if found.started:
        until = f", ended {found.ended:%Y-%m-%d %H:%M:%S}" if found.ended else ""
        said.append(f"begun {found.started:%Y-%m-%d %H:%M:%S}{until}")
    if record.nodes:
        said.append(f"trained on: {', '.join(record.nodes)}")
    for number, strike in enumerate(found.strikes, 1):
        said.append(f"strike {number}: {strike}")
    said += _where(found, place, name)
    if found.log:
        said += ["", "log of its workers:", *(f"  {line}" for line in found.log)]
    if found.last_words:
        said += ["", "last words of its process:", *_indented(found.last_words)]
    if found.fault:
        earlier = "" if record.status == "failed" else " (of an earlier try)"
        said += ["", f"stack trace of its last fault{earlier}:", *_indented(found.fault)]
    return said


def _where(found: TrialLog, place: Place | None, name: str) -> list[str]:
    """Where its files and its run are."""
    from hksd_search.console import program, relative

    status, folder = found.record.status, relative(found.folder)
    if status in ("rejected", "duplicate", "imported"):
        return ["it was never trained, so it has no files and no run"]
    files = ", ".join(f"{file} {size / MEGABYTE:.2f} MB" for file, size in found.files.items())
    told = [f"files in {folder}: {files}" if files else f"no files: {folder} is not here, or empty"]
    if place is None:
        return [*told, f"no run in MLflow yet; `hksd sync {name}` sends what waits"]
    if place.page.startswith("/"):
        serve = f"{program('mlflow')} ui --backend-store-uri {place.store}"
        return [*told, f"run in MLflow: {serve}", f"               then open http://127.0.0.1:5000{place.page}"]
    return [*told, f"run in MLflow: {place.page}"]


def _epochs(found: TrialLog) -> int | None:
    """How many epochs it is to train."""
    config: dict[str, Any] = found.record.config or {}
    epochs = config.get("train", {}).get("epochs")
    return epochs if isinstance(epochs, int) else None


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]
