"""Every parameter that a draw of a space may ask for, whether or not a given draw does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hksd_search.space import alternatives
from hksd_search.space.ranges import ABSENCE, PRESENT
from hksd_search.space.space import Space


@dataclass(frozen=True)
class Parameter:
    """A parameter as Optuna knows it.

    Attributes:
        distribution: its values.
        middle: the value that stands for it in a trial that does not have it.
        off: where it says whether a block is absent: absent it is below this.
    """

    distribution: BaseDistribution
    middle: Any
    off: float | None = None


@dataclass
class _Recorder:
    """Keeps the distribution of all that is asked, and answers with the middle."""

    found: dict[str, Parameter] = field(default_factory=dict)
    middle: Any = None
    off: float | None = None

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._note(name, CategoricalDistribution(choices))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return float(self._note(name, FloatDistribution(low, high, log=log, step=step)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return int(self._note(name, IntDistribution(low, high, step=step)))

    def _note(self, name: str, distribution: BaseDistribution) -> Any:
        self.found[name] = Parameter(distribution, self.middle, self.off)
        return self.middle


def parameters(space: Space, prefix: str = "") -> Mapping[str, Parameter]:
    """The parameters of a space by name; names begin with `prefix`."""
    recorder = _Recorder()
    if space.alternatives:
        names = tuple(space.alternatives)
        recorder.middle = names[0]
        recorder.suggest_categorical(alternatives.PARAMETER, names)
    for plain in space.alternatives.values() or [space]:
        for path, spread in plain.ranges.items():
            recorder.middle = spread.middle()
            spread.draw(recorder, plain.parameter(path))
            if spread.off:
                recorder.middle, recorder.off = PRESENT, plain.off(path[:-1])
                recorder.suggest_float(plain.parameter(path[:-1]) + ABSENCE, 0.0, 1.0)
                recorder.off = None
    return {prefix + name: one for name, one in recorder.found.items()}


def varying(found: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Those of the parameters that have more than one value."""
    return {name: one for name, one in found.items() if not one.distribution.single()}
