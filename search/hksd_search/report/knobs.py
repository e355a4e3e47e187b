"""What the draws of a search were, knob by knob, and how much of the accuracy each of them explains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hksd_search.space.ranges import evenly
from hksd_search.study.records import STUDY_NAME, Record, open_storage

OFF = ".off"  # ends the name of the draw that decides whether a block is absent
FEWEST = 20  # complete trials below which an importance is noise
MODELLED = 200  # trials that the importance is computed from: its time grows faster than their number
TREES = 32


@dataclass(frozen=True)
class Drawn:
    """A drawn parameter with its values in the trials that ran to their end.

    Attributes:
        name: its key path; of a term that is drawn on or off, that of the term.
        values: value by number of trial, for the trials that have it.
        choices: its values where it is categorical, else empty.
        log: it was drawn on a logarithmic scale.
        importance: share of the variance of accuracy that it explains alone (0 to 1); None where that is not known.
    """

    name: str
    values: Mapping[int, Any]
    choices: tuple[Any, ...] = ()
    log: bool = False
    importance: float | None = None


def knobs(folder: Path, records: Sequence[Record]) -> list[Drawn]:
    """The drawn parameters of the complete trials, the most important first, then by how many trials have them.

    Args:
        folder: folder of the search.
        records: its trials.
    """
    complete = {r.number: r for r in records if r.status == "complete" and not r.arm and r.val_accuracy is not None}
    found: dict[str, Drawn] = {}
    for trial in _trials(folder):
        if trial.number in complete:
            config = complete[trial.number].config or {}
            for parameter, value in trial.params.items():
                _note(found, trial.number, parameter, value, trial.distributions[parameter], config)
    varied = [knob for knob in found.values() if len({*map(str, knob.values.values())}) > 1]
    shares = importances(varied, {number: r.val_accuracy or 0.0 for number, r in complete.items()})
    ranked = [Drawn(k.name, k.values, k.choices, k.log, shares.get(k.name)) for k in varied]
    return sorted(ranked, key=lambda k: (k.importance is None, -(k.importance or 0.0), -len(k.values)))


def _trials(folder: Path) -> list[Any]:
    storage = open_storage(folder)
    found: list[Any] = storage.get_all_trials(storage.get_study_id_from_name(STUDY_NAME), deepcopy=False)
    return found


def _note(
    found: dict[str, Drawn], number: int, parameter: str, value: Any, distribution: Any, config: Mapping[str, Any]
) -> None:
    if parameter.endswith(OFF):  # drawn as a number; what matters is whether the term is there
        term = parameter.removesuffix(OFF).rpartition(".")[2]
        value = "on" if (config.get("terms") or {}).get(term) is not None else "off"
        knob = found.setdefault(f"terms.{term}", Drawn(f"terms.{term}", {}, ("off", "on")))
    else:
        choices = tuple(getattr(distribution, "choices", ()))
        log = bool(getattr(distribution, "log", False))
        knob = found.setdefault(parameter, Drawn(parameter, {}, choices, log))
    knob.values[number] = value  # type: ignore[index] # filled here, and read only from then on


def importances(found: Sequence[Drawn], accuracies: Mapping[int, float]) -> dict[str, float]:
    """Share of the variance of accuracy that each knob explains alone, for the knobs that all trials have.

    Functional ANOVA over a random forest (Hutter et al. 2014, "An Efficient Approach for Assessing Hyperparameter
    Importance"). Empty where there are fewer than `FEWEST` trials or they all have the same accuracy.

    Args:
        found: the knobs.
        accuracies: accuracy by number of trial.
    """
    common = [knob for knob in found if set(knob.values) >= set(accuracies)]
    if len(accuracies) < FEWEST or not common or len(set(accuracies.values())) == 1:
        return {}
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    names = {f"{index:03d}": knob for index, knob in enumerate(common)}
    distributions = {name: _distribution(knob) for name, knob in names.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for number in evenly(sorted(accuracies), MODELLED):
        values = {name: _plain(knob, knob.values[number]) for name, knob in names.items()}
        study.add_trial(optuna.trial.create_trial(params=values, distributions=distributions, value=accuracies[number]))
    evaluator = FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        shares = get_param_importances(study, evaluator=evaluator, normalize=False)  # else they would sum to 1
    return {names[name].name: float(share) for name, share in shares.items() if math.isfinite(share)}


def _distribution(knob: Drawn) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if knob.choices:
        return CategoricalDistribution([str(choice) for choice in knob.choices])
    values = [float(value) for value in knob.values.values()]
    return FloatDistribution(min(values), max(values), log=knob.log)


def _plain(knob: Drawn, value: Any) -> Any:
    return str(value) if knob.choices else float(value)
