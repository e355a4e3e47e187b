"""What a search takes over from an earlier one.

Either its results: a trial of the other search is evidence where this space can draw exactly that run, on the same
images and with the same teacher. It then stands in the study as a finished trial that the sampler learns from, marked
as imported: it is not counted, exported or best here, and may be drawn and trained again, since its weights are not
here. Or, where nothing of it is evidence, the configurations of its best trials, moved into the ranges of this space:
they are the first draws, and their accuracies are forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from hksd.config.run import RunConfig, config_hash, dump, from_tree
from hksd_search.space.nearest import Params, point, wishes
from hksd_search.space.parameters import parameters
from hksd_search.space.space import Space
from hksd_search.study.reading import SearchFolder
from hksd_search.study.records import Record

BEST = 3  # configurations that are taken from a search whose results say nothing here


@dataclass(frozen=True)
class Taken:
    """What is taken over from one search.

    Attributes:
        name: name of that search.
        evidence: its results, as finished trials.
        wished: its best configurations, as parameters; empty where there is evidence.
        trials: numbers there of what was taken.
        reason: why its results are no evidence.
    """

    name: str
    evidence: list[FrozenTrial] = field(default_factory=list)
    wished: list[Params] = field(default_factory=list)
    trials: list[int] = field(default_factory=list)
    reason: str = ""

    def facts(self) -> dict[str, Any]:
        """For `search.json`."""
        use = "results" if self.evidence else "first draws"
        return {"search": self.name, "use": use, "trials": self.trials, "reason": self.reason}

    def __str__(self) -> str:
        listed = ", ".join(map(str, self.trials))
        if self.evidence:
            return f"warm start from {self.name}: the sampler knows the results of its trials {listed}"
        if self.wished:
            return (
                f"warm start from {self.name}: its trials {listed} are drawn first, as near as may be ({self.reason})"
            )
        return f"warm start from {self.name}: nothing to take over ({self.reason})"


def take(space: Space, found: SearchFolder, fingerprint: str, teacher: str) -> Taken:
    """What a search over `space` can take over.

    Args:
        space: the space of the new search.
        found: the earlier search.
        fingerprint: hash of the images of the new search.
        teacher: key of its teacher.
    """
    known = [r for r in found.records if r.config is not None and r.status == found.facts.get("trials_are", "complete")]
    if not known:
        return Taken(found.name, reason="it has no trial that ran to its end")
    reason = _difference(found, fingerprint, teacher)
    if not reason:
        pairs = [(record, trial) for record in known if (trial := _evidence(space, record)) is not None]
        if pairs:
            records, trials = zip(*pairs, strict=True)
            return Taken(found.name, evidence=list(trials), trials=[record.number for record in records])
        reason = "this space draws none of its configurations as they are: fixed values, ranges or epochs differ"
    return _best(space, found.name, known, reason)


def _difference(found: SearchFolder, fingerprint: str, teacher: str) -> str:
    """Why accuracies there say nothing here; empty where they do."""
    if found.facts.get("data", {}).get("fingerprint") != fingerprint:
        return "it saw other images"
    return "" if found.facts.get("teacher", {}).get("key") == teacher else "it had another teacher"


def _evidence(space: Space, record: Record) -> FrozenTrial | None:
    """A trial of another search as a finished trial of this space, or None where this space cannot draw it."""
    assert record.config is not None
    config, digest = from_tree(record.config), config_hash(from_tree(record.config))
    known = {"val_accuracy": record.val_accuracy, **record.costs}
    objectives = (space.search.maximize, *space.search.minimize)
    values = [value for name in objectives if (value := known.get(name)) is not None]
    if len(values) < len(objectives):
        return None
    for wish in wishes(space, config).values():
        drawn = point(space, wish)
        # Images and teacher were compared by what they are, not by where they lie.
        if drawn and config_hash(replace(drawn[1], data=config.data, teacher=config.teacher)) == digest:
            return imported(space, drawn, values, digest=digest, costs=record.costs, epoch=record.epoch)
    return None


def imported(
    space: Space,
    drawn: tuple[Params, RunConfig],
    values: Sequence[float],
    *,
    digest: str,
    costs: Mapping[str, float],
    epoch: int,
) -> FrozenTrial:
    """A result from elsewhere as a finished trial of this space, marked as imported.

    Args:
        space: the space.
        drawn: the point of it that was trained.
        values: one for each objective; the first is the validation accuracy (0 to 1).
        digest: hash of the configuration that was trained.
        costs: what is known of the student's size.
        epoch: epochs that it was trained for; 0 where nobody knows.
    """
    params, config = drawn
    everything = parameters(space)
    return create_trial(
        state=TrialState.COMPLETE,
        values=values,
        params=params,
        distributions={name: everything[name].distribution for name in params},
        user_attrs={
            "facts": {"arm": None, "origin": "imported", "hash": digest, "costs": costs, "config": dump(config)},
            "progress": {"epoch": epoch, "val_accuracy": values[0], "seconds": 0.0},
            "status": "imported",
        },
    )


def _best(space: Space, name: str, records: Sequence[Record], reason: str) -> Taken:
    """The best configurations that were drawn there, each as a point of this space."""
    drawn = [record for record in records if record.arm is None]
    wished: dict[str, tuple[int, Params]] = {}
    for record in sorted(drawn, key=lambda r: (-(r.val_accuracy or 0.0), r.params or 0, r.number)):
        nearby = near(space, from_tree(record.config or {}))
        if nearby is not None and len(wished) < BEST:
            wished.setdefault(config_hash(nearby[1]), (record.number, nearby[0]))
    if not wished:
        return Taken(name, reason=f"{reason}, and no configuration of it has a knob that this space draws")
    numbers, params = zip(*wished.values(), strict=True)
    return Taken(name, wished=list(params), trials=list(numbers), reason=reason)


def near(space: Space, config: RunConfig) -> tuple[Params, RunConfig] | None:
    """The point of the space nearest to a run, in the alternative with the most alike terms; None without a value."""
    active = config.terms.active().keys()
    points = [found for wish in wishes(space, config).values() if wish and (found := point(space, wish)) is not None]
    return min(points, key=lambda found: len(found[1].terms.active().keys() ^ active), default=None)
