"""`hksd evaluate`: measure a student."""

from __future__ import annotations

from typing import Annotated

import typer

from search.commands.options import DEFAULT_RUNS, Json, Overrides, Runs
from search.output import Output

EXAMPLE = "`hksd evaluate runs/first/export --split test`"


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
