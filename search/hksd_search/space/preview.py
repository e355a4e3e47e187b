"""Random draws of a space, to see what it holds before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import optuna

from hksd.config.run import RunConfig
from hksd.errors import ConfigError, UserError
from hksd.teacher.plan import live_because
from hksd_search.space.space import Space

DRAWS = 300


def random_draws(space: Space, count: int = DRAWS) -> list[RunConfig]:
    """Up to `count` random configurations; the same ones every time. Draws that make no valid run are left out."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=space.search.seed))
    return [draw for _ in range(count) if (draw := _draw(space, study.ask())) is not None]


def _draw(space: Space, trial: optuna.Trial) -> RunConfig | None:
    """A configuration, or None where the draw makes no valid run (every term absent, say)."""
    try:
        return space.draw(trial)
    except ConfigError:
        return None


def check_knowledge(space: Space, shape: Mapping[str, int]) -> None:
    """Refuse a space that wants knowledge of views where that cannot be enough: its trials would fail one by one.

    Args:
        space: the space.
        shape: `in_channels`, `classes` and `image_size` of the data.

    Raises:
        UserError: random draws need the teacher at work; says why, and for which share of the draws.
    """
    if space.middle({}).train.knowledge != "cached" and ("train", "knowledge") not in space.ranges:
        return
    drawn, why = random_draws(space), Counter[str]()
    for draw in drawn:
        if draw.train.knowledge == "cached" and draw.teacher is not None and draw.terms.teacher_needs:
            why.update(live_because(draw, **shape))
    if why:
        reasons = "; ".join(f"{reason} ({count / len(drawn):.0%} of random draws)" for reason, count in why.items())
        raise UserError(
            f"{space.source}: train.knowledge: cached is not enough for every draw: {reasons}; set it to auto, "
            "which has the teacher at work where a draw needs it, or leave these terms out"
        )
