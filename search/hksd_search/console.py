"""What people see in the terminal: progress of a search, tables, the last lines."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from hksd.deploy.export import Row
from hksd_search.study.records import Assignment, Record

HEARTBEAT_S = 10.0  # without a terminal, at least one line in that time


def percent(value: float | None) -> str:
    """Show an accuracy."""
    return "-" if value is None else f"{value:.2%}"


def comparison(rows: Sequence[Row]) -> Table:
    """The table that ends a search: teacher, best student, arms."""
    table = Table(caption="accuracy on the validation split, one seed; MFLOPs are 2 x MACs of one image")
    for column in ("network", "model"):
        table.add_column(column)
    for column in ("accuracy", "parameters", "MFLOPs"):
        table.add_column(column, justify="right")
    for row in rows:
        size = "-" if row.params is None else f"{row.params:,}"
        table.add_row(
            row.name, row.model, percent(row.val_accuracy), size, "-" if row.mflops is None else f"{row.mflops:.2f}"
        )
    return table


def trials(records: Sequence[Record]) -> Table:
    """All trials of a search, one a line."""
    table = Table()
    for column in ("trial", "status"):
        table.add_column(column)
    for column in ("epoch", "accuracy", "parameters", "MFLOPs", "seconds"):
        table.add_column(column, justify="right")
    table.add_column("remark")
    for r in records:
        table.add_row(
            r.label,
            r.status,
            str(r.epoch),
            percent(r.val_accuracy),
            "-" if r.params is None else f"{r.params:,}",
            "-" if r.mflops is None else f"{r.mflops:.2f}",
            f"{r.seconds:.1f}",
            escape("; ".join(text for text in (r.arm and f"arm: {r.arm}", r.fork and str(r.fork), r.reason) if text)),
        )
    return table


class Display:
    """Shows a running search: bars in a terminal, lines anywhere else.

    Args:
        console: where to.
        total: number of trials that the search trains.
    """

    def __init__(self, console: Console, total: int):
        self.console, self.total, self.done = console, total, 0
        self.last_line = time.monotonic()
        self.bars: dict[str, TaskID] = {}
        self.labels: dict[int, str] = {}
        self.best: float | None = None
        self.warned: set[str] = set()
        self.progress: Progress | None = None
        if console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            self.progress.start()

    def take_over(self, records: Sequence[Record]) -> None:
        """Count the trials of a search that is resumed."""
        self.done = sum(r.status in ("complete", "pruned", "failed") for r in records)
        self.best = max((r.val_accuracy or 0.0 for r in records if r.status == "complete"), default=None)

    def line(self, text: str) -> None:
        """Print a line (above the bars)."""
        self.last_line = time.monotonic()
        (self.progress.console if self.progress else self.console).print(text, highlight=False)

    def teacher(self, what: str, epoch: int, epochs: int, accuracy: float) -> None:
        """An epoch of the teacher stage."""
        names = {
            "teacher": "training the teacher",
            "attention": "training its attention estimators",
            "teacher and attention": "training the teacher with its attention estimators",
        }
        self.step(names[what], epoch, epochs, f"validation {percent(accuracy)}")

    def started(self, assignment: Assignment) -> None:
        """A trial starts."""
        self.labels[assignment.number] = assignment.label
        if self.progress:
            epochs = assignment.config.train.epochs
            self.bars[assignment.label] = self.progress.add_task(assignment.label, total=epochs, note="")
        elif time.monotonic() - self.last_line > HEARTBEAT_S:
            self.line(f"  {assignment.label}: starts")

    def reported(self, number: int, report: Mapping[str, Any]) -> None:
        """A trial has finished an epoch."""
        for text in report.get("warnings", ()):
            if text not in self.warned:
                self.warned.add(text)
                self.line(escape(f"warning: {text}"))
        note = f"validation {percent(report['val_accuracy'])}"
        self.step(self.labels[number], int(report["epoch"]), int(report["epochs"]), note)

    def ended(self, record: Record) -> None:
        """A trial has ended, or a draw was refused."""
        if record.status in ("rejected", "duplicate"):
            return
        label = self.labels.pop(record.number, None) or record.label
        bar = self.bars.pop(label, None)
        if self.progress and bar is not None:
            self.progress.remove_task(bar)
        if record.status in ("complete", "pruned", "failed"):
            self.done += 1
        if record.status == "complete":
            self.best = max(self.best or 0.0, record.val_accuracy or 0.0)
        name = label + (f"  (arm: {record.arm})" if record.arm else "")
        outcome = f"{record.status} {percent(record.val_accuracy)}" + (
            f" at epoch {record.epoch}" if record.status == "pruned" else ""
        )
        if record.reason:
            outcome += f": {record.reason}"
        self.line(escape(f"[{self.done}/{self.total}] {name}: {outcome}") + f"   best {percent(self.best)}")

    def close(self) -> None:
        """Take the bars away."""
        if self.progress:
            self.progress.stop()
            self.progress = None

    def step(self, name: str, done: int, total: int, note: str = "", unit: str = "epoch") -> None:
        """`done` of `total` parts of something are through (epochs of a training, views of the images)."""
        if self.progress:
            if name not in self.bars:
                self.bars[name] = self.progress.add_task(name, total=total, note="")
            self.progress.update(self.bars[name], completed=done, total=total, note=note)
            if done == total:
                self.progress.remove_task(self.bars.pop(name))
                if not name[0].isdigit():
                    self.line(f"{name}: {total} {unit}s{f', {note}' if note else ''}")
        elif time.monotonic() - self.last_line > HEARTBEAT_S or (done == total and not name[0].isdigit()):
            self.line(f"  {name}: {unit} {done}/{total}{f', {note}' if note else ''}")


def relative(path: Path | str) -> str:
    """Show a path relative to the working directory where it lies below it."""
    path = Path(path).resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def how_to_send(folder: Path) -> str:
    """The command that sends what MLflow has not got of the search in that folder."""
    runs = folder.parent
    return shlex.join(["hksd", "sync", folder.name, *([] if runs == Path("runs") else ["--runs", relative(runs)])])


def program(name: str) -> str:
    """How to call a program that is installed beside this Python."""
    beside = Path(sys.executable).parent / name
    return relative_program(beside) if beside.exists() else name


def relative_program(path: Path) -> str:
    """Like `relative`, without following links (a virtual environment's programs may be links)."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
