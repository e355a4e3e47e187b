"""The samplers `nsga2` and `nsga3`: genetic algorithms, over conditional spaces too.

Optuna's let parents inherit only the parameters that all trials have, and draw the others at random. Here every trial
inherits every parameter of the space: one that a parent does not have stands at its middle.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import NSGAIIISampler, NSGAIISampler
from optuna.trial import FrozenTrial, TrialState

from hksd_search.space.parameters import Parameter

GENERATIONS, SMALLEST, LARGEST = 6, 8, 50  # generations that a search is to have; bounds of the population


def population(trials: int) -> int:
    """Trials of a generation of a search of that many."""
    return max(SMALLEST, min(LARGEST, trials // GENERATIONS))


def divisions(objectives: int, size: int) -> int:
    """Parts of each axis so that the reference points of NSGA-III are at least as many as a generation.

    p parts of M axes make C(M + p - 1, p) points (Das and Dennis 1998), as Deb and Jain 2014 place them.
    """
    return next(parts for parts in range(1, size + 1) if math.comb(objectives + parts - 1, parts) >= size)


class _Inheriting:
    """What the two have in common; goes before Optuna's class."""

    def __init__(self, parameters: Mapping[str, Parameter], **settings: Any):
        super().__init__(**settings)
        self._parameters = parameters

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters of the space; a draw takes those that it asks for."""
        return {name: parameter.distribution for name, parameter in self._parameters.items()}

    def get_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """The complete trials of a generation; the first one has also those that were not drawn by this sampler."""
        found: list[FrozenTrial] = super().get_population(study, generation)  # type: ignore[misc]
        if generation == 0:
            key = self._get_generation_key()  # type: ignore[attr-defined]
            complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            found = [*found, *(t for t in complete if key not in t.system_attrs and self._mine(t))]
        return [self._whole(trial) for trial in found]

    def get_parent_population(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
        """The trials that may have children, with every parameter."""
        return [self._whole(t) for t in super().get_parent_population(study, generation)]  # type: ignore[misc]

    def _mine(self, trial: FrozenTrial) -> bool:
        return bool(trial.params.keys() & self._parameters.keys())

    def _whole(self, trial: FrozenTrial) -> FrozenTrial:
        middles = {name: parameter.middle for name, parameter in self._parameters.items()}
        whole = copy.copy(trial)
        whole.params = {**middles, **trial.params}
        return whole


class NSGA2(_Inheriting, NSGAIISampler):  # type: ignore[misc]
    """NSGA-II (Deb et al. 2002)."""


class NSGA3(_Inheriting, NSGAIIISampler):  # type: ignore[misc]
    """NSGA-III (Deb and Jain 2014): spreads a front over reference points."""
