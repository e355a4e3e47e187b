"""The arms of a search: what they run, whose turn it is, and what a machine may do to a trial."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from hksd.config.run import config_hash, from_tree
from hksd_search import ledger as ledgers
from hksd_search.ledger import Ledger
from hksd_search.space import space as spaces
from hksd_search.space.arms import ARMS, NO_DISTILLATION, PAPER_PRESET, STANDARD_KD, published, tuned
from hksd_search.space.sizes import Meter, check_feasible

Make = Callable[..., Any]


def spend(ledger: Ledger, train: Make) -> list[Any]:
    """Train all that the ledger hands out."""
    given = []
    while (assignment := ledger.next()) is not None:
        given.append(assignment)
        train(ledger, assignment, (0.1, 0.2, 0.3))
    return given


@pytest.mark.parametrize("trials", [5, 17, 20])
def test_tuned_arms_have_as_many_trials_each_as_the_search_itself(
    trials: int, make_space: Make, open_ledger: Make, train: Make
) -> None:
    ledger = open_ledger(make_space(search={"trials": trials, "arms": "tuned"}))
    given = spend(ledger, train)
    counts = Counter(assignment.arm for assignment in given)
    assert {counts[name] for name in ARMS} == {trials // 5}
    assert counts[None] == trials // 5 + trials % 5
    assert [assignment.arm for assignment in given[:4]] == list(ARMS), "published runs come first"


def test_shares_hold_over_a_restart_at_any_point(make_space: Make, open_ledger: Make, train: Make) -> None:
    space = make_space(search={"trials": 15, "arms": "tuned"})
    for count in range(1, 6):
        ledger = open_ledger(space)
        for _ in range(count):
            train(ledger, ledger.next(), (0.1, 0.2, 0.3))
        ledger.next()
        ledger.interrupt()
    ledger = open_ledger(space)
    spend(ledger, train)
    counts = Counter(record.arm for record in ledger.records() if record.status == "complete")
    assert counts == {None: 3, **dict.fromkeys(ARMS, 3)}


def test_a_tuned_arm_draws_its_own_terms_and_everything_else_like_the_search(
    make_space: Make, open_ledger: Make, train: Make
) -> None:
    space = make_space(search={"trials": 30, "arms": "tuned"})
    ledger = open_ledger(space)
    given = spend(ledger, train)
    terms = published(space, 8)
    for name in ARMS:
        mine = [assignment.config for assignment in given if assignment.arm == name]
        assert {frozenset(config.terms) for config in mine} == {frozenset(terms[name])}
        assert len({config.train.lr for config in mine}) == len(mine)
        assert {config.student.width for config in mine} == {0.25, 0.5}
        weights = {term: {config.terms[term].weight for config in mine} for term in terms[name]}
        assert weights.pop("ce") == {terms[name]["ce"]["weight"]}
        assert all(len(values) == len(mine) for values in weights.values())
    for record in ledger.records():
        names = ledger.study.trials[record.number].params
        assert all(name.startswith(f"{record.arm}: ") == (record.arm is not None) for name in names)


def test_a_tuned_arm_takes_the_ranges_of_the_space_where_it_has_them(make_space: Make) -> None:
    space = make_space(search={"arms": "tuned"})
    found = tuned(space, published(space, 32)[STANDARD_KD])
    assert found.ranges[("terms", "kd", "weight")].values == (0.1, 10.0)
    assert found.ranges[("terms", "kd", "weight")].off == 0
    without = make_space(terms={"ce": {"weight": 1.0}}, search={"arms": "tuned"})
    found = tuned(without, published(without, 32)[STANDARD_KD])
    assert found.ranges[("terms", "kd", "weight")].values == pytest.approx((0.09, 9.0))
    assert found.ranges[("terms", "kd", "temperature")].values == (1.0, 8.0)


def test_an_arm_that_has_nothing_more_to_draw_leaves_the_others_their_shares(
    make_space: Make, open_ledger: Make, train: Make
) -> None:
    space = make_space(train={"lr": 0.1}, student={"model": "resnet8"}, search={"trials": 50, "arms": "tuned"})
    ledger = open_ledger(space)
    counts = Counter(assignment.arm for assignment in spend(ledger, train))
    assert counts == {NO_DISTILLATION: 2, **dict.fromkeys([None, *list(ARMS)[1:]], 10)}


def test_a_search_without_arms_only_draws(make_space: Make, open_ledger: Make, train: Make) -> None:
    given = spend(open_ledger(make_space(search={"trials": 4, "arms": "none"})), train)
    assert [assignment.arm for assignment in given] == [None] * 4


@pytest.mark.parametrize("name", ["quickstart", "cifar10", "arena"])
@pytest.mark.parametrize("arms", ["fixed", "tuned"])
def test_every_shipped_space_has_its_arms(name: str, arms: str) -> None:
    space = spaces.load(name, [f"search.arms={arms}"])
    preset = published(space, 32)[PAPER_PRESET]
    assert 0 < preset["adversarial"]["warmup_epochs"] < space.tree["train"]["epochs"] / 20
    if arms == "tuned":
        for terms in published(space, 32).values():
            tuned(space, terms)


# --- what machines do to trials


def test_a_trial_that_its_machine_lets_down_is_tried_again_and_failed_at_the_third_time(
    make_space: Make, open_ledger: Make, train: Make, epoch_report: Make
) -> None:
    ledger = open_ledger(make_space(search={"trials": 6}))
    first = ledger.next()
    ledger.report(first.number, epoch_report(1))
    for _ in range(ledgers.STRIKES - 1):
        ledger.lost(first.number, "the worker died")
        again = ledger.next()
        assert (again.number, again.config, again.resumed) == (first.number, first.config, True)
    ledger.lost(first.number, "the worker died")
    record = ledger.records()[0]
    assert (record.status, record.epoch) == ("failed", 1)
    assert record.reason == "3 times, the last time: the worker died"
    assert len(spend(ledger, train)) == 5
    assert ledger.trained == 6


def test_strikes_are_remembered_over_a_restart(make_space: Make, open_ledger: Make) -> None:
    space = make_space()
    for _ in range(ledgers.STRIKES):
        ledger = open_ledger(space)
        ledger.lost(ledger.next().number, "the worker died")
        ledger.interrupt()
    assert ledger.records()[0].status == "failed"


def test_a_configuration_that_failed_is_not_trained_again(make_space: Make, open_ledger: Make, train: Make) -> None:
    space = make_space(
        train={"lr": 0.1}, student={"model": "resnet8", "width": 0.25}, terms={"ce": {}}, search={"arms": "none"}
    )
    ledger = open_ledger(space)
    for _ in range(ledgers.STRIKES):
        ledger.lost(ledger.next().number, "the worker died")
    assert ledger.next() is None
    failed, *others = ledger.records()
    assert {record.status for record in others} == {"duplicate"}
    assert len({config_hash(from_tree(record.config)) for record in (failed, *others)}) == 1


def test_nothing_is_lost_while_the_last_trial_may_still_come_back(make_space: Make, open_ledger: Make) -> None:
    ledger = open_ledger(make_space(search={"trials": 1}))
    only = ledger.next()
    assert ledger.next() is None
    assert ledger.live, "something runs: ask again later"
    ledger.lost(only.number, "the worker died")
    assert ledger.next().number == only.number
    assert ledger.study.trials[only.number].state == TrialState.RUNNING


# --- the smallest student that is good enough


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_the_sampler_knows_which_trials_fell_short_of_the_accuracy_and_by_how_much(
    sampler: str, make_space: Make, shape: dict[str, int], train: Make, tmp_path: Path
) -> None:
    space = make_space(search={"trials": 24, "max_drop": 1.0, "sampler": sampler, "limits": {"params": 20_000}})
    assert space.search.minimize == ("params",)
    meter = Meter(shape)
    ledger = Ledger(space, tmp_path, meter, check_feasible(space, meter), target=0.8)
    while (assignment := ledger.next()) is not None:
        accuracy = 0.7 + assignment.config.student.width / 4 + assignment.number / 1000
        train(ledger, assignment, (accuracy,) * (2 if assignment.number % 5 == 0 else 3))
    for record in ledger.records():
        (shortfall,) = ledger.study.trials[record.number].constraints.values()
        assert shortfall == pytest.approx(0.8 - (record.val_accuracy or 0.0))
