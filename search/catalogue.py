"""Commands that show what there is: methods and spaces."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from hksd import budget, config, models, schema
from hksd.errors import UserError, unknown
from hksd.knowledge import live_because
from hksd.modes import MODES, ModeEntry
from hksd.terms import TERMS, TermEntry
from search import alternatives, stopping
from search import space as spaces
from search.costs import Costs, Meter, check_feasible, within
from search.sampling import grid, samplers
from search.sampling.preview import DRAWS, check_knowledge, random_draws

if TYPE_CHECKING:
    from search.output import Output

COUNTED = 2000  # points of a grid that are counted
BACKWARD = 3  # a training step costs about three forward passes
DATASETS = {
    "digits": "scikit-learn's handwritten digits, 1,797 images of 8x8, embedded",
    "cifar10": "A. Krizhevsky 2009; torchvision's files, Hugging Face parquet files or class folders in data.root",
    "cifar100": "A. Krizhevsky 2009; the same three layouts",
    "tcifar10": "cifar10 with additive Gaussian artefacts on training and test images (arXiv 1911.05329)",
    "tcifar100": "cifar100, likewise",
    "svhn": "cropped house numbers, Netzer et al. 2011 (without the part extra); the same three layouts",
    "stl10": "Coates et al. 2011, labelled images of 96x96; the same three layouts",
    "fashion_mnist": "Xiao et al. 2017, 28x28 gray (arXiv 1708.07747); the same three layouts",
    "tiny_imagenet": "200 classes of ImageNet at 64x64, as the archive unpacks (train, val); streamed",
    "imagenet": "Russakovsky et al. 2015, 1,000 classes: data.root/train/<class>/*.JPEG and val/<class>/; streamed",
    "folder": "your images: data.root/train/<class>/*.png and test/<class>/, or parquet files",
}
OWN_NETWORK = (
    "model: package.module:factory, a function that takes some of classes, in_channels, width, image_size and returns "
    "an nn.Module; name its stages in taps"
)


def show_methods(output: Output, names: list[str]) -> None:
    """See `hksd methods`.

    Raises:
        UserError: a name that is no term and no mode.
    """
    registries: dict[str, TermEntry | ModeEntry] = {**TERMS, **MODES}
    described = {name: _described(entry) for name, entry in registries.items()}
    for name in names:
        if name not in described:
            raise UserError(unknown("method", name, described))
    chosen = {name: described[name] for name in names or described}
    networks = {name: entry.source for name, entry in models.MODELS.items()}
    if names:
        output.give({"methods": chosen}, lambda console: _show_knobs(partial(_say, console), chosen))
        return

    def show(console: Any) -> None:
        say = partial(_say, console)
        for title, registry in (("terms of the loss", TERMS), ("modes of training", MODES)):
            say(f"{title} (`hksd methods NAME` has the knobs)")
            for name in registry:
                say(f"  {name}: {chosen[name]['summary']}  [{chosen[name]['source']}]")
        say("networks (teachers and students)")
        by_source = defaultdict(list)
        for name, source in networks.items():
            by_source[source].append(name)
        for source, members in by_source.items():
            say(f"  {', '.join(members)}  [{source}]")
        say("  package.module:factory  [your own]")
        say("data sets")
        for name, text in DATASETS.items():
            say(f"  {name}: {text}")

    parts = {"terms": list(TERMS), "modes": list(MODES)}
    facts = {part: {name: chosen[name] for name in members} for part, members in parts.items()}
    output.give({**facts, "models": networks, "datasets": DATASETS}, show)


def _say(console: Any, text: str) -> None:
    console.print(text, highlight=False, markup=False)


def _described(entry: TermEntry | ModeEntry) -> dict[str, Any]:
    term = isinstance(entry, TermEntry)
    return {
        "summary": entry.summary,
        "source": entry.source,
        "usual": " ".join((entry.config.__doc__ or "").split()),
        **({"needs": sorted(entry.config.teacher_needs)} if term else {}),  # type: ignore[attr-defined]
        "knobs": [knob.__dict__ for knob in schema.knobs(entry.config)],
    }


def _show_knobs(say: Any, methods: dict[str, dict[str, Any]]) -> None:
    for name, method in methods.items():
        say(f"{name}: {method['summary']}  [{method['source']}]")
        say(f"  {method['usual']}")
        if "needs" in method:
            say(f"  of the teacher it reads {', '.join(method['needs']) or 'nothing'}")
        for knob in method["knobs"]:
            say(f"  {knob['name']}: {knob['type']}, default {knob['default']} - {knob['description']}")


def show_space(output: Output, name: str, overrides: list[str], samples: int) -> None:
    """See `hksd space`. Sizes need the shape of the images: where the data cannot be read, they are left out."""
    from hksd import data as datasets
    from hksd import loop

    space = spaces.load(name, overrides)
    draws = max(samples, DRAWS)
    drawn = random_draws(space, draws)
    if not drawn:
        raise UserError(f"{space.source}: no random draw of this space makes a valid run")
    shape: dict[str, int] = {}
    try:
        shape = loop.image_shape(datasets.load(space.middle({}).data))
        meter = Meter(shape)
        sizes = [meter.costs(draw.student) for draw in drawn]
        largest = check_feasible(space, meter)
        share = sum(not within(space.search.limits, size) for size in sizes) / draws
        problem, knowledge = None, _knowledge(drawn, sizes, shape)
    except UserError as error:
        sizes, share, largest, problem, knowledge = [], None, None, str(error), None
    if shape:
        check_knowledge(space, shape)
    plain = list(space.alternatives.values()) or [space]
    drawable = list(dict.fromkeys(".".join(map(str, path)) for one in plain for path in one.ranges))
    distinct = len({config.config_hash(draw) for draw in drawn})
    points = grid.count(space, COUNTED)
    facts = {
        "name": space.name,
        "sampler": dict(zip(("name", "reason"), samplers.chosen(space), strict=True)),
        "grid": points if points is None or points <= COUNTED else None,
        "ranges": {".".join(map(str, path)): str(spread) for path, spread in space.ranges.items()},
        "search": config.dump(space.search),
        "grace_epochs": stopping.grace_epochs(space),
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
        say(f"space {space.name} ({space.source})")
        _show_tree(say, space)
        limits = {key: value for key, value in config.dump(space.search.limits).items() if value is not None}
        say(f"trials {space.search.trials}, limits {limits or 'none'}, " + stopping.description(space))
        say(samplers.told(space))
        if points is not None:
            say(f"the grid of the space has {f'more than {COUNTED:,}' if points > COUNTED else f'{points:,}'} points")
        if problem:
            say(f"sizes unknown: {problem}")
        else:
            say(
                f"{share:.0%} of {draws} random draws are within the limits"
                f"{' (latency, which is not measured here, apart)' if space.search.asks_latency else ''}; "
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

    output.give(facts, show)


def _knowledge(drawn: list[config.RunConfig], sizes: list[Costs], shape: dict[str, int]) -> dict[str, Any] | None:
    """For which share of the draws the teacher has to work in every step, why, and what that costs by FLOPs."""
    why: dict[str, int] = defaultdict(int)
    times: list[float] = []
    for draw, size in zip(drawn, sizes, strict=True):
        if draw.teacher is None or not draw.terms.teacher_needs:
            continue
        asked = ["train.knowledge is live"] if draw.train.knowledge == "live" else []
        for reason in (reasons := live_because(draw, **shape) or asked):
            why[reason] += 1
        if reasons:
            times.append(1 + budget.size(draw.teacher, **shape).mflops / (BACKWARD * size["mflops"]))
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


def _show_tree(say: Any, space: spaces.Space) -> None:
    """Print the ranges as a tree: a block that can be absent carries its knobs below it."""
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
