"""`hksd space`: show a space."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from hksd import bounds
from hksd_search.commands.options import Json, Overrides, changes, whole
from hksd_search.commands.output import Output

if TYPE_CHECKING:
    from hksd.config.networks import StudentConfig
    from hksd.config.run import RunConfig
    from hksd.yaml import Override
    from hksd_search.space.sizes import Costs
    from hksd_search.space.space import Space

EXAMPLE = "`hksd space cifar10 --set data.root=data/cifar10`"
COUNTED = 2000  # points of a grid that are counted
BACKWARD = 3  # a training step costs about three forward passes


def space(
    name: Annotated[str, typer.Argument(metavar="SPACE", help="Name of a shipped space, or a path.")],
    overrides: Overrides = None,
    samples: Annotated[
        int, typer.Option(parser=whole(0, bounds.GRID_POINTS), metavar="N", help="Sampled configurations to show.")
    ] = 3,
    as_json: Json = False,
) -> None:
    """Show a search space: its ranges, sampled configurations, the share within its limits."""
    from hksd_search.space import space as spaces
    from hksd_search.space.preview import DRAWS

    changed = changes(overrides)
    parsed = spaces.load(name, changed)
    draws = max(samples, DRAWS)
    seen = _look(parsed, draws, name, changed)
    facts = _facts(parsed, seen, samples, draws)
    Output(as_json).give(facts, lambda console: _show(console, parsed, seen, samples, draws))


@dataclass(frozen=True)
class _Seen:
    """What random draws show of a space.

    Attributes:
        drawn: the draws.
        distinct: how many different ones there are.
        points: size of its grid, up to `COUNTED` and one; None where it has none.
        problem: why sizes are not known.
        sizes: of the students of the draws; empty where they are not known.
        share: of the draws within the limits.
        largest: the largest student within the limits.
        knowledge: see `_knowledge`.
    """

    drawn: list[RunConfig]
    distinct: int
    points: int | None
    problem: str | None = None
    sizes: list[Costs] = field(default_factory=list)
    share: float | None = None
    largest: StudentConfig | None = None
    knowledge: dict[str, Any] | None = None


def _look(space: Space, count: int, name: str, overrides: Sequence[Override]) -> _Seen:
    """Draw from a space. Sizes need the shape of the images: where the data cannot be read, they are left out.

    Raises:
        UserError: no draw makes a valid run, a network of the user's own does not work, or a run wants knowledge of
            views that cannot be enough.
    """
    from hksd import data as datasets
    from hksd.config.run import config_hash
    from hksd.errors import UserError
    from hksd.models import NetworkError
    from hksd.models.user import is_user
    from hksd_search.space import grid
    from hksd_search.space import space as spaces
    from hksd_search.space.preview import check_knowledge, random_draws
    from hksd_search.space.sizes import Meter, check_feasible, within

    drawn = random_draws(space, count)
    if not drawn:
        raise UserError(f"{space.source}: no random draw of this space makes a valid run")
    seen = _Seen(drawn, len({config_hash(draw) for draw in drawn}), grid.count(space, COUNTED))
    shape: dict[str, int] = {}
    try:
        shape = datasets.load(space.middle({}).data).image_shape
        meter = Meter(shape)
        sizes = [meter.costs(draw.student) for draw in drawn]
        largest = check_feasible(space, meter)
        share = sum(not within(space.search.limits, size) for size in sizes) / count
        seen = replace(seen, sizes=sizes, share=share, largest=largest, knowledge=_knowledge(drawn, sizes, shape))
    except UserError as error:
        networks = {part.model for draw in drawn for part in (draw.student, draw.teacher) if part is not None}
        if isinstance(error, NetworkError) and any(map(is_user, networks)):
            with spaces.document(name, overrides).placing():
                raise
        seen = replace(seen, problem=str(error))
    if shape:
        check_knowledge(space, shape)
    return seen


def _facts(space: Space, seen: _Seen, samples: int, draws: int) -> dict[str, Any]:
    """A space for machines."""
    from hksd.config.run import canonical, dump
    from hksd_search.strategy import samplers, stopping

    return {
        "name": space.name,
        "sampler": dict(zip(("name", "reason"), samplers.name_and_reason(space), strict=True)),
        "grid": seen.points if seen.points is None or seen.points <= COUNTED else None,
        "ranges": {".".join(map(str, path)): str(spread) for path, spread in space.ranges.items()},
        "search": dump(space.search),
        "grace_epochs": stopping.grace_epochs(space),
        "share_within_limits": seen.share,
        "problem": seen.problem,
        "distinct": seen.distinct,
        "draws": draws,
        "largest_student": dump(seen.largest) if seen.largest else None,
        "knowledge": seen.knowledge,
        "samples": [canonical(draw) for draw in seen.drawn[:samples]],
    }


def _show(console: Console, space: Space, seen: _Seen, samples: int, draws: int) -> None:
    """A space for people."""
    from hksd.config.run import dump
    from hksd_search.strategy import samplers, stopping

    say = partial(console.print, highlight=False, markup=False)
    say(f"space {space.name} ({space.source})")
    _show_tree(say, space)
    limits = {key: value for key, value in dump(space.search.limits).items() if value is not None}
    say(f"trials {space.search.trials}, limits {limits or 'none'}, " + stopping.description(space))
    say(samplers.told(space))
    if seen.points is not None:
        many = f"more than {COUNTED:,}" if seen.points > COUNTED else f"{seen.points:,}"
        say(f"the grid of the space has {many} points")
    if seen.largest is None:
        say(f"sizes unknown: {seen.problem}")
    else:
        unmeasured = " (latency, which is not measured here, apart)" if space.search.asks_latency else ""
        say(
            f"{seen.share:.0%} of {draws} random draws are within the limits{unmeasured}; "
            f"the arms take {seen.largest.model} w{seen.largest.width:g}, the largest"
        )
    say(f"{seen.distinct} of {draws} random draws are different configurations")
    if seen.knowledge:
        _show_knowledge(say, seen.knowledge)
    _show_samples(say, space, seen, samples)


def _show_samples(say: Any, space: Space, seen: _Seen, samples: int) -> None:
    """The first draws: sizes, and the values of what was drawn."""
    from hksd.config.run import canonical, flatten

    plain = list(space.alternatives.values()) or [space]
    drawable = list(dict.fromkeys(".".join(map(str, path)) for one in plain for path in one.ranges))
    for number, draw in enumerate(seen.drawn[:samples]):
        flat = flatten(canonical(draw))
        mine = {key: flat[key] for key in drawable if key in flat}
        costs = seen.sizes[number] if seen.sizes else None
        size = f"{costs['params']:,} parameters, {costs['mflops']:.2f} MFLOPs: " if costs else ""
        values = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in mine.items())
        say(f"sample {number + 1}: {size}{values}")


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
