"""The schedule of a weight: delay, warm-up, decay, end; the same for every term."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hksd.config.run import RunConfig
from hksd.data import DataSet
from hksd.fit import fit
from hksd.terms import TERMS
from hksd.terms.logits import LogitsConfig

Make = Callable[..., RunConfig]
EPOCHS = 20


def curve(**schedule: Any) -> list[float]:
    return [LogitsConfig(**schedule).factor(epoch / 2, EPOCHS) for epoch in range(2 * EPOCHS)]


def test_without_a_schedule_the_weight_is_whole_from_the_first_step_to_the_last() -> None:
    assert curve() == [1.0] * 2 * EPOCHS


def test_the_weight_is_0_during_the_delay_and_in_the_last_share() -> None:
    found = curve(delay_epochs=5, off_fraction=0.25)
    assert found == [0.0] * 10 + [1.0] * 20 + [0.0] * 10


def test_the_warm_up_is_a_straight_line_that_begins_where_the_delay_ends() -> None:
    found = curve(delay_epochs=2, warmup_epochs=4)
    assert found[:4] == [0.0] * 4
    assert found[4:13] == pytest.approx([i / 8 for i in range(9)])
    assert found[13:] == [1.0] * 27


@pytest.mark.parametrize(
    ("decay", "half"), [("linear", 0.5), ("cosine", 0.5), ("none", 1.0)], ids=["linear", "cosine", "none"]
)
def test_the_decay_falls_from_the_whole_weight_to_0_at_its_end(decay: str, half: float) -> None:
    config = LogitsConfig(decay=decay, delay_epochs=4, off_fraction=0.2)  # type: ignore[arg-type]
    assert config.factor(4, EPOCHS) == 1
    assert config.factor(10, EPOCHS) == pytest.approx(half)  # the middle of 4 to 16
    assert config.factor(16, EPOCHS) == 0
    if decay != "none":
        assert config.factor(15.999, EPOCHS) < 1e-3
    if decay == "cosine":
        assert config.factor(7, EPOCHS) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@given(
    st.floats(0, 30),
    st.floats(0, 30),
    st.sampled_from(["none", "linear", "cosine"]),
    st.floats(0, 0.99),
    st.floats(0, 1),
)
def test_every_schedule_stays_between_0_and_1_and_rests_outside_its_time(
    delay: float, warmup: float, decay: Any, off: float, share: float
) -> None:
    config = LogitsConfig(delay_epochs=delay, warmup_epochs=warmup, decay=decay, off_fraction=off)
    epoch = share * EPOCHS
    factor = config.factor(epoch, EPOCHS)
    assert 0 <= factor <= 1
    if not config.runs(epoch, EPOCHS):
        assert factor == 0


@pytest.mark.parametrize("name", list(TERMS))
def test_every_term_has_the_schedule(name: str) -> None:
    config = TERMS[name].config(delay_epochs=3, warmup_epochs=2, decay="linear", off_fraction=0.5)
    assert [config.factor(epoch, EPOCHS) for epoch in (2.9, 3, 10)] == [0, 0, 0]
    assert 0 < config.factor(5, EPOCHS) < 1


def test_a_hint_comes_first_and_the_classes_after_it(make_config: Make, digits: DataSet, cache_dir: Any) -> None:
    terms = {"fitnet": {"off_fraction": 0.5}, "kd": {"delay_epochs": 2}}
    history = fit(make_config(terms=terms, train={"epochs": 4}), data=digits, cache_dir=cache_dir).history
    assert [sorted(report.terms) for report in history] == [["fitnet"], ["fitnet"], ["kd"], ["kd"]]


def test_what_learns_on_its_own_rests_while_the_weight_does(make_taps: Callable[..., Any]) -> None:
    from hksd.config.run import Terms
    from hksd.run.objective import Objective

    shapes, student = make_taps()
    teacher = make_taps(seed=1)[1]
    config = TERMS["adversarial"].config(delay_epochs=2, warmup_epochs=1, off_fraction=0.5)
    objective = Objective(Terms({"adversarial": config}), shapes, shapes, 8)
    told = [bool(objective.own_steps(student, teacher, torch.arange(3), epoch)) for epoch in (0, 1.9, 2, 3.9, 4, 7)]
    assert told == [False, False, True, True, False, False]
