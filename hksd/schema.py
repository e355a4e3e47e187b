"""What every configuration section shares: validation that reports all faults at once.

Sections are frozen, keyword-only dataclasses whose fields carry their range and a one-line description in
``Annotated[..., Field(...)]``; pydantic checks them at this edge and nowhere else.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import SchemaValidator, core_schema

from hksd.bounds import PATH_LENGTH
from hksd.errors import ConfigError, Problem, describe, nearest

T = TypeVar("T")
PROBLEMS = 100  # of one section that are told; each unknown key is compared with all known ones


class Section:
    """Base of every configuration dataclass: unknown keys are errors, and a section knows its dead knobs."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", allow_inf_nan=False, str_max_length=PATH_LENGTH
    )

    def dead_knobs(self) -> frozenset[str]:
        """Names of fields that cannot influence the run given the other fields (left out of the hash)."""
        return frozenset()


@functools.cache
def _validator(kind: Any) -> SchemaValidator:
    return SchemaValidator(_strict(TypeAdapter(kind).core_schema))


def _strict(schema: Any) -> Any:
    """A schema whose scalars take what they are: no text or truth for a number, no number for a truth.

    A whole number without a fraction may be written as 1e3. Lists still make tuples, and mappings sections, which
    pydantic's own strict mode refuses.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(map(_strict, schema))
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind in ("int", "float", "bool", "str"):
        exact = {**schema, "strict": True}
        return core_schema.no_info_before_validator_function(_whole, exact) if kind == "int" else exact
    return {key: _strict_below(value) if key in _BELOW else value for key, value in schema.items()}


def _strict_below(part: Any) -> Any:
    if isinstance(part, dict) and not isinstance(part.get("type"), str):  # fields by their names
        return {name: _strict(field) for name, field in part.items()}
    return _strict(part)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Keys of pydantic's core schemas that hold other schemas.
_BELOW = frozenset({"schema", "fields", "choices", "items_schema", "keys_schema", "values_schema", "definitions"})


def check(kind: type[T], tree: Any, *, hint: str = "") -> tuple[T | None, list[Problem]]:
    """Validate `tree` against the dataclass `kind`; `hint` is added where a mapping stands in place of a value.

    Returns:
        The object and no problems, or None and every problem found.
    """
    try:
        value: T = _validator(kind).validate_python(tree)  # type: ignore[arg-type]  # classes are hashable
        return value, []
    except ValidationError as error:
        return None, [_problem(kind, dict(detail), hint) for detail in error.errors()[:PROBLEMS]]


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
        bound = next(iter(context.values()))
        message = f"must be {_RANGES[code]} {format(bound, '.12g') if isinstance(bound, float) else bound}{got}"
    elif code == "value_error":
        message = str(context["error"])
    elif code in _TYPES:
        message = f"must be {_TYPES[code]}{got}"
        if code == "dataclass_type" and given is None:  # `kd:` with nothing after it
            message += "; write {} for its defaults"
    elif code in _LENGTHS:
        length, unit = next(iter(context.values())), _LENGTHS[code]
        message = f"is too long: at most {length} {unit}{got}"
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
_LENGTHS = {"string_too_long": "characters", "too_long": "items"}
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
