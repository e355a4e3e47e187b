"""What a search costs on a cluster: from the estimate of its hours to nodes, their hours, and money."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hksd.errors import UserError
from hksd_search.backend import nodes
from hksd_search.estimate.forecast import Span
from hksd_search.money.fleet import RATES, Fleet, Kind
from hksd_search.money.prices import Prices

MINUTES = 60.0  # of an hour


@dataclass(frozen=True)
class Line:
    """Nodes of one kind.

    Attributes:
        kind: which.
        count: nodes.
        hours: of all of them together.
        on_demand: money for them on demand; None where the price is not known.
        spot: the same as spot machines; of the head, which is none, on demand too.
        asked: the same as the file has it.
        source: where the prices are from, and of when.
    """

    kind: Kind
    count: int
    hours: Span
    on_demand: Span | None
    spot: Span | None
    asked: Span | None
    source: str


@dataclass(frozen=True)
class Quote:
    """What a search costs on a cluster.

    Attributes:
        currency: of the money.
        lines: nodes of each kind, the head first.
        lacking: what is said of each price that is not known.
        idle_minutes: that each worker is up after its last trial, which are counted.
    """

    currency: str
    lines: tuple[Line, ...]
    lacking: tuple[str, ...]
    idle_minutes: float

    def total(self, what: str) -> Span | None:
        """A sum over all nodes: ``hours``, ``on_demand``, ``spot`` or ``asked``; None where a part is not known."""
        parts: list[Span | None] = [getattr(line, what) for line in self.lines]
        if any(part is None for part in parts):
            return None
        return Span(*(sum(getattr(part, end) for part in parts) for end in ("low", "likely", "high")))

    def facts(self) -> dict[str, Any]:
        """All of it for machines."""
        totals = {what: span and asdict(span) for what in ("hours", *RATES, "asked") for span in [self.total(what)]}
        return {**asdict(self), "total": totals}


def needed(fleet: Fleet, at_once: int, cpu: float, gpu: float) -> list[tuple[Kind, int]]:
    """The workers that some trials at once bring, those first that are started first.

    Args:
        fleet: what may be started.
        at_once: trials.
        cpu: cores of a trial.
        gpu: GPUs of a trial.

    Raises:
        UserError: no node of the file has room for one.
    """
    left = at_once - nodes.room(fleet.head.cpu, fleet.head.gpu, cpu, gpu)
    found: list[tuple[Kind, int]] = []
    for kind, most in fleet.whole():
        room = nodes.room(kind.cpu, kind.gpu, cpu, gpu)
        count = min(most, max(kind.least, math.ceil(left / room) if room and left > 0 else 0))
        left -= count * room
        found.append((kind, count))
    if left >= at_once:
        raise UserError(f"{fleet.source}: available_node_types: {nodes.wish(cpu, gpu)}, and no node has room for one")
    return [(kind, count) for kind, count in found if count]


def quote(
    fleet: Fleet, prices: Prices, workers: Sequence[tuple[Kind, int]], wall_hours: Span, teacher_hours: float
) -> Quote:
    """Nodes, hours and money of a search.

    The head is up for as long as the search. One worker makes the teacher while no other is there yet; then all are up
    until the end, and for the time after which an idle one ends.

    Args:
        fleet: what may be started.
        prices: of machines.
        workers: kinds of workers, and how many of each (`needed`).
        wall_hours: from the start of the search to its end.
        teacher_hours: of them before the first trial.
    """
    idle, lines, lacking, first = fleet.idle_minutes / MINUTES, [], list[str](), True
    for kind, count in [(fleet.head, 1), *workers]:
        alone = 0 if kind.head or not first else 1
        first = first and kind.head
        later = 0 if kind.head else count - alone
        hours = Span(
            *(
                (count - later) * wall + later * max(0.0, wall - teacher_hours) + (0 if kind.head else count * idle)
                for wall in (wall_hours.low, wall_hours.likely, wall_hours.high)
            )
        )
        price = fleet.price(kind, prices)
        rates = (price.on_demand, price.on_demand if kind.head else price.spot)
        money = [None if rate is None else hours.times(rate) for rate in rates]
        for name, rate in zip(RATES, rates, strict=True):
            if rate is None and (name == "on_demand" or not kind.head):
                said = prices.lack(fleet.provider, fleet.region, kind.machine, f"{name}: 1.0")
                lacking.append(f"{name.replace('_', ' ')} price of {said}")
        source = ", ".join(filter(None, (price.source, price.date)))
        lines.append(Line(kind, count, hours, money[0], money[1], money[int(kind.spot)], source))
    return Quote(prices.currency, tuple(lines), tuple(dict.fromkeys(lacking)), fleet.idle_minutes)
