"""`hksd evaluate`: measure a student."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any

import typer

from hksd_search.commands.options import DEFAULT_RUNS, Json, Overrides, Runs, changes, one_of
from hksd_search.commands.output import Output

EXAMPLE = "`hksd evaluate runs/first/export --split test`"


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG_OR_DIR", help="Exported student, folder of `hksd train --out`, or the configuration in one."
        ),
    ],
    split: Annotated[
        str,
        typer.Option(
            parser=one_of("val", "test"),
            metavar="val|test",
            help="val, or test (its opening is recorded in the folder).",
        ),
    ] = "val",
    overrides: Overrides = None,
    runs: Runs = DEFAULT_RUNS,
    as_json: Json = False,
) -> None:
    """Measure a trained student: accuracy, likelihood, calibration, each class."""
    from hksd import data as datasets
    from hksd import fit as training
    from hksd.config.run import load
    from hksd.data.augment import batches_of
    from hksd.deploy.export import CONFIG_FILE as EXPORTED_CONFIG
    from hksd.device.device import resolve_device
    from hksd.errors import RunError, UserError
    from hksd.files import expanded
    from hksd.run import evaluate as scoring
    from hksd.run import loop
    from hksd_search.console import percent
    from hksd_search.export import as_trained, load_student
    from hksd_search.session import IMAGES
    from hksd_search.study import openings

    output, changed = Output(as_json), changes(overrides)
    path = expanded(target, "CONFIG_OR_DIR")
    folder = path if path.is_dir() else path.parent
    named = [folder / name for name in (EXPORTED_CONFIG, loop.CONFIG_FILE)]
    config_file = path if path.is_file() else next((file for file in named if file.exists()), None)
    if config_file is None:
        raise UserError(f"{target}: expected a folder with {EXPORTED_CONFIG} or {loop.CONFIG_FILE}, or such a file")
    if not (folder / training.WEIGHTS_FILE).exists():
        raise UserError(
            f"{folder}: no {training.WEIGHTS_FILE} here; train with `hksd train {config_file} --out DIR` first"
        )
    config = load(config_file, changed)
    data = datasets.load(config.data, runs / IMAGES)
    student, metadata = load_student(config, data, folder / training.WEIGHTS_FILE)
    data = as_trained(data, metadata)
    if broken := [name for name, value in student.state_dict().items() if not bool(value.isfinite().all())]:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise RunError(
            f"{folder / training.WEIGHTS_FILE}: weights that are NaN or infinite ({broken[0]}{more}): its training has "
            "diverged or the file is spoilt, so there is nothing to measure; train it again, with a lower train.lr say"
        )
    chosen = data.validation
    if split == "test":
        chosen = datasets.load_test(config.data)
        openings.note(folder, "hksd evaluate", [target])
    batches = batches_of(chosen, data, config.data, resolve_device("cpu"), augment=False)
    scores = scoring.score(*scoring.predict(student, batches.plain(scoring.EVALUATION_BATCH)))
    per_class = [None if math.isnan(value) else value for value in scores.per_class]  # JSON knows no NaN
    facts = {"split": split, **dataclasses.asdict(scores), "per_class": per_class, "classes": data.classes}

    def show(console: Any) -> None:
        console.print(
            f"{split}: accuracy {percent(scores.accuracy)} on {scores.count:,} images, "
            f"NLL {scores.nll:.4f}, calibration error {scores.ece:.4f}",
            highlight=False,
        )
        for name, accuracy in zip(data.classes, per_class, strict=True):
            console.print(f"  {name}: {percent(accuracy)}", highlight=False, markup=False)

    output.give(facts, show)
