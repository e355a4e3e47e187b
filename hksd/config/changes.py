"""Changes of a run's schedule while it runs.

A search that changes runs on their way (Population Based Training, Jaderberg et al. 2017, arXiv 1711.09846) writes
down what it did as changes, so that one configuration tells the whole of a run and `hksd train` repeats it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from hksd import bounds
from hksd.config.train import TrainConfig
from hksd.errors import nearest
from hksd.schema import Section
from hksd.terms import TERMS
from hksd.terms.base import Weight

TRAIN_KNOBS = ("lr", "momentum", "weight_decay")


@functools.cache
def knobs() -> Mapping[str, Any]:
    """Key path -> type and range of every knob that may change."""
    train = get_type_hints(TrainConfig, include_extras=True)
    weights = {f"terms.{name}.weight": Weight for name in TERMS}
    return {**{f"train.{knob}": train[knob] for knob in TRAIN_KNOBS}, **weights}


class Values(Mapping[str, float]):
    """New values of schedule knobs by key path; immutable."""

    def __init__(self, values: Mapping[str, float]):
        self._values = {path: values[path] for path in knobs() if path in values}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate like a mapping with one optional key for each knob that may change."""
        fields = {
            path: core_schema.typed_dict_field(handler.generate_schema(kind), required=False)
            for path, kind in knobs().items()
        }
        finite = core_schema.CoreConfig(allow_inf_nan=False)
        values = core_schema.typed_dict_schema(fields, extra_behavior="forbid", config=finite)
        known = core_schema.no_info_before_validator_function(cls._known, values)
        return core_schema.no_info_after_validator_function(cls, known)

    @classmethod
    def _known(cls, values: Any) -> Any:
        """Find the paths that lead to no such knob; whatever else is wrong with `values` is found after this."""
        for path in values if isinstance(values, Mapping) else ():
            if path not in knobs():
                raise ValueError(
                    f"'{path}' cannot change while a run goes on{nearest(path, knobs())} "
                    f"(what can: {', '.join(f'train.{knob}' for knob in TRAIN_KNOBS)}, terms.NAME.weight)"
                )
        return values

    def __getitem__(self, path: str) -> float:
        return self._values[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Values) and self._values == other._values

    def __repr__(self) -> str:
        return f"Values({self._values!r})"


@dataclass(frozen=True, kw_only=True)
class Change(Section):
    """From some epoch on, a run goes on with other values."""

    epoch: Annotated[int, Field(ge=1, le=bounds.EPOCHS, description="finished epochs after which the values hold")]
    set: Annotated[Values, Field(description="key path: new value")]

    def __post_init__(self) -> None:
        if not self.set:
            raise ValueError(f"set is empty; give it new values, or leave the change after epoch {self.epoch} out")


def check(changes: Sequence[Change], epochs: int, active: Sequence[str]) -> None:
    """Check that changes fit a run.

    Args:
        changes: the changes.
        epochs: length of the run.
        active: terms with a weight above 0.

    Raises:
        ValueError: an epoch that is not inside the run, or not after the one before; a term that the run has not.
    """
    last = 0
    for place, change in enumerate(changes):
        if change.epoch >= epochs:
            allowed = f"1 to {epochs - 1}" if epochs > 1 else "none, since the run has one epoch"
            raise ValueError(f"changes[{place}].epoch: {change.epoch} is not inside the run (allowed: {allowed})")
        if change.epoch <= last:
            raise ValueError(f"changes[{place}].epoch: {change.epoch} does not come after {last}; put them in order")
        last = change.epoch
        for path in change.set:
            section, name, *_ = path.split(".")
            if section == "terms" and name not in active:
                raise ValueError(
                    f"changes[{place}].set: {path}: the run has no such term (its terms: {', '.join(active)})"
                )


def settled(changes: Sequence[Change], epoch: int) -> dict[str, dict[str, Any]]:
    """What holds after `epoch` finished epochs: ``{"train": {knob: value}, "terms": {name: weight}}``."""
    found: dict[str, dict[str, Any]] = {"train": {}, "terms": {}}
    for change in changes:
        if change.epoch <= epoch:
            for path, value in change.set.items():
                section, name, *_ = path.split(".")
                found[section][name] = value
    return found
