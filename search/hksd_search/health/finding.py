"""What a check found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hksd_search.commands.options import install_line


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        name: of the check.
        ok: nothing is wrong.
        detail: what is there, or what is wrong and how to mend it.
        node: of the cluster that was checked; None for this machine, or the cluster as a whole.
    """

    name: str
    ok: bool
    detail: str
    node: str | None = None


def attempt(name: str, check: Callable[[], str], node: str | None = None) -> Finding:
    """Run a check, which returns what is there; whatever it raises is its finding."""
    try:
        return Finding(name, True, check(), node)
    except Exception as error:  # a check exists to catch anything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Finding(name, False, install_line(error) or first, node)
