"""`hksd train`: one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.commands.options import DEFAULT_RUNS, Json, Overrides, Runs
from search.output import Output

EXAMPLE = "`hksd train best.yaml --set train.epochs=10 --seed 1 --out out/student`"


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
