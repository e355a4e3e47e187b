"""The `hksd` command. Heavy imports are inside the commands, so that `hksd --help` answers at once.

Exit codes: 0 ok, 1 the run failed, 2 the user can mend it, 130 interrupted. With --json, standard output carries one
JSON object and nothing else; everything for people goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from typer.core import TyperGroup

from hksd.errors import RunError, UserError

OK, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
PIPED_WIDTH = 120  # columns of tables where there is no terminal to ask


@contextlib.contextmanager
def _exit_codes(as_json: bool) -> Iterator[None]:
    """Turn errors into messages and exit codes; an error of ours keeps its stack trace."""

    def stop(message: str, code: int) -> None:
        typer.echo(message, err=True)
        if as_json:
            typer.echo(json.dumps({"error": message, "exit_code": code}))
        sys.stdout.flush()
        sys.exit(code)

    try:
        yield
    except UserError as error:
        stop(f"error: {error}" if "\n" not in str(error) else f"error:\n{error}", USER_ERROR)
    except RunError as error:
        stop(f"failed: {error}", FAILED)
    except KeyboardInterrupt as error:
        stop(str(error) or "interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except Exception as error:
        # Imported here, since it would make every start slow.
        session = sys.modules.get("search.session")
        if session is not None and isinstance(error, session.InterruptedSearch):
            stop(f"stopped; everything is saved. Resume with:\n  {error}", INTERRUPTED)
        raise


class Commands(TyperGroup):
    """The group of commands; sees errors and Ctrl-C before typer does."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _exit_codes("--json" in sys.argv[1:]):
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    name="hksd",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Search for the best small student of a teacher network.\n\nStart with `hksd search quickstart`.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; logs go to standard error.")]
Runs = Annotated[
    Path, typer.Option("--runs", envvar="HKSD_RUNS", help="Folder of all searches, cached teachers and images.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change a value; may be given many times."),
]
DEFAULT_RUNS = Path("runs")


class Output:
    """Where a command speaks: tables for people, or one JSON object."""

    def __init__(self, as_json: bool):
        self.as_json = as_json
        piped = not (sys.stderr if as_json else sys.stdout).isatty()
        self.console = Console(stderr=as_json, soft_wrap=True, width=PIPED_WIDTH if piped else None)
        handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
        logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s", force=True)

    def give(self, data: dict[str, Any], show: Callable[[Console], None]) -> None:
        """Print `data` as JSON, or let `show` print it for people."""
        if self.as_json:
            typer.echo(json.dumps(data, default=str))
        else:
            show(self.console)


@app.command(epilog="Example: `hksd doctor`")
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


@app.command(epilog="Example: `hksd methods` or `hksd methods squeeze crd`")
def methods(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Terms or modes to show with their knobs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List loss terms, modes, networks and data sets with their sources; with names, the knobs of these."""
    from search import catalogue

    catalogue.show_methods(Output(as_json), names or [])


@app.command(epilog="Example: `hksd space cifar10 --set data.root=data/cifar10`")
def space(
    name: Annotated[str, typer.Argument(metavar="SPACE", help="Name of a shipped space, or a path.")],
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(min=0, help="Sampled configurations to show.")] = 3,
    as_json: Json = False,
) -> None:
    """Show a search space: its ranges, sampled configurations, the share within its limits."""
    from search import catalogue

    catalogue.show_space(Output(as_json), name, overrides or [], samples)


@app.command(epilog="Example: `hksd teacher quickstart`")
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


@app.command(epilog="Example: `hksd train best.yaml --set train.epochs=10 --seed 1 --out out/student`")
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Run configuration: a name or a path.")],
    overrides: Overrides = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of initial weights and order of images.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and weights; continues what is there.")
    ] = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Train one student, without Ray."""
    from search import single

    single.train_one(
        Output(as_json), config, [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])], out, runs
    )


@app.command(epilog="Example: `hksd search quickstart --trials 12 --name first`")
def search(
    name_of_space: Annotated[str, typer.Argument(metavar="SPACE", help="Name of a shipped space, or a path.")],
    name: Annotated[str | None, typer.Option(help="Name of the search; default the space and the time.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials to train, in place of the space's number.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the search of that name.")] = False,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster (auto, or host:port); default a private Ray.")
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow store; default SQLite below --runs.")
    ] = None,
    overrides: Overrides = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Search, log every trial in MLflow, export the best student."""
    from search import console, run, session, tracking
    from search import space as spaces

    output = Output(as_json)
    parsed = spaces.load(name_of_space, overrides or []).with_trials(trials)
    if resume and name is None:
        raise UserError("--resume needs --name: which search?")
    display = console.Display(output.console, parsed.search.trials)
    try:
        outcome = run.search(
            parsed,
            name=name or session.new_name(parsed),
            runs=runs,
            display=display,
            resume=resume,
            address=address,
            tracking_uri=tracking_uri,
        )
    finally:
        display.close()

    def show(out: Console) -> None:
        out.print(console.comparison(outcome.rows))
        tally = ", ".join(f"{count} {status}" for status, count in outcome.trials.items() if count)
        out.print(f"trials: {tally}; {outcome.wall_s:.0f} s, {outcome.device_s:.0f} s of training", highlight=False)
        out.print(
            f"exported to {console.relative(outcome.export)} (best.yaml, student.safetensors, student.pt2, card.md)"
        )
        if outcome.front:
            out.print(
                f"front of {len(outcome.front)}: trials {', '.join(str(r['trial']) for r in outcome.front)}; "
                f"export another with `hksd export {outcome.name} --trial N`"
            )
        seen = outcome.tracking
        for line in tracking.how_to_look(seen["uri"], console.program("mlflow"), seen["experiment"]):
            out.print(line, highlight=False)

    keys = ("name", "trials", "best", "arms", "front", "wall_s", "device_s", "export", "tracking")
    output.give({key: getattr(outcome, key) for key in keys}, show)


@app.command(epilog="Example: `hksd status first`")
def status(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a search.")],
    last: Annotated[int, typer.Option(min=0, help="Newest trials to list; 0 for all.")] = 50,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Show how a search stands, also while it runs."""
    from search import console, results

    found = results.open_search(runs, name)
    output = Output(as_json)
    tally = {
        **results.counts(found.records),
        **{key: sum(r.status == key for r in found.records) for key in ("running", "interrupted")},
    }
    best = found.best

    def show(out: Console) -> None:
        trained = [r for r in found.records if r.status not in ("rejected", "duplicate")]
        out.print(console.trials(trained[-last:]))  # -0: all
        if 0 < last < len(trained):
            out.print(f"{len(trained) - last} earlier trials are left out (--last 0 lists all)")
        out.print(console.comparison(found.rows()))
        out.print(
            ", ".join(f"{count} {key}" for key, count in tally.items() if count) or "no trial yet", highlight=False
        )

    output.give(
        {
            "name": name,
            "trials": tally,
            "best": best.number if best else None,
            "records": [{**record.__dict__} for record in found.records],
        },
        show,
    )


@app.command(epilog="Example: `hksd export first --trial 7 --to out/student`")
def export(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a search.")],
    trial: Annotated[int | None, typer.Option(min=0, help="Trial to export; default the best.")] = None,
    to: Annotated[Path | None, typer.Option(help="Folder to write to; default runs/NAME/export.")] = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Write a student as best.yaml, student.safetensors, student.pt2 and card.md."""
    from search import console, results

    output = Output(as_json)
    found = results.open_search(runs, name)
    chosen = trial if trial is not None else (found.best.number if found.best else None)
    where = results.export_trial(found, trial, to)
    output.give(
        {"name": name, "trial": chosen, "export": str(where)},
        lambda out: out.print(f"trial {chosen} exported to {console.relative(where)}", highlight=False),
    )


@app.command(epilog="Example: `hksd evaluate runs/first/export --split test`")
def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG_OR_DIR", help="Exported student, folder of `hksd train --out`, or the configuration in one."
        ),
    ],
    split: Annotated[str, typer.Option(help="val, or test (its opening is recorded in the folder).")] = "val",
    overrides: Overrides = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Measure a trained student: accuracy, likelihood, calibration, each class."""
    from search import single

    single.evaluate_one(Output(as_json), target, split, overrides or [], runs)


def main() -> None:
    """Entry point of the `hksd` command."""
    app()


if __name__ == "__main__":
    main()
