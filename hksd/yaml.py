"""YAML with the line of every key, and one rule for scalars."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hksd.errors import ConfigError, KeyPath, Problem, UserError, describe


@dataclass(frozen=True)
class Document:
    """A parsed YAML file: its tree, its name for messages, and the line of every key path."""

    tree: Any
    source: str
    lines: Mapping[KeyPath, int]

    def error(self, problems: Sequence[Problem]) -> ConfigError:
        """Build the error for `problems`, each with the line where its key stands, in the order of the file."""
        placed = [dataclasses.replace(p, line=p.line or self._line(p.path)) for p in problems]
        return ConfigError(self.source, sorted(placed, key=lambda p: (p.line is None, p.line or 0)))

    def _line(self, path: KeyPath) -> int | None:
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None


def read_yaml(path: Path) -> Document:
    """Read a YAML file safely.

    Raises:
        UserError: the file cannot be read.
        ConfigError: it is not YAML, is empty, is no mapping, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_yaml(text, str(path))


# Scalars as in YAML 1.2: `off` (a key of ours) and dates are texts, 1e-3 is a number.
_FLOAT = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    return {
        first: [(tag, pattern) for tag, pattern in found if tag.split(":")[-1] not in ("bool", "timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars above."""

    yaml_implicit_resolvers = _resolvers()


class _Dumper(yaml.SafeDumper):
    """The safe dumper that quotes what `_Loader` would not read as a text."""

    yaml_implicit_resolvers = _resolvers()


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def to_yaml(tree: Any) -> str:
    """Write mappings, lists and values as YAML that `parse_yaml` reads back to the same."""
    return str(yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def parse_scalar(text: str) -> Any:
    """Read one YAML value."""
    return yaml.load(text, Loader=_Loader)  # a subclass of the safe loader


def parse_yaml(text: str, source: str) -> Document:
    """Parse YAML text; see `read_yaml`."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        detail = str(getattr(error, "problem", None) or error)
        line = mark.line + 1 if mark else None
        raise ConfigError(source, [Problem((), f"not valid YAML: {detail}", line)]) from error
    if not isinstance(tree, dict):
        raise ConfigError(source, [Problem((), f"expected a mapping of sections, got {describe(tree)}")])
    lines: dict[KeyPath, int] = {}
    assert node is not None
    faults = list(_walk(node, (), lines, ()))
    if faults:
        raise ConfigError(source, faults)
    return Document(tree, source, lines)


def _walk(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], above: tuple[yaml.Node, ...]) -> Iterator[Problem]:
    """Fill `lines` below `node`; yield every key that stands twice and every alias to something around it."""
    if any(node is other for other in above):
        yield Problem(path, "this contains itself", node.start_mark.line + 1)
        return
    above = (*above, node)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where, line = (*path, str(key.value)), key.start_mark.line + 1
            if where in lines:
                yield Problem(where, "this key stands twice", line)
            lines[where] = line
            yield from _walk(value, where, lines, above)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            yield from _walk(value, (*path, index), lines, above)


def apply_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `tree` with ``a.b=value`` overrides set; values are read as YAML.

    Raises:
        UserError: an override has no ``=``, or its path leads through a value that is no mapping.
    """
    result: dict[str, Any] = _copy(tree)
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise UserError(f"--set {override}: expected KEY.PATH=VALUE, for example train.epochs=5")
        node = result
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise UserError(f"--set {override}: '{key}' is a value, not a section")
        try:
            node[keys[-1]] = parse_scalar(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {override}: the value is not valid YAML") from error
    return result


def _copy(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _copy(value) for key, value in tree.items()}
    return [_copy(value) for value in tree] if isinstance(tree, list) else tree
