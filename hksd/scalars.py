"""Scalars as in the core schema of YAML 1.2: `off` (a key of ours), `yes`, dates, 1_000, 0b1 and 1:30 are texts."""

from __future__ import annotations

import math
import re
from typing import Any

_NULL = re.compile(r"|~|null|Null|NULL")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)")
_NAN = re.compile(r"\.(?:nan|NaN|NAN)")
TAG = "tag:yaml.org,2002:"
KINDS: dict[type, str] = {type(None): "null", bool: "bool", int: "int", float: "float", str: "str"}
DIGITS = 100  # of a whole number; longer ones cost time that grows with the square of their length


def plain(text: str) -> Any:
    """The value of a scalar without quotes.

    Raises:
        ValueError: a whole number that is longer than anything that is meant.
    """
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
        return bool(_TRUE.fullmatch(text))
    if _INT.fullmatch(text):
        if len(text) > DIGITS:
            raise ValueError(f"a whole number of {len(text):,} digits; at most {DIGITS} make sense anywhere")
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITE.fullmatch(text):
        return -math.inf if text[0] == "-" else math.inf
    return math.nan if _NAN.fullmatch(text) else text
