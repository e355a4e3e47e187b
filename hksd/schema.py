"""What every configuration section shares: YAML with line numbers, validation that reports all faults at once.

Sections are frozen, keyword-only dataclasses whose fields carry their range and a one-line description in
``Annotated[..., Field(...)]``; pydantic checks them at this edge and nowhere else.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from hksd.errors import ConfigError, Problem, UserError, nearest

T = TypeVar("T")
Path_ = tuple[str | int, ...]
LAST_SEED = 2**63 - 1  # the largest that numpy, torch and Optuna all take


class Section:
    """Base of every configuration dataclass: unknown keys are errors, and a section knows its dead knobs."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    def dead_knobs(self) -> frozenset[str]:
        """Names of fields that cannot influence the run given the other fields (left out of the hash)."""
        return frozenset()


@dataclass(frozen=True)
class Document:
    """A parsed YAML file: its tree, its name for messages, and the line of every key path."""

    tree: Any
    source: str
    lines: Mapping[Path_, int]

    def error(self, problems: Sequence[Problem]) -> ConfigError:
        """Build the error for `problems`, each with the line where its key stands, in the order of the file."""
        placed = [dataclasses.replace(p, line=p.line or self._line(p.path)) for p in problems]
        return ConfigError(self.source, sorted(placed, key=lambda p: (p.line is None, p.line or 0)))

    def _line(self, path: Path_) -> int | None:
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
    lines: dict[Path_, int] = {}
    assert node is not None
    faults = list(_walk(node, (), lines, ()))
    if faults:
        raise ConfigError(source, faults)
    return Document(tree, source, lines)


def _walk(node: yaml.Node, path: Path_, lines: dict[Path_, int], above: tuple[yaml.Node, ...]) -> Iterator[Problem]:
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


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def check(kind: type[T], tree: Any, *, hint: str = "") -> tuple[T | None, list[Problem]]:
    """Validate `tree` against the dataclass `kind`; `hint` is added where a mapping stands in place of a value.

    Returns:
        The object and no problems, or None and every problem found.
    """
    try:
        value: T = _adapter(kind).validate_python(tree)  # type: ignore[arg-type]  # classes are hashable
        return value, []
    except ValidationError as error:
        return None, [_problem(kind, dict(detail), hint) for detail in error.errors()]


def build(kind: type[T], tree: Any, source: str = "configuration") -> T:
    """Validate `tree` and return the object.

    Raises:
        ConfigError: with every problem.
    """
    value, problems = check(kind, tree)
    if value is None:
        raise ConfigError(source, problems)
    return value


def _problem(kind: type, detail: Mapping[str, Any], hint: str) -> Problem:
    path = tuple(detail["loc"])
    context, given, code = detail.get("ctx", {}), detail.get("input"), detail["type"]
    got = f" (got {describe(given)})"
    if code in ("extra_forbidden", "unexpected_keyword_argument"):
        known = allowed_keys(kind, path[:-1])
        message = f"unknown key{nearest(path[-1], known)} (allowed: {', '.join(known)})"
    elif code in ("missing", "missing_keyword_only_argument", "missing_argument"):
        message = "this key is required"
    elif code == "literal_error":
        allowed = str(context["expected"])
        names = [name.strip(" '") for name in allowed.replace(" or ", ", ").split(",")]
        message = f"must be {allowed}{nearest(given, names)}{got}"
    elif code in _RANGES:
        message = f"must be {_RANGES[code]} {next(iter(context.values()))}{got}"
    elif code == "value_error":
        message = str(context["error"])
    elif code in _TYPES:
        message = f"must be {_TYPES[code]}{got}"
    else:
        message = f"{detail['msg'][0].lower()}{detail['msg'][1:]}{got}"
    if isinstance(given, dict) and not allowed_keys(kind, path) and code != "extra_forbidden":
        message += hint
    return Problem(path, message)


_RANGES = {
    "greater_than": "greater than",
    "greater_than_equal": "at least",
    "less_than": "less than",
    "less_than_equal": "at most",
}
_TYPES = {
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "a text",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dataclass_type": "a section of keys",
    "dict_type": "a section of keys",
}


def describe(value: Any) -> str:
    """Show a wrong value in a message, shortened."""
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def allowed_keys(kind: Any, path: Sequence[str | int]) -> list[str]:
    """Names of the keys that the section at `path` below `kind` accepts."""
    for key in path:
        options = section_fields(kind)
        if isinstance(key, str) and key in options:
            kind = options[key]
    return list(section_fields(kind))


def section_fields(kind: Any) -> dict[str, Any]:
    """Field name -> type of a section; optional sections are unwrapped, mappings of sections list their members."""
    for option in (kind, *get_args(kind)):
        if dataclasses.is_dataclass(option):
            return dict(_field_types(option))  # type: ignore[arg-type]
        if hasattr(get_origin(option) or option, "section_types"):
            return dict(option.section_types())
    return {}


@functools.cache  # a draw walks all sections, and evaluating annotations takes a millisecond each
def _field_types(section: Any) -> Mapping[str, Any]:
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


@dataclass(frozen=True)
class Knob:
    """One documented field of a section, for `hksd methods` and the check of the documentation."""

    name: str
    type: str
    default: Any
    description: str


def knobs(section: type[Section]) -> list[Knob]:
    """Every field of a section with its type, default and description."""
    hints = get_type_hints(section, include_extras=True)
    result = []
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        info = next((m for m in getattr(hints[field.name], "__metadata__", ()) if isinstance(m, FieldInfo)), None)
        kind = get_args(hints[field.name])[0] if info else hints[field.name]
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        required = default is dataclasses.MISSING
        result.append(
            Knob(
                field.name,
                _type_name(kind, info),
                "required" if required else default,
                (info.description if info else None) or "",
            )
        )
    return result


def _names(kind: Any) -> list[str]:
    """The names of a type's alternatives: literals, members of a union, or the type itself."""
    if get_args(kind) and get_origin(kind) is not tuple:
        return [name for part in get_args(kind) for name in _names(part)]
    if isinstance(kind, str):
        return [kind]
    return ["null" if kind is type(None) else str(getattr(kind, "__name__", kind))]


def _type_name(kind: Any, info: FieldInfo | None) -> str:
    name = " | ".join(_names(kind))
    for bound in info.metadata if info else ():
        for key, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            if getattr(bound, key, None) is not None:
                name += f", {sign} {getattr(bound, key):g}"
    return name
