"""Names of classes as people give them: in a configuration, or in a file of their own."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from hksd.errors import DataError, describe, nearest, some


def composed(name: str) -> str:
    """A name in Unicode's composed form: macOS writes an accented letter as two characters, other systems as one."""
    return unicodedata.normalize("NFC", name)


def has_control(name: str) -> bool:
    """Whether a name holds a line break, or what a terminal obeys: it could not stand in a line, a table or a list."""
    return any(unicodedata.category(character) == "Cc" for character in name)


def name_fault(names: Sequence[str]) -> str:
    """What is wrong with the names of the classes by themselves; "" for nothing."""
    twice = [name for name, count in Counter(map(composed, names)).items() if count > 1]
    if twice:
        return f"'{twice[0]}' stands there twice; name every class once"
    if strange := [name for name in names if has_control(name)]:
        return f"{strange[0]!r} holds a control character; give the class another name"
    return "" if names else "no names of classes"


def difference(names: Sequence[str], others: Sequence[str], without: str, alone: str) -> str:
    """How two lists of classes differ, for a message.

    Args:
        names: one list.
        others: the other list.
        without: words for `others` before the names that it lacks, as "it does not know".
        alone: words for `others` before the names that it alone has, as "it alone knows".

    Returns:
        The names, with the nearest to the first one; "" where both are the same set.
    """
    has, have = set(others), set(names)
    lacking, more = [name for name in names if name not in has], [name for name in others if name not in have]
    said = [f"{without} {some(lacking)}{nearest(lacking[0], more or others)}"] if lacking else []
    return "; ".join(said + ([f"{alone} {some(more)}"] if more else []))


def _checked(value: Any) -> Any:
    """Names as a tuple of texts (a number is its digits), or the name of a file."""
    if value is None or (isinstance(value, str) and value):
        return value
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list of the names of all classes, or a file of them (got {describe(value)})")
    wrong = [name for name in value if isinstance(name, bool) or not isinstance(name, (str, int)) or name == ""]
    if wrong:
        raise ValueError(f"must be a list of texts (got {describe(wrong[0])} in it); put such a name in quotes")
    names = tuple(map(str, value))
    if fault := name_fault(names):
        raise ValueError(fault)
    return names


# A key of a configuration: the names in the order of their numbers, or a file of them (see `read_names`).
ClassNames = Annotated[tuple[str, ...] | str | None, BeforeValidator(_checked)]


def read_names(file: Path, key: str) -> tuple[str, ...]:
    """Read the names of the classes, in order.

    Args:
        file: a text with one name a line; or, with the suffix .json, a list of names, or which name has which number,
            as ``{"cat": 0}`` or ``{"0": "cat"}``.
        key: key of the configuration that names the file, for messages.

    Raises:
        DataError: it cannot be read, or has another form, a name twice, or none.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        found = _of_json(json.loads(text)) if file.suffix.lower() == ".json" else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise DataError(
            f"{file}: {key} cannot be read ({reason}); give one name a line, or in a .json file a list of names"
        ) from error
    names = tuple(composed(name.strip()) for name in found if name.strip())
    if fault := name_fault(names):
        raise DataError(f"{file}: {fault}")
    return names


def _of_json(tree: Any) -> list[str]:
    if isinstance(tree, dict):
        if all(isinstance(name, str) for name in tree.values()):
            tree = {name: int(number) for number, name in tree.items()}
        if {str(number) for number in tree.values()} != set(map(str, range(len(tree)))):
            raise ValueError("its numbers are not 0 to C-1")
        tree = sorted(tree, key=tree.__getitem__)
    if not isinstance(tree, list) or not all(isinstance(name, str) for name in tree):
        raise ValueError("no list of texts")
    return tree
