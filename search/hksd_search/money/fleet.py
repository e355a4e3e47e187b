"""The machines that a file for `ray up` may start: which, how many, on demand or spot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hksd.errors import UserError, describe, nearest
from hksd.yaml import FILE_BYTES
from hksd_search.money.prices import Price, Prices

PROVIDERS = ("aws", "gcp")
IDLE_MINUTES = 5.0  # Ray's own idle_timeout_minutes where a file does not say
RATES = ("on_demand", "spot")


@dataclass(frozen=True)
class Kind:
    """A node type of the file.

    Attributes:
        name: in the file.
        machine: the type of machine.
        spot: it may be taken away, and costs less.
        cpu: processor cores for trials.
        gpu: GPUs.
        least: nodes that are always up.
        most: nodes at once.
        priority: those with the highest are started first.
        head: the head of the cluster, of which there is one.
    """

    name: str
    machine: str
    spot: bool
    cpu: float
    gpu: float
    least: int
    most: int
    priority: float = 0.0
    head: bool = False


@dataclass(frozen=True)
class Fleet:
    """What a file may start.

    Attributes:
        source: the file.
        provider: ``aws`` or ``gcp``.
        region: where.
        kinds: the head first, then workers, those that are started first before the others.
        most: workers at once, of all kinds together.
        idle_minutes: after which a worker without work ends.
    """

    source: str
    provider: str
    region: str
    kinds: tuple[Kind, ...]
    most: int
    idle_minutes: float

    @property
    def head(self) -> Kind:
        """The head."""
        return self.kinds[0]

    @property
    def workers(self) -> tuple[Kind, ...]:
        """All other kinds."""
        return self.kinds[1:]

    def price(self, kind: Kind, prices: Prices) -> Price:
        """What a machine of a kind costs; without figures where that is not known."""
        return prices.find(self.provider, self.region, kind.machine) or Price()

    def whole(self) -> list[tuple[Kind, int]]:
        """The workers that there are when all have come that may, those first that are started first."""
        left, found = max(0, self.most - sum(kind.least for kind in self.workers)), []
        for kind in self.workers:
            more = min(kind.most - kind.least, left)
            left -= more
            found.append((kind, kind.least + more))
        return [(kind, count) for kind, count in found if count]

    def resources(self) -> tuple[float, float]:
        """Cores and GPUs for trials, of all machines that may come."""
        every = [(self.head, 1), *self.whole()]
        return sum(kind.cpu * count for kind, count in every), sum(kind.gpu * count for kind, count in every)

    def kind_of(self, name: str | None, cpu: float, gpu: float) -> list[Kind]:
        """The kinds that a node may be of: the one of that name, else those that have what it has.

        Args:
            name: its node type, where that is known.
            cpu: cores that Ray counts there.
            gpu: GPUs that Ray counts there.
        """
        named = [kind for kind in self.kinds if kind.name == name]
        return named or [kind for kind in self.kinds if (kind.cpu, kind.gpu) == (cpu, gpu)]


def read(file: Path, prices: Prices) -> Fleet:
    """Read a file for `ray up`, as Ray reads it.

    Args:
        file: the file.
        prices: say what machines have whose resources the file leaves out.

    Raises:
        UserError: it cannot be read, or is no such file, with the key path of the fault.
    """
    try:
        with file.open("rb") as content:
            text = content.read(FILE_BYTES + 1)
        tree = yaml.safe_load(text.decode("utf-8")) if len(text) <= FILE_BYTES else None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{file}: {where}no YAML: {getattr(error, 'problem', None) or error}") from error
    if len(text) > FILE_BYTES:
        raise UserError(f"{file}: more than {FILE_BYTES:,} bytes, which no file of a cluster has")
    return of_tree(tree, str(file), prices)


def of_tree(tree: Any, source: str, prices: Prices) -> Fleet:
    """The machines of such a file (Ray's documentation, "Cluster YAML Configuration Options").

    Args:
        tree: the file.
        source: its name, for messages.
        prices: see `read`.

    Raises:
        UserError: see `read`.
    """
    try:
        return _of_tree(_Place(tree), source, prices)
    except _FaultError as fault:
        raise UserError(f"{source}: {fault}") from None


class _FaultError(Exception):
    """What is wrong, with its key path before it."""


class _Place:
    """A value of the file, which knows its key path."""

    def __init__(self, value: Any, path: str = ""):
        self.value, self.path = value, path

    def wrong(self, what: str) -> _FaultError:
        return _FaultError(f"{self.path or 'the file'}: {what} (got {describe(self.value)})")

    def mapping(self) -> Mapping[str, Any]:
        if not isinstance(self.value, dict) or not self.value:
            raise self.wrong("must be a mapping")
        return self.value

    def __getitem__(self, key: str) -> _Place:
        if key not in (have := self.mapping()):
            path = f"{self.path}.{key}" if self.path else key
            raise _FaultError(f"{path}: this key is required{nearest(key, [str(one) for one in have])}")
        return _Place(have[key], f"{self.path}.{key}" if self.path else key)

    def get(self, key: str, default: Any) -> _Place:
        have = self.value if isinstance(self.value, dict) else {}
        return self[key] if have.get(key) is not None else _Place(default, f"{self.path}.{key}")

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.wrong("must be a text")
        return self.value

    def number(self) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not 0 <= self.value < 1e9:
            raise self.wrong("must be a number from 0")
        return float(self.value)

    def count(self) -> int:
        found = self.number()
        if found != int(found):
            raise self.wrong("must be a whole number")
        return int(found)


def _of_tree(tree: _Place, source: str, prices: Prices) -> Fleet:
    provider = tree["provider"]["type"].text()
    if provider not in PROVIDERS:
        raise _FaultError(
            f"provider.type: machines of {provider} have no prices, only those of {' and '.join(PROVIDERS)}; "
            "--price gives money for a device hour without --cluster"
        )
    region = tree["provider"]["region"].text()
    types, head = tree["available_node_types"], tree["head_node_type"].text()
    if head not in types.mapping():
        raise _FaultError(f"head_node_type: {head} is none of available_node_types{nearest(head, types.mapping())}")
    most = tree.get("max_workers", 2).count()  # Ray's own default
    kinds = [_kind(types[name], name, name == head, most, (provider, region), prices) for name in types.mapping()]
    kinds.sort(key=lambda kind: (not kind.head, -kind.priority))
    return Fleet(source, provider, region, tuple(kinds), most, tree.get("idle_timeout_minutes", IDLE_MINUTES).number())


def _kind(node: _Place, name: str, head: bool, most: int, where: tuple[str, str], prices: Prices) -> Kind:
    settings = node["node_config"]
    if where[0] == "aws":
        machine = settings["InstanceType"].text()
        spot = settings.get("InstanceMarketOptions", {}).get("MarketType", "").value == "spot"
    else:
        machine = settings["machineType"].text().rpartition("/")[2]
        schedule = settings.get("scheduling", {})
        spot = schedule.get("provisioningModel", "").value == "SPOT" or schedule.get("preemptible", False).value is True
    have, price = node.get("resources", {}), prices.find(*where, machine)
    if "CPU" in (have.value or {}):
        cpu, gpu = have["CPU"].number(), have.get("GPU", 0).number()
    elif price is not None and price.cpus is not None:
        cpu, gpu = float(price.cpus), float(price.gpus or 0)
    else:
        raise _FaultError(
            f"{node.path}: what it has is not known: write resources: {{CPU: .., GPU: ..}}, or "
            f"{prices.lack(*where, machine, 'cpus: 4, gpus: 1, on_demand: 1.0')}"
        )
    least = 0 if head else node.get("min_workers", 0).count()
    return Kind(
        name=name,
        machine=machine,
        spot=spot,
        cpu=cpu,
        gpu=gpu,
        least=least,
        most=1 if head else max(least, node.get("max_workers", most).count()),
        priority=node.get("priority", 0).number(),
        head=head,
    )
