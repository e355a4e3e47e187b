"""`hksd space`: show a space."""

from __future__ import annotations

from typing import Annotated

import typer

from search.commands.options import Json, Overrides
from search.output import Output

EXAMPLE = "`hksd space cifar10 --set data.root=data/cifar10`"


def space(
    name: Annotated[str, typer.Argument(metavar="SPACE", help="Name of a shipped space, or a path.")],
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(min=0, help="Sampled configurations to show.")] = 3,
    as_json: Json = False,
) -> None:
    """Show a search space: its ranges, sampled configurations, the share within its limits."""
    from search import catalogue

    catalogue.show_space(Output(as_json), name, overrides or [], samples)
