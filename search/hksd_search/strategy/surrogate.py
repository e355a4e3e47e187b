"""The sampler `gp`: Bayesian optimisation by a Gaussian process, over conditional spaces too.

Optuna's GPSampler models only the parameters that all trials have, of trials that ran to their end. Here it works on a
copy of the study in which every trial has every parameter: one that a trial does not have stands at its middle, so
that the process sees nothing change where nothing exists (imputation, as in Levesque et al. 2017, Bayesian
optimization for conditional hyperparameter spaces). In the copy a block is absent or present, a choice of rising
numbers is ordered, and a trial that was stopped or refused has a value too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from hksd_search.space.parameters import Parameter
from hksd_search.space.ranges import ABSENT, PRESENT
from hksd_search.study.storage import thinned

STARTUP = 10  # complete trials before the first fit, as in Optuna; random draws until then
SEEN, BEST = 150, 50  # trials that the process is fitted to, and how many of them are the best: its time is cubic
REFUSALS = 4  # refused draws in a row after which one is made at random
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class Axis:
    """A parameter as the process sees it.

    Args:
        parameter: what it is in the study.

    Attributes:
        distribution: its values in the copy.
    """

    def __init__(self, parameter: Parameter):
        self._real = parameter
        self._choices: Sequence[Any] | None = None
        self.distribution: BaseDistribution = parameter.distribution
        if parameter.off is not None:
            self.distribution = CategoricalDistribution((True, False))
        elif _rises(getattr(parameter.distribution, "choices", ())):
            self._choices = parameter.distribution.choices
            self.distribution = IntDistribution(0, len(self._choices) - 1)

    def inward(self, value: Any) -> Any:
        """The value in the copy."""
        if self._real.off is not None:
            return bool(value >= self._real.off)
        return self._choices.index(value) if self._choices else value

    def outward(self, value: Any) -> Any:
        """The value in the study."""
        if self._real.off is not None:
            return PRESENT if value else ABSENT
        return self._choices[int(value)] if self._choices else value

    @property
    def missing(self) -> Any:
        """The value in the copy of a trial that does not have the parameter."""
        return self.inward(self._real.middle)


def _rises(choices: Sequence[Any]) -> bool:
    numbers = all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices)
    return len(choices) > 1 and numbers and list(choices) == sorted(choices)


class Surrogate(BaseSampler):  # type: ignore[misc]
    """See the module.

    Args:
        parameters: the parameters of the space; other trials of the study are not looked at.
        objectives: name of each objective, `val_accuracy` or a cost.
        seed: seed of its random numbers.
    """

    def __init__(self, parameters: Mapping[str, Parameter], objectives: Sequence[str], seed: int):
        self._parameters, self._objectives = parameters, objectives
        self._axes = {name: Axis(parameter) for name, parameter in parameters.items()}
        self._random = RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._process = GPSampler(seed=seed, n_startup_trials=0, warn_independent_sampling=False)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters of the space; a draw takes those that it asks for."""
        return {name: parameter.distribution for name, parameter in self._parameters.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values of all parameters, or none where the draw is to be a random one."""
        mine = [t for t in study.get_trials(deepcopy=False) if t.params.keys() & self._axes.keys()]
        ended = [t for t in mine if t.state in ENDED]
        complete = [t for t in ended if t.state == TrialState.COMPLETE]
        if len(complete) < STARTUP or not self._axes or all(map(_refused, ended[-REFUSALS:])):
            return {}
        if len(ended) > SEEN:
            ended = thinned(ended, study.directions, SEEN, BEST)
        copied = optuna.create_study(directions=study.directions)
        worst = self._worst(complete, study.directions)
        copied.add_trials([self._copy(t, TrialState.COMPLETE, self._values(t, worst)) for t in ended])
        copied.add_trials([self._copy(t, TrialState.RUNNING) for t in mine if t.state == TrialState.RUNNING])
        axes = {name: axis.distribution for name, axis in self._axes.items()}
        with _one_thread():
            found = self._process.sample_relative(copied, copied.ask()._cached_frozen_trial, axes)
        return {name: self._axes[name].outward(value) for name, value in found.items()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _copy(self, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None = None) -> FrozenTrial:
        params = {
            name: axis.inward(trial.params[name]) if name in trial.params else axis.missing
            for name, axis in self._axes.items()
        }
        axes = {name: axis.distribution for name, axis in self._axes.items()}
        return create_trial(state=state, values=values, params=params, distributions=axes)

    def _values(self, trial: FrozenTrial, worst: Sequence[float]) -> Sequence[float]:
        """What a trial is worth: its values, those so far of one that was stopped, the worst for a refused one."""
        if trial.state == TrialState.COMPLETE:
            return list(trial.values)
        facts, progress = trial.user_attrs.get("facts", {}), trial.user_attrs.get("progress", {})
        known = {**facts.get("costs", {}), **({} if trial.value is None else {"val_accuracy": trial.value}), **progress}
        if _refused(trial) and trial.value is None:
            return worst
        return [known.get(name, bad) for name, bad in zip(self._objectives, worst, strict=True)]

    def _worst(self, complete: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[float]:
        values = np.array([trial.values for trial in complete])
        rises = [direction == StudyDirection.MAXIMIZE for direction in directions]
        return [float(column.min() if up else column.max()) for up, column in zip(rises, values.T, strict=True)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute with one thread, as trials do: two take more than twice the processor time here (measured)."""
    threads, verbosity = torch.get_num_threads(), optuna.logging.get_verbosity()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it warns of a package that would make it faster
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        optuna.logging.set_verbosity(verbosity)


def _refused(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get("status") in ("rejected", "duplicate")
