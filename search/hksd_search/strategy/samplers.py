"""How draws are made: the sampler of a study by name, and the rule of `auto`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from hksd.errors import UserError
from hksd_search.space import grid
from hksd_search.space.arms import prefix
from hksd_search.space.parameters import parameters, varying
from hksd_search.space.ranges import continuous
from hksd_search.space.space import Space
from hksd_search.strategy.evolution import NSGA2, NSGA3, divisions, population
from hksd_search.strategy.surrogate import Surrogate

FEW, MANY = 60, 200  # trials up to which gp, and from which nsga2, is taken in place of tpe: measured at 30 and at 200
SEED_STEP = 7919  # between the seeds of samplers of the same search: a prime, so that seeds of searches do not meet


class GridSampler(BaseSampler):  # type: ignore[misc]
    """Walks the grid; where it stands is written beside each trial, so that a search that is resumed goes on there.

    Args:
        space: the space.
        trials: the trials of the study so far.
        named: what the names of its parameters begin with.
    """

    def __init__(self, space: Space, trials: Sequence[FrozenTrial], named: str = ""):
        self._space, self._named, self._key = space, named, named + "grid:wheels"
        self._next: list[int] | None = []
        self._given: tuple[int, dict[str, Any]] = (-1, {})
        walked = [trial.system_attrs[self._key] for trial in trials if self._key in trial.system_attrs]
        if walked:
            self._next = grid.draw(space, walked[-1]).turned()

    def exhausted(self) -> bool:
        """Whether every point was given out."""
        return self._next is None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """None: which parameters a point has is found by asking for them."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing; see `infer_relative_search_space`."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of the point that the trial was given.

        Raises:
            UserError: every point was given out.
        """
        if self._given[0] != trial._trial_id:
            self._given = trial._trial_id, self._point(study, trial)
        return self._given[1][param_name.removeprefix(self._named)]

    def _point(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        if self._key in trial.system_attrs:  # its process died while it was drawn
            return grid.draw(self._space, trial.system_attrs[self._key]).answers
        if self._next is None:
            raise UserError("every point of the grid was given out")
        odometer = grid.draw(self._space, self._next)
        study._storage.set_trial_system_attr(trial._trial_id, self._key, odometer.wheels)
        self._next = odometer.turned()
        return odometer.answers


def of(spaces: Mapping[str | None, Space], trials: Sequence[FrozenTrial]) -> dict[str | None, BaseSampler]:
    """A sampler for each competitor of a search, for a study with these trials.

    Args:
        spaces: the spaces of the competitors; None is the search itself.
        trials: all trials of the study.
    """
    return {arm: _make(space, trials, arm, place) for place, (arm, space) in enumerate(spaces.items())}


def _make(space: Space, trials: Sequence[FrozenTrial], arm: str | None, place: int) -> BaseSampler:
    """A sampler; its seed depends on the number of trials, or a search that is resumed would repeat its draws."""
    settings, (name, _), named = space.search, name_and_reason(space), prefix(arm)
    seed, size = settings.seed + SEED_STEP * len(trials) + place, population(settings.trials)
    objectives = [settings.maximize, *settings.minimize]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "grid":
            return GridSampler(space, trials, named)
        if name == "random":
            return RandomSampler(seed=seed)
        if name == "gp":
            return Surrogate(varying(parameters(space, named)), objectives, seed)
        if name == "nsga2":
            return NSGA2(varying(parameters(space, named)), population_size=size, seed=seed)
        if name == "nsga3":
            parts = divisions(len(objectives), size)
            return NSGA3(varying(parameters(space, named)), population_size=size, dividing_parameter=parts, seed=seed)
        return TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)


def walks(samplers: Mapping[str | None, BaseSampler]) -> dict[str | None, Callable[[], bool]]:
    """For each competitor that walks a grid, whether every point was given out."""
    return {arm: sampler.exhausted for arm, sampler in samplers.items() if isinstance(sampler, GridSampler)}


def sees_all(sampler: BaseSampler) -> bool:
    """Whether a sampler needs all trials, however many; the others are shown a part (see `study.storage`)."""
    return isinstance(sampler, NSGA2 | NSGA3)


def told(space: Space) -> str:
    """The sampler and why it is that, in one line."""
    name, reason = name_and_reason(space)
    return f"sampler {name}" + (f", chosen by auto: {reason}" if space.search.sampler == "auto" else "")


def name_and_reason(space: Space) -> tuple[str, str]:
    """The sampler of a space and the reason for it, in words.

    `auto` walks the grid where that ends within the trials; else it takes what was measured best (docs/samplers.md),
    and tpe where nothing was measured to be better.
    """
    settings = space.search
    if settings.sampler != "auto":
        return settings.sampler, "as the space says"
    finite = not any(map(continuous, space.ranges.values()))
    points = grid.count(space, settings.trials) if finite else None
    if points is not None and points <= settings.trials:
        return "grid", f"all {points} configurations fit into {settings.trials} trials"
    plain = settings.scheduler.name == "none" and not settings.minimize and not space.alternatives  # as it was measured
    numbers = all(one.kind != "choice" and not one.off for one in space.ranges.values())
    if settings.trials <= FEW and plain and numbers:
        return "gp", "few trials, none stopped early, over numbers alone"
    if settings.trials >= MANY and plain:
        return "nsga2", f"{settings.trials} trials, none stopped early, are enough for generations"
    return "tpe", "there are more configurations than trials" if finite else "ranges are continuous"
