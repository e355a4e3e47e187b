"""`hksd estimate`: what a search would cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from hksd import bounds
from hksd.errors import UserError
from hksd_search.commands.options import DEFAULT_RUNS, Address, Json, Overrides, Runs, changes, number, path, whole
from hksd_search.commands.output import Output

if TYPE_CHECKING:
    from hksd_search.estimate.estimate import Estimate
    from hksd_search.estimate.forecast import Span
    from hksd_search.money.fleet import Fleet
    from hksd_search.money.quote import Quote

EXAMPLE = "`hksd estimate cifar10 --set data.root=data/cifar10 --trials 100 --price 0.5`"
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
GIB = 2**30


def estimate(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="Name of a shipped space, or a path.")],
    trials: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, bounds.TRIALS), metavar="N", help="Trials to train, in place of the space's number."
        ),
    ] = None,
    concurrent: Annotated[
        int | None,
        typer.Option(parser=whole(1, bounds.CONCURRENT), metavar="N", help="Trials at once, in place of the space's."),
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, bounds.CLUSTER), metavar="N", help="Cores that the search will have; default those here."
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            parser=whole(0, bounds.CLUSTER), metavar="N", help="GPUs that the search will have; default those here."
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(parser=number(), metavar="MONEY", help="Money that a device costs in an hour.")
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(
            parser=path, metavar="FILE", help="File for `ray up`: say what the search would take on its machines."
        ),
    ] = None,
    prices: Annotated[
        Path | None,
        typer.Option(parser=path, metavar="FILE", help="Your own prices of machines, for --cluster; see docs."),
    ] = None,
    address: Address = None,
    overrides: Overrides = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Measure a few steps and say what a search would take: time, memory, money. Trains and keeps nothing."""
    from hksd_search.backend import reach
    from hksd_search.estimate.estimate import estimate as measure
    from hksd_search.estimate.question import machine_here
    from hksd_search.money import fleet as fleets
    from hksd_search.money import prices as price_files
    from hksd_search.money import quote as quotes
    from hksd_search.space import space as spaces

    output = Output(as_json)
    if cluster is None and prices is not None:
        raise UserError("--prices: gives prices of the machines of a cluster; add --cluster FILE")
    if cluster is not None and (cpus is not None or gpus is not None):
        raise UserError("--cluster: the file says what its machines have; leave out --cpus and --gpus")
    known = price_files.known(prices)
    fleet = None if cluster is None else fleets.read(cluster, known)
    changed = changes(overrides, {"--concurrent": concurrent, "--price": price})
    parsed = spaces.load(space, changed).with_trials(trials)
    reach.must_answer(address)
    machine = machine_here(address, cpus, gpus)
    if fleet is not None:
        all_cpus, all_gpus = fleet.resources()
        machine = replace(machine, cpus=int(all_cpus), gpus=all_gpus if machine.gpus else 0.0)

    def say(text: str) -> None:
        output.console.print(text, highlight=False, markup=False)

    with spaces.document(space, changed).placing():
        found = measure(parsed, machine, runs=runs, say=say)
    quoted = None
    if fleet is not None:
        wanted = quotes.needed(fleet, found.at_once, parsed.search.resources.cpu, found.gpu)
        quoted = quotes.quote(fleet, known, wanted, found.wall_hours, found.teacher_seconds / HOUR)

    def show(console: Console) -> None:
        for line in lines(found, parsed.search.max_device_hours, parsed.search.max_cost):
            console.print(line, highlight=False, markup=False)
        if fleet is not None and quoted is not None:
            for line in cluster_lines(found, fleet, quoted):
                console.print(line, highlight=False, markup=False)

    facts: dict[str, Any] = {"name": parsed.name, **found.facts()}
    if fleet is not None and quoted is not None:
        facts["cluster"] = {**quoted.facts(), "file": str(cluster), "assumed": assumptions(found, fleet)}
    output.give(facts, show)


def duration(seconds: float) -> str:
    """A time for people: seconds, minutes, hours or days, to two or three digits."""
    for unit, size in (("days", DAY), ("h", HOUR), ("min", MINUTE)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 100 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def between(span: Span, show: Any) -> str:
    """The likely value, with the low and the high one behind it."""
    return f"{show(span.likely)}  ({show(span.low)} to {show(span.high)})"


def lines(found: Estimate, max_device_hours: float | None, max_cost: float | None) -> list[str]:
    """An estimate for people: likely values, low and high ones in brackets."""
    from hksd.teacher.teacher import FAMILIAR

    kinds = {"teacher": "the teacher", "attention": "attention estimators"}
    parts = " and ".join(kinds[part] for part in dict.fromkeys(found.missing))
    stage = f"{duration(found.teacher_seconds)}, training {parts}" if found.missing else "cached"
    if found.knowledge_seconds:
        stage += f"; what it says of all views: {duration(found.knowledge_seconds)}, once, within the trials"
    device = "GPU" if found.gpu else "a trial's cores"
    said = [
        f"teacher stage   {stage}",
        f"a trial         {between(found.trial_seconds, duration)} of training, "
        f"{found.expected_epochs:.1f} of {found.epochs} epochs expected",
        f"the search      {between(found.wall_hours.times(HOUR), duration)} for {found.trials} trials, "
        f"{found.at_once} at once",
        f"device hours    {between(found.device_hours, lambda value: f'{value:.3g}')}, a device being {device}",
        f"memory          {found.peak_bytes / GIB:.1f} GiB for each trial process"
        + (f", {found.gpu_bytes / GIB:.1f} GiB of its GPU" if found.gpu else ""),
    ]
    if found.gpu_reason:
        said.append(f"GPUs            {found.gpu_reason}")
    if found.cost is not None:
        said.append(
            f"money           {between(found.cost, lambda value: f'{value:.2f}')} at {found.price:g} a device hour"
        )
    said += [
        f"warning: search.{name} = {cap:g} ends it early, at about {cap / likely:.0%}"
        for name, cap, likely in (
            ("max_device_hours", max_device_hours, found.device_hours.likely),
            ("max_cost", max_cost, found.cost.likely if found.cost else 0.0),
        )
        if cap is not None and likely > cap
    ]
    if found.familiar:
        said.append(f"warning: the teacher is loaded: {FAMILIAR}; search.max_drop counts from that accuracy")
    said.append(f"measured in {duration(found.seconds)}: some steps of {found.measured} runs, {found.workers} at once")
    return said


def cluster_lines(found: Estimate, fleet: Fleet, quoted: Quote) -> list[str]:
    """What the search takes on a cluster, for people: its nodes, their hours, money, and what is assumed."""
    said = []
    for line in quoted.lines:
        market = "spot" if line.kind.spot else "on demand"
        hours = between(line.hours, lambda value: f"{value:.3g}")
        source = f"; price: {line.source}" if line.source else ""
        said.append(f"{line.count} x {line.kind.name}: {line.kind.machine}, {market}, {hours} node hours{source}")
    for what, title in (("asked", "as the file has it"), ("on_demand", "all on demand"), ("spot", "workers as spot")):
        money = quoted.total(what)
        shown = "not known" if money is None else f"{between(money, lambda v: f'{v:.2f}')} {quoted.currency}"
        said.append(f"money, {title}: {shown}")
    said += [f"not known: {lack}" for lack in quoted.lacking]
    said += [f"assumed: {text}" for text in assumptions(found, fleet)]
    return [f"{'cluster' if not place else '':<16}{text}" for place, text in enumerate(said)]


def assumptions(found: Estimate, fleet: Fleet) -> list[str]:
    """What a quote takes for granted."""
    if found.gpu:
        speed = "each GPU is as fast as the one that was measured"
    elif any(kind.gpu for kind in fleet.workers):
        speed = (
            "trials run on processor cores as fast as those that were measured: this says nothing about the GPUs of "
            "these machines; run the estimate where there is such a GPU"
        )
    else:
        speed = "processor cores are as fast as those that were measured"
    return [
        speed,
        f"machines are up for the search, workers {fleet.idle_minutes:g} min longer; the head costs until you end it",
        "the time in which machines start, disks, traffic and tax are not counted",
    ]
