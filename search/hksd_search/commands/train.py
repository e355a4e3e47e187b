"""`hksd train`: one run, without Ray."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hksd.bounds import LAST_SEED
from hksd_search.commands.options import DEFAULT_RUNS, Json, Overrides, Runs, changes, path, whole
from hksd_search.commands.output import Output

if TYPE_CHECKING:
    from hksd.run.outcome import EpochReport, Result

EXAMPLE = "`hksd train best.yaml --set train.epochs=10 --seed 1 --out out/student`"


def train(
    name: Annotated[str, typer.Argument(metavar="CONFIG", help="Run configuration: a name or a path.")],
    overrides: Overrides = None,
    seed: Annotated[
        int | None,
        typer.Option(parser=whole(0, LAST_SEED), metavar="N", help="Seed of initial weights and order of images."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=path, metavar="PATH", help="Folder for checkpoints and weights; continues what is there."),
    ] = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Train one student, without Ray."""
    import torch

    from hksd import data as datasets
    from hksd import fit as training
    from hksd.config.run import load
    from hksd.provenance import provenance
    from hksd.run.objective import verify
    from hksd.teacher import prepare as teachers
    from hksd.teacher.teacher import FAMILIAR
    from hksd_search.backend import gpu
    from hksd_search.console import Display, percent
    from hksd_search.interrupt import InterruptedRun, stoppable
    from hksd_search.session import IMAGES, TEACHERS
    from hksd_search.space import space as spaces

    output = Output(as_json)
    changed = changes(overrides, {"--seed": seed}, section=())
    config = load(spaces.find(name), changed)
    document = spaces.document(name, changed)
    with document.placing():
        data = datasets.load(config.data, runs / IMAGES)
        verify(config, **data.image_shape)  # before the teacher, whose training may take long
        training.look(config, data)
    display = Display(output.console, 1)

    def on_epoch(report: EpochReport) -> None:
        display.line(
            f"epoch {report.epoch}/{report.epochs}: validation {percent(report.val_accuracy)}, "
            f"loss {report.train_loss:.4g} ({', '.join(f'{k} {v:.4g}' for k, v in report.terms.items())}), "
            f"{report.images_per_s:,.0f} images/s"
        )

    def on_stop() -> None:
        display.line("stopping after this step (Ctrl-C again stops now)")

    teacher = None
    try:
        with document.placing(), stoppable(on_stop) as stop:
            if config.terms.teacher_needs:
                how: dict[str, Any] = {"cache_dir": runs / TEACHERS, "on_progress": display.teacher}
                teacher = teachers.prepare(config, data, **how, quiet=True)
                display.line(
                    f"teacher {config.teacher.model if config.teacher else ''}: validation {percent(teacher.accuracy)}"
                    f"{f'; {FAMILIAR}' if teacher.familiar else ''}"
                )
                for remark in teacher.remarks:
                    display.line(f"warning: {remark}")
            result = training.fit(
                config,
                data=data,
                teacher=teacher,
                out_dir=out,
                on_epoch=on_epoch,
                should_stop=stop.asked,
                cache_dir=runs / TEACHERS,
            )
    except torch.OutOfMemoryError as error:
        raise gpu.memory_error(config, packed=False) from error
    finally:
        display.close()
    if result.stopped:
        raise InterruptedRun(
            _how_to_continue(
                result, name, [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])], out, runs
            )
        )
    facts = training.summary(config, data, result)
    facts |= {"provenance": provenance(), "out": str(out) if out else None}

    def show(console: Any) -> None:
        console.print(
            f"validation accuracy {percent(result.val_accuracy)} after {len(result.history)} epochs "
            f"({facts['params']:,} parameters, {facts['mflops']:.2f} MFLOPs; {result.seconds:.1f} s, "
            f"{facts['precision']})",
            highlight=False,
        )
        if out:
            console.print(f"written to {out}", highlight=False)

    output.give(facts, show)


def _how_to_continue(result: Result, name: str, overrides: list[str], out: Path | None, runs: Path) -> str:
    """What to tell the user whose run was stopped."""
    from hksd_search.console import relative

    where = f"stopped after {len(result.history)} epoch(s) and {result.step} step(s)"
    if out is None:
        return f"{where}; nothing was kept (give --out DIR to a run that you may want to continue)"
    words = ["hksd", "train", name, *(word for change in overrides for word in ("--set", change))]
    words += ["--out", relative(out), *([] if runs == Path("runs") else ["--runs", relative(runs)])]
    return f"{where}; everything is saved. Resume with:\n  {shlex.join(words)}"
