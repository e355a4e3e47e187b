"""What a new search knows and wishes for before its first trial."""

from __future__ import annotations

from collections.abc import Sequence

import optuna

from hksd.config.networks import StudentConfig
from hksd_search.space.nearest import defaults
from hksd_search.space.space import Space
from hksd_search.strategy import samplers
from hksd_search.strategy.warm_start import Taken
from hksd_search.study.storage import StudyStorage
from hksd_search.study.study import WISHES


def begin(
    study: optuna.Study,
    storage: StudyStorage,
    space: Space,
    largest: StudentConfig,
    warm: Sequence[Taken],
    target: float | None = None,
) -> None:
    """Write down what a new search knows and wishes for before its first trial.

    Args:
        study: without a trial.
        storage: of the study.
        space: the space.
        largest: its largest student within the limits.
        warm: what the search takes over from earlier ones.
        target: accuracy that a student has to reach, or None; evidence that falls short counts as such.
    """
    settled = samplers.name_and_reason(space)[0] in ("random", "grid") or not space.search.enqueue_defaults
    evidence = [trial for taken in warm for trial in taken.evidence]
    if target is not None:
        for trial in evidence:
            trial.set_constraint("accuracy", target - trial.user_attrs["progress"]["val_accuracy"])
    known = [trial.params for trial in evidence]
    usual = [] if settled else [params for params in defaults(space, largest) if params not in known]
    earlier = [params for taken in warm for params in taken.wished]
    wishes = [{"origin": "default", "params": params} for params in usual]
    with storage.together():
        study.add_trials(evidence)
        study.set_user_attr(WISHES, wishes + [{"origin": "warm start", "params": params} for params in earlier])
