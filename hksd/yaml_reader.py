"""A YAML text as a tree of plain values with the line of every key; nothing hangs, runs code or grows without end."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from hksd.bounds import NAME_LENGTH
from hksd.errors import KeyPath, Problem, describe
from hksd.scalars import KINDS, TAG, plain

# A configuration is written by people and read in a moment. Without these bounds a few lines of aliases stand for
# 10^20 values, and the parser takes time that grows with the square of the depth.
NODES = 10_000  # keys, values and lists, with what aliases stand for
LEVELS = 50


class FaultError(Exception):
    """A fault after which nothing more can be read."""

    def __init__(self, path: KeyPath, message: str, line: int):
        self.problem = Problem(path, message, line)
        super().__init__(message)


@dataclass(frozen=True)
class _Anchored:
    """A value that an alias can stand for: with the number of its nodes and levels."""

    value: Any
    nodes: int
    levels: int


class Reader:
    """Builds a tree from the events of PyYAML's parser, which does not recurse; its own recursion ends at `LEVELS`.

    Attributes:
        lines: line of every key and list item that was read.
        faults: what is wrong, as far as reading could go on.
    """

    def __init__(self, text: str):
        self.text, self.lines, self.faults = text, dict[KeyPath, int](), list[Problem]()
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._anchors: dict[str, _Anchored | None] = {}  # None: not yet at its end
        self._nodes = 0

    def read(self) -> Any:
        """The value of the only document.

        Raises:
            FaultError: it cannot be read any further.
        """
        try:
            self._next()
            if isinstance(self._next(), yaml.StreamEndEvent):
                return None
            value = self._value(self._next(), (), 0).value
            self._next()
            if not isinstance(event := self._next(), yaml.StreamEndEvent):
                raise FaultError((), "not valid YAML here: a second document begins; keep one", _line(event))
        except yaml.reader.ReaderError as error:
            line, what = self.text.count("\n", 0, error.position) + 1, f"the character U+{error.character:04X}"
            raise FaultError((), f"not valid YAML: {what} is not allowed in a text", line) from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            detail = str(getattr(error, "problem", None) or error)
            raise FaultError((), f"not valid YAML: {detail}", mark.line + 1 if mark else 1) from error
        return value

    def _next(self) -> yaml.Event:
        return next(self._events)

    def _value(self, event: yaml.Event, path: KeyPath, level: int) -> _Anchored:
        """The value that begins with `event`."""
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path, level)
        assert isinstance(event, yaml.NodeEvent)
        self._count(1, level, path, event)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            found = _Anchored(self._scalar(event, path), 1, 0)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._untagged(event, path, "seq")
            found = self._sequence(path, level)
        else:
            assert isinstance(event, yaml.MappingStartEvent)
            self._untagged(event, path, "map")
            found = self._mapping(path, level)
        if event.anchor is not None:
            self._anchors[event.anchor] = found
        return found

    def _count(self, nodes: int, levels: int, path: KeyPath, event: yaml.Event) -> None:
        self._nodes += nodes
        if self._nodes > NODES:
            raise FaultError(path, f"the file is too large here: more than {NODES:,} values", _line(event))
        if levels > LEVELS:
            raise FaultError(path[:3], f"too deep: more than {LEVELS} levels of lists and sections", _line(event))

    def _alias(self, event: yaml.AliasEvent, path: KeyPath, level: int) -> _Anchored:
        if event.anchor not in self._anchors:
            raise FaultError(path, f"not valid YAML: no anchor '&{event.anchor}' before this alias", _line(event))
        found = self._anchors[event.anchor]
        if found is None:
            raise FaultError(path, "this contains itself", _line(event))
        self._count(found.nodes, level + found.levels, path, event)
        return dataclasses.replace(found, value=copied(found.value))

    def _scalar(self, event: yaml.ScalarEvent, path: KeyPath) -> Any:
        text, tag = event.value, event.tag
        try:
            value = plain(text) if (event.implicit[0] and tag is None) or tag in _CORE else text
            if tag in _CORE:
                value = float(value) if tag == TAG + "float" and type(value) is int else value
                if tag != TAG + KINDS[type(value)]:
                    raise ValueError(f"{describe(text)} is no value of the tag !!{tag.removeprefix(TAG)}")
            elif tag not in (None, "!", TAG + "str"):
                raise ValueError(f"not valid YAML: the tag {_short(tag)} is not known here; write the value without it")
            if isinstance(value, str) and (bad := _UNFIT.search(value)):
                raise ValueError(f"a text with the character U+{ord(bad[0]):04X}, which nothing here can take")
        except (ValueError, OverflowError) as error:
            self.faults.append(Problem(path, str(error), _line(event)))
            return None
        return value

    def _untagged(self, event: yaml.CollectionStartEvent, path: KeyPath, kind: str) -> None:
        if event.tag not in (None, "!", TAG + kind):
            message = f"not valid YAML: the tag {_short(event.tag)} is not known here; write the value without it"
            raise FaultError(path, message, _line(event))

    def _sequence(self, path: KeyPath, level: int) -> _Anchored:
        items: list[_Anchored] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            self.lines[(*path, len(items))] = _line(event)
            items.append(self._value(event, (*path, len(items)), level + 1))
        return _together([item.value for item in items], items)

    def _mapping(self, path: KeyPath, level: int) -> _Anchored:
        tree: dict[str, Any] = {}
        values: list[_Anchored] = []
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._key(event, path, level)
            where = (*path, key)
            if key in tree:
                self.faults.append(Problem(where, "this key stands twice", _line(event)))
            self.lines[where] = _line(event)
            values.append(self._value(self._next(), where, level + 1))
            tree[key] = values[-1].value
        return _together(tree, values)

    def _key(self, event: yaml.Event, path: KeyPath, level: int) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            kind = "an alias" if isinstance(event, yaml.AliasEvent) else "a list or a section"
            raise FaultError(path, f"not valid YAML here: a key must be a text, not {kind}", _line(event))
        if event.value == "<<" and event.implicit[0]:
            message = "merge keys (<<) are no part of YAML 1.2; write the keys out, or set a whole section by an alias"
            raise FaultError(path, message, _line(event))
        if len(event.value) > NAME_LENGTH:
            raise FaultError(path, f"a key of {len(event.value):,} characters: {event.value[:40]}...", _line(event))
        before = len(self.faults)
        key = self._value(event, (*path, event.value), level).value
        if not isinstance(key, str) and len(self.faults) == before:
            message = f"a key must be a text (got {describe(key)}); put it in quotes if it is meant"
            self.faults.append(Problem((*path, event.value), message, _line(event)))
        return event.value


_CORE = frozenset(TAG + kind for kind in ("null", "bool", "int", "float"))
_UNFIT = re.compile("[\0\ud800-\udfff]")  # no path and no file of ours can hold them


def _together(value: Any, parts: Sequence[_Anchored]) -> _Anchored:
    return _Anchored(value, 1 + sum(p.nodes for p in parts), 1 + max((p.levels for p in parts), default=0))


def _line(event: yaml.Event) -> int:
    return int(event.start_mark.line) + 1  # type: ignore[union-attr]  # parsed events have marks


def _short(tag: str) -> str:
    return tag.replace(TAG, "!!")[:60]


def copied(tree: Any) -> Any:
    """A copy of nested mappings and lists."""
    if isinstance(tree, Mapping):
        return {key: copied(value) for key, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, list) else tree
