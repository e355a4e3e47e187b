"""Alternatives in a space: `terms.one_of` names whole sets of terms, of which a draw takes one.

A space with alternatives is several plain spaces, one for each, that share everything outside `one_of`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hksd.errors import KeyPath, Problem, describe

KEY = "one_of"
AT: KeyPath = ("terms", KEY)
PARAMETER = "terms.one_of"  # the choice itself, as the sampler knows it
_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")  # also a name in Optuna and MLflow


def split(tree: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], list[Problem]]:
    """The plain trees by name of their alternative, and what is wrong with `one_of`.

    Without `one_of` the only name is ``""``.
    """
    terms = tree.get("terms")
    if not isinstance(terms, Mapping) or KEY not in terms:
        return {"": dict(tree)}, []
    given, common = terms[KEY], {name: term for name, term in terms.items() if name != KEY}
    if not isinstance(given, Mapping) or len(given) < 2:
        message = f"must name at least two alternatives, each a section of terms (got {describe(given)})"
        return {"": {**tree, "terms": common}}, [Problem(AT, message)]
    plain: dict[str, dict[str, Any]] = {}
    problems: list[Problem] = []
    for name, own in given.items():
        where = (*AT, str(name))
        if not _NAME.match(str(name)):
            problems.append(Problem(where, "a name has letters, digits, _, - and . only"))
        if not isinstance(own, Mapping):
            problems.append(Problem(where, f"must be a section of terms (got {describe(own)})"))
            continue
        problems += [
            Problem((*where, term), f"'{term}' also stands in terms, for all alternatives; keep one of them")
            for term in own
            if term in common
        ]
        plain[str(name)] = {**tree, "terms": {**common, **own}}
    return plain or {"": {**tree, "terms": common}}, problems


def placed(path: KeyPath, tree: Mapping[str, Any], name: str) -> KeyPath:
    """Where a key path of the plain tree `name` stands in the file."""
    if name and len(path) > 1 and path[0] == "terms" and path[1] in tree["terms"][KEY][name]:
        return (*AT, name, *path[1:])
    return path
