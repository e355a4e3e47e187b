"""YAML 1.2 with the line of every key: the core schema, and nothing that hangs, runs code or grows without end."""

from __future__ import annotations

import dataclasses
import io
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hksd.bounds import NAME_LENGTH
from hksd.errors import ConfigError, KeyPath, Problem, UserError, describe, key_path
from hksd.scalars import KINDS, TAG, plain
from hksd.yaml_reader import LEVELS, FaultError, Reader, copied

FILE_BYTES = 2**18  # a configuration is written by people
_KEYED = re.compile(r"(\w+(?:\.\w+)+|\w+(?=:)):? (.*)", re.DOTALL)  # a message that begins with a key path
SHOWN = 200  # characters of an override that a message repeats


@dataclass(frozen=True)
class Document:
    """A parsed YAML file: its tree, its name for messages, and where every key path comes from.

    Attributes:
        tree: nested mappings, lists and values.
        source: file, or another origin.
        lines: line of every key path of the file.
        options: option that set a key path on the command line, in place of the file.
    """

    tree: Any
    source: str
    lines: Mapping[KeyPath, int]
    options: Mapping[KeyPath, str] = field(default_factory=dict)

    def error(self, problems: Sequence[Problem]) -> ConfigError:
        """Build the error for `problems`, each with the line where its key stands, in the order of the file."""
        placed = [self._placed(problem) for problem in problems]
        return ConfigError(self.source, sorted(placed, key=lambda p: (p.line is None, p.line or 0)))

    def _placed(self, problem: Problem) -> Problem:
        """A problem with its line, or with the option that set what is wrong: whatever stands nearest above its key.

        What is wrong with a section as a whole may lie in what an option has set below it, which is told too.
        """
        if problem.line:
            return problem
        for end in range(len(problem.path), 0, -1):
            if (above := problem.path[:end]) in self.options:
                return dataclasses.replace(problem, option=self.options[above])
            if above in self.lines:
                problem = dataclasses.replace(problem, line=self.lines[above])
                break
        below = [option for path, option in self.options.items() if problem.path and _inside(path, problem.path)]
        return dataclasses.replace(problem, option=", ".join(dict.fromkeys(below)) or None)

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Errors from inside that begin with one of its keys (``student.model: ...``) come with file and line, too.

        Raises:
            ConfigError: in place of such an error.
        """
        try:
            yield
        except ConfigError:
            raise
        except UserError as error:
            found = _KEYED.match(str(error))
            if found is None or found[1].partition(".")[0] not in self.tree:
                raise
            raise self.error([Problem(tuple(found[1].split(".")), found[2])]) from error

    def changed(self, overrides: Sequence[str | Override]) -> Document:
        """This document with overrides, whose faults are then told as such; see `apply_overrides`."""
        given = [override(one) for one in overrides]
        options: dict[KeyPath, str] = {one.path: one.option for one in given}
        lines = {path: line for path, line in self.lines.items() if not any(_inside(path, set_) for set_ in options)}
        return Document(apply_overrides(self.tree, given), self.source, lines, {**self.options, **options})


def _inside(path: KeyPath, above: KeyPath) -> bool:
    return path[: len(above)] == above


def read_yaml(path: Path) -> Document:
    """Read a YAML file safely.

    Raises:
        UserError: the file cannot be read, is no plain file, too large or no text.
        ConfigError: as for `parse_yaml`.
    """
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
        with path.open("rb") if regular else io.BytesIO() as file:
            content = file.read(FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # a ValueError is a path with a NUL inside
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not regular:  # a pipe or a device may never end
        raise UserError(f"{path}: cannot be read: not a plain file")
    if len(content) > FILE_BYTES:
        raise UserError(f"{path}: cannot be read: more than {FILE_BYTES:,} bytes, which no configuration has")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: cannot be read: line {line} is no text in UTF-8; save the file as UTF-8") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Document:
    """Parse YAML text.

    Raises:
        ConfigError: it is not YAML, is empty or no mapping, has a key twice or one that is no text, has tags beyond
            the core schema, or stands for more than is sane (`NODES`, `LEVELS`).
    """
    reader = Reader(text)
    try:
        tree = reader.read()
    except FaultError as fault:
        raise ConfigError(source, [*reader.faults, fault.problem]) from fault
    if reader.faults:
        raise ConfigError(source, reader.faults)
    if not isinstance(tree, dict):
        raise ConfigError(source, [Problem((), f"expected a mapping of sections, got {describe(tree)}")])
    return Document(tree, source, reader.lines)


def parse_scalar(text: str) -> Any:
    """Read one YAML value.

    Raises:
        ValueError: as for `parse_yaml`, but a value need be no mapping.
    """
    reader = Reader(text)
    try:
        value = reader.read()
    except FaultError as fault:
        raise ValueError(fault.problem.message) from fault
    if reader.faults:
        raise ValueError(reader.faults[0].message)
    return value


# --- writing


class _Dumper(yaml.SafeDumper):
    """The safe dumper that quotes what `plain` would not read as a text."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        """The tag that the reader would give to a value."""
        if kind is not yaml.ScalarNode or not implicit[0]:
            return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        if value == "<<":
            return TAG + "merge"  # as a key without quotes, the reader refuses it
        with suppress(ValueError):
            return TAG + KINDS[type(plain(value))]
        return TAG + "int"  # one of too many digits


def to_yaml(tree: Any) -> str:
    """Write mappings, lists and values as YAML that `parse_yaml` reads back to the same."""
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


# --- overrides


@dataclass(frozen=True)
class Override:
    """A value that stands in place of the file's.

    Attributes:
        path: its key path.
        value: the value.
        option: the option of the command line that says so, for messages.
    """

    path: tuple[str, ...]
    value: Any
    option: str = "--set"


def apply_overrides(tree: Mapping[str, Any], overrides: Sequence[str | Override]) -> dict[str, Any]:
    """Return a copy of `tree` with overrides set, later ones over earlier ones.

    Raises:
        UserError: as for `override`, or a path leads through a value that is no mapping.
    """
    result: dict[str, Any] = copied(tree)
    for one in map(override, overrides):
        node = result
        for key in one.path[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise UserError(
                    f"{one.option} {key_path(one.path)}={describe(one.value)}: '{key}' is a value, not a section"
                )
        node[one.path[-1]] = copied(one.value)
    return result


def override(given: str | Override) -> Override:
    """Read ``a.b=value``; the value is read as YAML.

    Raises:
        UserError: there is no ``=``, or no path before it, or the value is no YAML.
    """
    if isinstance(given, Override):
        return given
    path, equals, text = given.partition("=")
    keys = tuple(path.strip().split("."))
    told = repr(given) if not given or not given.isprintable() else given
    shown = told if len(told) <= SHOWN else told[:SHOWN] + "..."
    if not equals or not all(keys):
        raise UserError(f"--set {shown}: expected KEY.PATH=VALUE, for example train.epochs=5")
    if len(keys) > LEVELS or max(map(len, keys)) > NAME_LENGTH:
        raise UserError(f"--set {shown}: there is no key of such a length")
    try:
        return Override(keys, parse_scalar(text))
    except ValueError as error:
        raise UserError(f"--set {shown}: the value is wrong: {error}") from error
