"""Commands that show what there is: methods and spaces."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any

import optuna

from hksd import budget, config, models, schema
from hksd.errors import ConfigError, UserError
from hksd.terms import TERMS
from search import alternatives
from search import space as spaces

if TYPE_CHECKING:
    from search.cli import Output

SHARE_DRAWS = 300
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


def show_methods(output: Output) -> None:
    """See `hksd methods`."""
    terms: dict[str, dict[str, Any]] = {
        name: {
            "summary": entry.summary,
            "source": entry.source,
            "usual": (entry.config.__doc__ or "").strip(),
            "needs": sorted(entry.config.teacher_needs),
            "knobs": [knob.__dict__ for knob in schema.knobs(entry.config)],
        }
        for name, entry in TERMS.items()
    }
    networks = {name: entry.source for name, entry in models.MODELS.items()}
    widths = {name: entry.width for name, entry in models.MODELS.items()}

    def show(console: Any) -> None:
        say = partial(console.print, highlight=False, markup=False)
        say("loss terms")
        for name, term in terms.items():
            say(f"  {name}: {term['summary']}  [{term['source']}]")
            say(f"    {' '.join(term['usual'].split())}")
            for knob in term["knobs"]:
                say(f"    {knob['name']}: {knob['type']}, default {knob['default']} - {knob['description']}")
        for at, title in ((True, "any width"), (False, "width 1 alone")):
            say(f"networks (teachers and students), {title}")
            by_source = defaultdict(list)
            for name, source in networks.items():
                if widths[name] == at:
                    by_source[source].append(name)
            for source, names in by_source.items():
                say(f"  {', '.join(names)}  [{source}]")
        say(f"networks of your own: {OWN_NETWORK}")
        say("data sets")
        for name, text in DATASETS.items():
            say(f"  {name}: {text}")

    output.give({"terms": terms, "models": networks, "datasets": DATASETS}, show)


def show_space(output: Output, name: str, overrides: list[str], samples: int) -> None:
    """See `hksd space`. Sizes need the shape of the images: where the data cannot be read, they are left out."""
    from hksd import data as datasets
    from hksd import loop

    space = spaces.load(name, overrides)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=space.search.seed))
    draws = max(samples, SHARE_DRAWS)
    drawn = [draw for _ in range(draws) if (draw := _draw(space, study.ask())) is not None]
    if not drawn:
        raise UserError(f"{space.source}: no random draw of this space makes a valid run")
    try:
        shape = loop.image_shape(datasets.load(space.middle({}).data))
        sizes = [budget.size(draw.student, **shape) for draw in drawn]
        largest = spaces.check_feasible(space, shape)
        share = sum(not spaces.within(space.search.limits, size) for size in sizes) / draws
        problem = None
    except UserError as error:
        sizes, share, largest, problem = [], None, None, str(error)
    plain = list(space.alternatives.values()) or [space]
    drawable = list(dict.fromkeys(".".join(map(str, path)) for one in plain for path in one.ranges))
    distinct = len({config.config_hash(draw) for draw in drawn})
    facts = {
        "name": space.name,
        "ranges": {".".join(map(str, path)): str(spread) for path, spread in space.ranges.items()},
        "search": config.dump(space.search),
        "share_within_limits": share,
        "problem": problem,
        "distinct": distinct,
        "draws": draws,
        "largest_student": config.dump(largest) if largest else None,
        "samples": [config.canonical(draw) for draw in drawn[:samples]],
    }

    def show(console: Any) -> None:
        say = partial(console.print, highlight=False, markup=False)
        say(f"space {space.name} ({space.source})")
        _show_tree(say, space)
        limits = {key: value for key, value in config.dump(space.search.limits).items() if value is not None}
        say(
            f"trials {space.search.trials}, sampler {space.search.sampler}, limits {limits or 'none'}, "
            f"no trial stopped before epoch {space.search.grace_epochs(int(space.tree['train']['epochs']))} of "
            f"{space.tree['train']['epochs']}"
        )
        if problem:
            say(f"sizes unknown: {problem}")
        else:
            say(
                f"{share:.0%} of {draws} random draws are within the limits; the arms take "
                f"{largest.model} w{largest.width:g}, the largest"
                if largest
                else ""
            )
        say(f"{distinct} of {draws} random draws are different configurations")
        for number, draw in enumerate(drawn[:samples]):
            flat = config.flatten(config.canonical(draw))
            mine = {key: flat[key] for key in drawable if key in flat}
            size = f"{sizes[number].params:,} parameters, {sizes[number].mflops:.2f} MFLOPs: " if sizes else ""
            say(
                f"sample {number + 1}: {size}"
                + ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in mine.items())
            )

    output.give(facts, show)


def _draw(space: spaces.Space, trial: optuna.Trial) -> config.RunConfig | None:
    """Draw a configuration, or None where the draw makes no valid run (every term absent, say)."""
    try:
        return space.draw(trial)
    except ConfigError:
        return None


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
