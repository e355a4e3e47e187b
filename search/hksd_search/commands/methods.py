"""`hksd methods`: list what there is."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hksd_search.commands.options import Json
from hksd_search.commands.output import Output

if TYPE_CHECKING:
    from hksd.modes import ModeEntry
    from hksd.terms import TermEntry

EXAMPLE = "`hksd methods` or `hksd methods squeeze crd`"
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


def methods(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Terms or modes to show with their knobs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List loss terms, modes, networks and data sets with their sources; with names, the knobs of these."""
    from hksd import models
    from hksd.errors import UserError, unknown
    from hksd.modes import MODES
    from hksd.terms import TERMS

    output, names = Output(as_json), names or []
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
    from hksd import schema
    from hksd.terms import TermEntry

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
