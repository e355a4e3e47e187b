"""`hksd teacher`: make the teacher, and what it knows of the images."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hksd import bounds
from hksd_search.commands.options import DEFAULT_RUNS, Json, Overrides, Runs, changes, whole
from hksd_search.commands.output import Output

EXAMPLE = "`hksd teacher quickstart`"


def teacher(
    name: Annotated[str, typer.Argument(metavar="CONFIG", help="Run configuration or space: a name or a path.")],
    overrides: Overrides = None,
    views: Annotated[
        int | None,
        typer.Option(
            parser=whole(0, bounds.EPOCHS),
            metavar="N",
            help="Views of the images to build now; default all, 0 for none.",
        ),
    ] = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Train or load the teacher; report accuracy, parameters, FLOPs; build what it knows of the images."""
    from hksd import data as datasets
    from hksd import models
    from hksd.config.run import load
    from hksd.errors import UserError
    from hksd.models.size import size_of
    from hksd.teacher import prepare as teachers
    from hksd.teacher.teacher import FAMILIAR
    from hksd_search.console import Display, percent
    from hksd_search.session import IMAGES, TEACHERS
    from hksd_search.space import space as spaces
    from hksd_search.teaching import Teaching

    output, changed = Output(as_json), changes(overrides)
    path = spaces.find(name)
    document = spaces.document(name, changed)
    space = spaces.load(name, changed) if "search" in document.tree else None
    config = space.middle({}) if space else load(path, changed)
    if config.teacher is None:
        raise UserError(f"{path}: this run has no teacher section")
    with document.placing():
        data = datasets.load(config.data, runs / IMAGES)
        for student in spaces.own_students(space, config):  # their faults come before the teacher's long training
            models.sketch(student.spec(), **data.image_shape)
    display = Display(output.console, 0)
    try:
        with document.placing():
            how: dict[str, Any] = {"cache_dir": runs / TEACHERS, "on_progress": display.teacher}
            made = teachers.prepare(config, data, **how, refuse=False, quiet=True)
            teaching = Teaching(config, data, made, runs / TEACHERS) if config.terms.teacher_needs else None
            for remark in made.remarks:  # also with --json, on stderr
                display.line(f"warning: {remark}")
            if teaching is not None:
                display.line(str(teaching))
                built = teaching.build(display, views)
    finally:
        display.close()
    size = size_of(config.teacher.spec(), **data.image_shape)
    facts = {
        "model": config.teacher.model,
        "val_accuracy": made.accuracy,
        "attention_accuracy": made.attention_accuracy,
        "params": size.params,
        "mflops": size.mflops,
        "key": made.key,
        "cached": made.cached,
        "familiar": made.familiar,
        "remarks": made.remarks,
        "folder": str(runs / TEACHERS / made.key),
        **(teaching.facts() | {"built": built} if teaching else {}),
    }

    def show(console: Any) -> None:
        console.print(
            f"{config.teacher.model if config.teacher else ''}: validation {percent(made.accuracy)}, "
            f"{size.params:,} parameters, {size.mflops:.2f} MFLOPs (2 x MACs)"
            f"{', from the cache' if made.cached else ''}{f'; {FAMILIAR}' if made.familiar else ''}",
            highlight=False,
        )
        for level, accuracy in enumerate(made.attention_accuracy, 1):
            console.print(f"squeezed vectors of level {level}: {percent(accuracy)} with a linear head", highlight=False)
        console.print(f"kept in {facts['folder']}", highlight=False)

    output.give(facts, show)
