"""What the nodes of a cluster have cost so far: from the times at which they came and went to hours and money."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hksd_search.money.fleet import Fleet
from hksd_search.money.prices import Prices

HOUR = 3600.0  # seconds


@dataclass(frozen=True)
class Stay:
    """A node that was up, or is.

    Attributes:
        node: its name, or what else no other node has.
        since: when it came, seconds since 1970.
        until: when it went; None while it is up.
        kind: its node type in the file of the cluster, where that is known.
        cpu: processor cores that Ray counts there.
        gpu: GPUs that Ray counts there.
    """

    node: str
    since: float
    until: float | None = None
    kind: str | None = None
    cpu: float = 0.0
    gpu: float = 0.0


@dataclass(frozen=True)
class Rate:
    """What an hour of a node costs.

    Attributes:
        money: for an hour; None where that is not known.
        at_most: it may be less: a spot machine whose spot price is not known counts as one on demand, and a node that
            may be of several kinds as the dearest.
    """

    money: float | None
    at_most: bool = False


@dataclass(frozen=True)
class Bill:
    """What nodes cost.

    Attributes:
        hours: of all of them.
        money: for those whose price is known.
        unpriced_hours: of those whose price is not.
        unpriced: names of those.
        at_most: it may be less (see `Rate`).
    """

    hours: float
    money: float
    unpriced_hours: float = 0.0
    unpriced: tuple[str, ...] = ()
    at_most: bool = False


def rates(fleet: Fleet, prices: Prices) -> Callable[[Stay], Rate]:
    """What a node of a fleet costs.

    Args:
        fleet: what the file of the cluster may start.
        prices: of machines.
    """

    def rate(stay: Stay) -> Rate:
        found: list[Rate] = []
        for kind in fleet.kind_of(stay.kind, stay.cpu, stay.gpu):
            price = fleet.price(kind, prices)
            own = price.spot if kind.spot else price.on_demand
            found.append(Rate(own) if own is not None else Rate(price.on_demand, at_most=True))
        if not found or any(one.money is None for one in found):
            return Rate(None)
        dearest = max(found, key=lambda one: one.money or 0.0)
        return Rate(dearest.money, dearest.at_most or any(one.money != dearest.money for one in found))

    return rate


def bill(stays: Iterable[Stay], rate: Callable[[Stay], Rate], now: float) -> Bill:
    """What some nodes have cost until now. A node that is told twice for the same time counts once.

    Args:
        stays: when each was up.
        rate: what an hour of one costs, `rates` say.
        now: seconds since 1970; those that are up are counted until then.
    """
    by_node: dict[tuple[str, Rate], list[tuple[float, float]]] = {}
    for stay in stays:
        until = now if stay.until is None else min(stay.until, now)
        by_node.setdefault((stay.node, rate(stay)), []).append((stay.since, until))
    hours = money = unpriced_hours = 0.0
    unpriced: dict[str, None] = {}
    at_most = False
    for (node, price), spans in by_node.items():
        took = _union(spans) / HOUR
        hours += took
        if price.money is None:
            unpriced_hours += took
            unpriced[node] = None
        else:
            money += took * price.money
            at_most = at_most or (price.at_most and took > 0)
    return Bill(hours, money, unpriced_hours, tuple(unpriced), at_most)


def _union(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds that lie in any of some spans of time."""
    total, reached = 0.0, float("-inf")
    for since, until in sorted(spans):
        total += max(0.0, until - max(since, reached))
        reached = max(reached, until)
    return total
