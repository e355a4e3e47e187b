"""Errors that a user can cause or must read. Everything else is a bug and keeps its stack trace."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAMED = 100  # characters of a wrong name that a message repeats
KeyPath = tuple[str | int, ...]  # ("student", "model", "choice", 1)
SHOWN = 10  # names of a list in a message


class UserError(ValueError):
    """Something the user can mend: the message says what, where and how. The command line exits with 2.

    Attributes:
        facts: what a program that reads JSON is told besides; of the two below, too.
    """

    facts: Mapping[str, Any] = {}


class RunError(RuntimeError):
    """A run that started and could not finish. The command line exits with 1."""

    facts: Mapping[str, Any] = {}


class Stopped(Exception):  # noqa: N818 - not an error: the user asked for it
    """Stopped by the user, with what it had saved. The text is the command that goes on with it. Exits with 130."""

    facts: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Problem:
    """One fault of a configuration: where (key path, and line or option of the command line) and what."""

    path: KeyPath
    message: str
    line: int | None = None
    option: str | None = None

    def __str__(self) -> str:
        where, line = key_path(self.path) or "(top level)", f"line {self.line}" if self.line else None
        place = ", ".join(filter(None, (line, self.option)))
        return f"{where}{f' ({place})' if place else ''}: {self.message}"


class ConfigError(UserError):
    """All faults of one configuration, reported together.

    Attributes:
        source: file (or other origin) the configuration came from.
        problems: every fault found; for a file, in its order.
    """

    def __init__(self, source: str, problems: Sequence[Problem]):
        self.source, self.problems = source, tuple(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))

    def __reduce__(self) -> tuple[type, tuple[str, tuple[Problem, ...]]]:
        return type(self), (self.source, self.problems)


class DataError(UserError):
    """A data set that cannot be read; the message names the file or folder."""


class NonFiniteLossError(RunError):
    """A loss became NaN or infinite.

    Attributes:
        epoch: epoch (from 1) in which it happened.
        step: step (from 1) inside the epoch.
        values: value of every term at that step.
    """

    def __init__(self, epoch: int, step: int, values: dict[str, float]):
        self.epoch, self.step, self.values = epoch, step, values
        terms = ", ".join(f"{name}={value:g}" for name, value in values.items())
        super().__init__(f"the loss is not finite at epoch {epoch}, step {step}: {terms}")

    def __reduce__(self) -> tuple[type, tuple[int, int, dict[str, float]]]:
        return type(self), (self.epoch, self.step, self.values)


def key_path(path: Iterable[str | int]) -> str:
    """Render a key path as people write it: ``student.model.choice[1]``."""
    text = ""
    for key in (key if isinstance(key, int) else readable(str(key)) for key in path):
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def nearest(name: object, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name nearest to `name`, or an empty string."""
    text, known = str(name)[:NAMED], list(known)
    match = difflib.get_close_matches(text.casefold(), [one.casefold() for one in known], n=1, cutoff=0.5)
    same = [one for one in known if [one.casefold()] == match]
    best = max(same, key=lambda one: difflib.SequenceMatcher(None, one, text).ratio(), default=None)
    return f"; did you mean '{best}'?" if best else ""


def some(names: Sequence[str]) -> str:
    """Names for a message, the first ten of many."""
    return ", ".join(names[:SHOWN]) + (f", ... {len(names)} in all" if len(names) > SHOWN else "")


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """Say that `name` is no known `kind`, with the nearest name and all known ones."""
    known, name = list(known), readable(str(name))
    return f"unknown {kind} '{name}'{nearest(name, known)} (known: {', '.join(known)})"


def readable(name: str) -> str:
    """A name as a message of one line can show it: shortened, and without what moves the cursor."""
    name = name if len(name) <= NAMED else name[:NAMED] + "..."
    return name if name.isprintable() else repr(name)[1:-1]


def describe(value: Any) -> str:
    """Show a wrong value in a message, shortened."""
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else repr(value)  # as YAML spells it
    return text if len(text) <= 60 else text[:57] + "..."
