"""Prices of machines, by provider, region and machine: those that come with hksd, and a user's own before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from hksd.bounds import CLUSTER, MONEY
from hksd.errors import UserError, nearest
from hksd.schema import Section, check
from hksd.yaml import read_yaml

SHIPPED = Path(__file__).with_name("prices.yaml")


@dataclass(frozen=True, kw_only=True)
class Price(Section):
    """What a machine costs, and has."""

    on_demand: Annotated[float | None, Field(ge=0, le=MONEY, description="money for an hour")] = None
    spot: Annotated[float | None, Field(ge=0, le=MONEY, description="the same, where it may be taken away")] = None
    cpus: Annotated[int | None, Field(ge=1, le=CLUSTER, description="processor cores (vCPU)")] = None
    gpus: Annotated[int | None, Field(ge=0, le=CLUSTER, description="GPUs")] = None
    source: Annotated[str, Field(description="where the figures are from")] = ""
    date: Annotated[str, Field(description="when they were so")] = ""


Regions = dict[str, dict[str, Price]]  # region -> machine -> price


@dataclass(frozen=True, kw_only=True)
class _File(Section):
    """A file of prices; each price is looked at by itself."""

    currency: Annotated[str, Field(min_length=1, max_length=20, description="of all figures")] = "USD"
    machines: Annotated[
        dict[str, dict[str, dict[str, Any]]], Field(description="provider -> region -> machine -> price")
    ]


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices of machines.

    Attributes:
        currency: of all figures.
        machines: provider -> region -> machine -> price.
    """

    currency: str = "USD"
    machines: Mapping[str, Regions] = field(default_factory=dict)

    def find(self, provider: str, region: str, machine: str) -> Price | None:
        """The price of a machine; None where it has none."""
        return self.machines.get(provider, {}).get(region, {}).get(machine)

    def lack(self, provider: str, region: str, machine: str, what: str) -> str:
        """What is said of a figure that is not known: what is nearest to it, and how to give it.

        Args:
            provider: of the machine.
            region: where it is.
            machine: its type.
            what: the keys that are missing, as they are written: ``on_demand: 1.0``.
        """
        known = self.machines.get(provider, {})
        elsewhere = [name for name, there in known.items() if machine in there and name != region]
        near = nearest(machine, known.get(region, {}) or [m for there in known.values() for m in there])
        if machine in known.get(region, {}):
            near = ""
        elif elsewhere:
            near = f"; it is known in {', '.join(elsewhere)}"
        form = f"machines: {{{provider}: {{{region}: {{{machine}: {{{what}}}}}}}}}"
        return f"{machine} in {region}{near}; give it with --prices FILE, which says `{form}`"

    def before(self, other: Prices) -> Prices:
        """These prices, and those of `other` where there are none; of another currency nothing is taken over."""
        if other.currency != self.currency:
            return self
        merged: dict[str, Regions] = {}
        for provider in {**other.machines, **self.machines}:
            mine, theirs = self.machines.get(provider, {}), other.machines.get(provider, {})
            merged[provider] = {
                region: _merged(mine.get(region, {}), theirs.get(region, {})) for region in {**theirs, **mine}
            }
        return replace(self, machines=merged)


def _merged(mine: Mapping[str, Price], theirs: Mapping[str, Price]) -> dict[str, Price]:
    """Machine by machine, figure by figure: of a price that is given what it has counts, of the rest the other."""
    found = dict(theirs)
    for machine, price in mine.items():
        base = theirs.get(machine, Price())
        given = {name: value for name, value in price.__dict__.items() if value not in (None, "")}
        found[machine] = replace(base, **given)
    return found


def read(file: Path) -> Prices:
    """Read a file of prices.

    Raises:
        UserError: it cannot be read, or is no file of prices; with the key path of each fault.
    """
    document = read_yaml(file)
    found, problems = check(_File, document.tree)
    machines: dict[str, Regions] = {}
    for provider, regions in (found.machines if found else {}).items():
        for region, there in regions.items():
            for machine, tree in there.items():
                price, faults = check(Price, tree)
                place = ("machines", provider, region, machine)
                problems += [replace(fault, path=(*place, *fault.path)) for fault in faults]
                machines.setdefault(provider, {}).setdefault(region, {})[machine] = price or Price()
    if found is None or problems:
        raise document.error(problems)
    return Prices(currency=found.currency, machines=machines)


def known(file: Path | None = None) -> Prices:
    """The prices that come with hksd, after those of a user's own file.

    Raises:
        UserError: see `read`.
    """
    shipped = read(SHIPPED)
    if file is None:
        return shipped
    own = read(file)
    if not any(there for regions in own.machines.values() for there in regions.values()):
        raise UserError(f"{file}: machines: has no price; see {SHIPPED} for the form")
    return _named(own, file).before(shipped)


def _named(own: Prices, file: Path) -> Prices:
    """Own prices, of which each that names no source comes from its file."""
    machines = {
        provider: {
            region: {
                machine: price if price.source else replace(price, source=str(file)) for machine, price in there.items()
            }
            for region, there in regions.items()
        }
        for provider, regions in own.machines.items()
    }
    return replace(own, machines=machines)
