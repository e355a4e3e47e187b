"""Commands on one run, without Ray: teacher, train, evaluate."""

from __future__ import annotations

import dataclasses
import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hksd import budget, loop
from hksd import data as datasets
from hksd import evaluate as scoring
from hksd import teacher as teachers
from hksd import train as training
from hksd.config import RunConfig, load
from hksd.data.augment import batches_of
from hksd.errors import UserError
from hksd.export import CONFIG_FILE as EXPORTED_CONFIG
from hksd.objective import verify
from hksd.outcome import EpochReport, Result
from hksd.provenance import provenance
from hksd.schema import read_yaml
from search import gpu, openings
from search import space as spaces
from search.console import Display, percent, relative
from search.results import load_student
from search.session import IMAGES, TEACHERS
from search.signals import InterruptedRun, stoppable
from search.teaching import Teaching

if TYPE_CHECKING:
    from search.output import Output


def load_run(name: str, overrides: list[str]) -> RunConfig:
    """Load a run configuration by path, or by name among those that come with hksd."""
    return load(spaces.find(name), overrides)


def make_teacher(output: Output, name: str, overrides: list[str], runs: Path, views: int | None) -> None:
    """See `hksd teacher`."""
    path = spaces.find(name)
    is_space = "search" in read_yaml(path).tree
    config = spaces.load(name, overrides).middle({}) if is_space else load(path, overrides)
    if config.teacher is None:
        raise UserError(f"{path}: this run has no teacher section")
    data = datasets.load(config.data, runs / IMAGES)
    display = Display(output.console, 0)
    try:
        made = teachers.prepare(config, data, cache_dir=runs / TEACHERS, on_progress=display.teacher)
        teaching = Teaching(config, data, made, runs / TEACHERS) if config.terms.teacher_needs else None
        if teaching is not None:
            display.line(str(teaching))
            built = teaching.build(display, views)
    finally:
        display.close()
    size = budget.size(config.teacher, **loop.image_shape(data))
    facts = {
        "model": config.teacher.model,
        "val_accuracy": made.accuracy,
        "attention_accuracy": made.attention_accuracy,
        "params": size.params,
        "mflops": size.mflops,
        "key": made.key,
        "cached": made.cached,
        "folder": str(runs / TEACHERS / made.key),
        **(teaching.facts() | {"built": built} if teaching else {}),
    }

    def show(console: Any) -> None:
        console.print(
            f"{config.teacher.model if config.teacher else ''}: validation {percent(made.accuracy)}, "
            f"{size.params:,} parameters, {size.mflops:.2f} MFLOPs (2 x MACs)"
            f"{', from the cache' if made.cached else ''}",
            highlight=False,
        )
        for level, accuracy in enumerate(made.attention_accuracy, 1):
            console.print(f"squeezed vectors of level {level}: {percent(accuracy)} with a linear head", highlight=False)
        console.print(f"kept in {facts['folder']}", highlight=False)

    output.give(facts, show)


def train_one(output: Output, name: str, overrides: list[str], out: Path | None, runs: Path) -> None:
    """See `hksd train`."""
    config = load_run(name, overrides)
    data = datasets.load(config.data, runs / IMAGES)
    verify(config, **loop.image_shape(data))  # before the teacher, whose training may take long
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
        with stoppable(on_stop) as stop:
            if config.terms.teacher_needs:
                teacher = teachers.prepare(config, data, cache_dir=runs / TEACHERS, on_progress=display.teacher)
                display.line(
                    f"teacher {config.teacher.model if config.teacher else ''}: validation {percent(teacher.accuracy)}"
                )
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
        raise InterruptedRun(_how_to_continue(result, name, overrides, out, runs))
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
    where = f"stopped after {len(result.history)} epoch(s) and {result.step} step(s)"
    if out is None:
        return f"{where}; nothing was kept (give --out DIR to a run that you may want to continue)"
    words = ["hksd", "train", name, *(word for change in overrides for word in ("--set", change))]
    words += ["--out", relative(out), *([] if runs == Path("runs") else ["--runs", relative(runs)])]
    return f"{where}; everything is saved. Resume with:\n  {shlex.join(words)}"


def evaluate_one(output: Output, target: str, split: str, overrides: list[str], runs: Path) -> None:
    """See `hksd evaluate`."""
    if split not in ("val", "test"):
        raise UserError(f"--split {split}: must be val or test")
    path = Path(target)
    folder = path if path.is_dir() else path.parent
    named = [folder / name for name in (EXPORTED_CONFIG, loop.CONFIG_FILE)]
    config_file = path if path.is_file() else next((file for file in named if file.exists()), None)
    if config_file is None:
        raise UserError(f"{target}: expected a folder with {EXPORTED_CONFIG} or {loop.CONFIG_FILE}, or such a file")
    if not (folder / training.WEIGHTS_FILE).exists():
        raise UserError(
            f"{folder}: no {training.WEIGHTS_FILE} here; train with `hksd train {config_file} --out DIR` first"
        )
    config = load(config_file, overrides)
    data = datasets.load(config.data, runs / IMAGES)
    student, _ = load_student(config, data, folder / training.WEIGHTS_FILE)
    chosen = data.validation
    if split == "test":
        chosen = datasets.load_test(config.data)
        openings.record(folder, "hksd evaluate", [target])
    batches = batches_of(chosen, data, config.data, loop.resolve_device("cpu"), augment=False)
    scores = scoring.score(*scoring.predict(student, batches.plain(loop.EVALUATION_BATCH)))
    per_class = [None if math.isnan(value) else value for value in scores.per_class]  # JSON knows no NaN
    facts = {"split": split, **dataclasses.asdict(scores), "per_class": per_class, "classes": data.classes}

    def show(console: Any) -> None:
        console.print(
            f"{split}: accuracy {percent(scores.accuracy)} on {scores.count:,} images, "
            f"NLL {scores.nll:.4f}, calibration error {scores.ece:.4f}",
            highlight=False,
        )
        for name, accuracy in zip(data.classes, per_class, strict=True):
            console.print(f"  {name}: {percent(accuracy)}", highlight=False, markup=False)

    output.give(facts, show)
