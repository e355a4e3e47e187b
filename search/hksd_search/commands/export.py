"""`hksd export`: write a student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hksd import bounds
from hksd_search.commands.options import DEFAULT_RUNS, Json, Name, Runs, path, whole
from hksd_search.commands.output import Output

EXAMPLE = "`hksd export first --trial 7 --to out/student`"


def export(
    name: Name,
    trial: Annotated[
        int | None, typer.Option(parser=whole(0, bounds.TRIALS), metavar="N", help="Trial to export; default the best.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(parser=path, metavar="PATH", help="Folder to write to; default runs/NAME/export.")
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write student.onnx too, checked in ONNX Runtime.")] = False,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Write a student as best.yaml, student.safetensors, student.pt2 and card.md; with --onnx, student.onnx too.

    Exits with 1 where a program cannot be made; everything else is written then.
    """
    from hksd.errors import RunError
    from hksd_search import console
    from hksd_search.export import files_in, write_trial
    from hksd_search.study import reading

    output = Output(as_json)
    found = reading.open_search(runs, name)
    chosen = trial if trial is not None else (found.best.number if found.best else None)
    where, made = write_trial(found, trial, to, onnx=onnx)
    if made.missing:
        raise RunError(
            "; ".join(f"{name} cannot be made: {why}" for name, why in made.missing.items())
            + f"; {', '.join(files_in(where))} are in {console.relative(where)}"
        )
    output.give(
        {"name": name, "trial": chosen, "export": str(where)},
        lambda out: out.print(f"trial {chosen} exported to {console.relative(where)}", highlight=False),
    )
