"""`hksd space`: show a space."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hksd_search.commands.options import Json, Overrides
from hksd_search.commands.output import Output

if TYPE_CHECKING:
    from hksd.config.run import RunConfig
    from hksd_search.space.sizes import Costs
    from hksd_search.space.space import Space

EXAMPLE = "`hksd space cifar10 --set data.root=data/cifar10`"
COUNTED = 2000  # points of a grid that are counted
BACKWARD = 3  # a training step costs about three forward passes


def space(
    name: Annotated[str, typer.Argument(metavar="SPACE", help="Name of a shipped space, or a path.")],
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(min=0, help="Sampled configurations to show.")] = 3,
    as_json: Json = False,
) -> None:
    """Show a search space: its ranges, sampled configurations, the share within its limits."""
    # Sizes need the shape of the images: where the data cannot be read, they are left out.
    from hksd import data as datasets
    from hksd.config import run as config
    from hksd.errors import UserError
    from hksd_search.space import grid
    from hksd_search.space import space as spaces
    from hksd_search.space.preview import DRAWS, check_knowledge, random_draws
    from hksd_search.space.sizes import Meter, check_feasible, within
    from hksd_search.strategy import samplers, stopping

    parsed = spaces.load(name, overrides or [])
    draws = max(samples, DRAWS)
    drawn = random_draws(parsed, draws)
    if not drawn:
        raise UserError(f"{parsed.source}: no random draw of this space makes a valid run")
    shape: dict[str, int] = {}
    try:
        shape = datasets.load(parsed.middle({}).data).image_shape
        meter = Meter(shape)
        sizes = [meter.costs(draw.student) for draw in drawn]
        largest = check_feasible(parsed, meter)
        share = sum(not within(parsed.search.limits, size) for size in sizes) / draws
        problem, knowledge = None, _knowledge(drawn, sizes, shape)
    except UserError as error:
        sizes, share, largest, problem, knowledge = [], None, None, str(error), None
    if shape:
        check_knowledge(parsed, shape)
    plain = list(parsed.alternatives.values()) or [parsed]
    drawable = list(dict.fromkeys(".".join(map(str, path)) for one in plain for path in one.ranges))
    distinct = len({config.config_hash(draw) for draw in drawn})
    points = grid.count(parsed, COUNTED)
    facts = {
        "name": parsed.name,
        "sampler": dict(zip(("name", "reason"), samplers.name_and_reason(parsed), strict=True)),
        "grid": points if points is None or points <= COUNTED else None,
        "ranges": {".".join(map(str, path)): str(spread) for path, spread in parsed.ranges.items()},
        "search": config.dump(parsed.search),
        "grace_epochs": stopping.grace_epochs(parsed),
        "share_within_limits": share,
        "problem": problem,
        "distinct": distinct,
        "draws": draws,
        "largest_student": config.dump(largest) if largest else None,
        "knowledge": knowledge,
        "samples": [config.canonical(draw) for draw in drawn[:samples]],
    }

    def show(console: Any) -> None:
        say = partial(console.print, highlight=False, markup=False)
        say(f"space {parsed.name} ({parsed.source})")
        _show_tree(say, parsed)
        limits = {key: value for key, value in config.dump(parsed.search.limits).items() if value is not None}
        say(f"trials {parsed.search.trials}, limits {limits or 'none'}, " + stopping.description(parsed))
        say(samplers.told(parsed))
        if points is not None:
            say(f"the grid of the space has {f'more than {COUNTED:,}' if points > COUNTED else f'{points:,}'} points")
        if problem:
            say(f"sizes unknown: {problem}")
        else:
            say(
                f"{share:.0%} of {draws} random draws are within the limits"
                f"{' (latency, which is not measured here, apart)' if parsed.search.asks_latency else ''}; "
                f"the arms take {largest.model} w{largest.width:g}, the largest"
                if largest
                else ""
            )
        say(f"{distinct} of {draws} random draws are different configurations")
        if knowledge:
            _show_knowledge(say, knowledge)
        for number, draw in enumerate(drawn[:samples]):
            flat = config.flatten(config.canonical(draw))
            mine = {key: flat[key] for key in drawable if key in flat}
            size = f"{sizes[number]['params']:,} parameters, {sizes[number]['mflops']:.2f} MFLOPs: " if sizes else ""
            say(
                f"sample {number + 1}: {size}"
                + ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in mine.items())
            )

    Output(as_json).give(facts, show)


def _knowledge(drawn: list[RunConfig], sizes: list[Costs], shape: dict[str, int]) -> dict[str, Any] | None:
    """For which share of the draws the teacher has to work in every step, why, and what that costs by FLOPs."""
    from hksd.models.size import size_of
    from hksd.teacher.plan import live_because

    why: dict[str, int] = defaultdict(int)
    times: list[float] = []
    for draw, size in zip(drawn, sizes, strict=True):
        if draw.teacher is None or not draw.terms.teacher_needs:
            continue
        asked = ["train.knowledge is live"] if draw.train.knowledge == "live" else []
        for reason in (reasons := live_because(draw, **shape) or asked):
            why[reason] += 1
        if reasons:
            times.append(1 + size_of(draw.teacher.spec(), **shape).mflops / (BACKWARD * size["mflops"]))
    return {
        "live_share": len(times) / len(drawn),
        "live_because": {reason: count / len(drawn) for reason, count in sorted(why.items())},
        "live_cost": median(times) if times else None,
    }


def _show_knowledge(say: Any, knowledge: dict[str, Any]) -> None:
    if not knowledge["live_share"]:
        say("no draw needs the teacher at work in every step: what it knows of each view is computed once for all")
        return
    say(
        f"{knowledge['live_share']:.0%} of the draws have the teacher at work in every step, which makes a step "
        f"{knowledge['live_cost']:.1f} times as long by FLOPs (median); the others share what it knows of each view"
    )
    for reason, share in knowledge["live_because"].items():
        say(f"  {reason}: {share:.0%}")


def _show_tree(say: Any, space: Space) -> None:
    """Print the ranges as a tree: a block that can be absent carries its knobs below it."""
    from hksd_search.space import alternatives

    if space.alternatives:
        say(f"  {alternatives.PARAMETER}: one of {', '.join(space.alternatives)}; the knobs of the others do not exist")
    shown: set[tuple[str | int, ...]] = set()
    for path, spread in space.ranges.items():
        for depth in range(1, len(path)):
            part = path[:depth]
            if part not in shown:
                shown.add(part)
                off = max((r.off for p, r in space.ranges.items() if p[:-1] == part), default=0.0)
                absent = f"  (absent with probability {off:g}; its knobs then do not exist)" if off else ""
                say("  " * depth + str(part[-1]) + absent)
        text = str(spread).split("  (block")[0]
        say("  " * len(path) + f"{path[-1]}: {text}")
