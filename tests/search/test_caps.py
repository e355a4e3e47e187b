"""Caps on device hours and money: what counts, when a search ends, what waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hksd.errors import ConfigError
from hksd_search.caps import Caps, device_hours
from hksd_search.ending import End, Why

Make = Callable[..., Any]
HOUR = 3600.0


def capped(make_space: Make, **caps: float) -> Any:
    return make_space(search={"trials": 6, "sampler": "random", **caps})


def test_a_device_hour_is_of_a_gpu_where_trials_use_them_and_of_the_cores_of_a_trial_elsewhere() -> None:
    assert device_hours(HOUR, 0) == 1
    assert device_hours(HOUR, 0.25) == 0.25
    assert device_hours(HOUR, 2) == 2


def test_at_the_cap_no_trial_starts_and_what_runs_waits_for_a_resume(
    make_space: Make, open_ledger: Make, epoch_report: Make
) -> None:
    ledger = open_ledger(capped(make_space, max_device_hours=10 / HOUR))
    caps = Caps(ledger, teacher_seconds=3.0)
    caps.start(gpu=0)
    first, second = ledger.next(), ledger.next()
    for epoch in (1, 2, 3):
        ledger.report(first.number, epoch_report(epoch))  # 2 s each
    ledger.finish(first.number)
    assert not ledger.stopping, "9 of 10 s"
    ledger.report(second.number, epoch_report(1))
    assert ledger.end == End(Why.CAP, "max_device_hours")
    assert ledger.next() is None
    ledger.finish(second.number)
    assert [record.status for record in ledger.records()] == ["complete", "interrupted"]
    assert caps.cut_short()
    assert caps.hours == pytest.approx(11 / HOUR)


def test_a_resume_counts_what_was_spent_before_and_a_higher_cap_goes_on_with_what_waits(
    make_space: Make, open_ledger: Make, epoch_report: Make
) -> None:
    ledger = open_ledger(capped(make_space, max_device_hours=1 / HOUR))
    Caps(ledger, 0.0).start(gpu=0)
    number = ledger.next().number
    ledger.report(number, epoch_report(1))
    ledger.finish(number)

    again = open_ledger(capped(make_space, max_device_hours=1 / HOUR))
    Caps(again, 0.0).start(gpu=0)
    assert again.next() is None, "the cap was reached before"

    higher = open_ledger(capped(make_space, max_device_hours=5 / HOUR))
    caps = Caps(higher, 0.0)
    caps.start(gpu=0)
    resumed = higher.next()
    assert (resumed.number, resumed.resumed) == (number, True)
    higher.report(number, epoch_report(1))  # the last epoch before a resume is reported again
    assert caps.hours == pytest.approx(2 / HOUR)


def test_a_teacher_that_alone_has_taken_all_of_a_cap_ends_the_search_before_it_trains(
    make_space: Make, open_ledger: Make
) -> None:
    ledger = open_ledger(capped(make_space, max_device_hours=3 / HOUR))
    Caps(ledger, teacher_seconds=2.0).look()
    assert ledger.wants_more()
    Caps(ledger, teacher_seconds=3.0).look()
    assert ledger.end == End(Why.CAP, "max_device_hours")
    assert not ledger.wants_more()


def test_money_is_device_hours_times_the_price(make_space: Make, open_ledger: Make, epoch_report: Make) -> None:
    ledger = open_ledger(capped(make_space, max_cost=1.0, price=0.3 * HOUR))
    caps = Caps(ledger, 0.0)
    caps.start(gpu=0.5)
    number = ledger.next().number
    for epoch, ended in ((1, None), (2, None), (3, None)):  # 2 s of half a GPU cost 0.3
        ledger.report(number, epoch_report(epoch))
        assert (ledger.end and ledger.end.text) == ended
    ledger.finish(number)
    other = ledger.next().number
    ledger.report(other, epoch_report(1))
    assert ledger.end == End(Why.CAP, "max_cost")
    assert "search.max_cost = 1 is reached" in caps.explain("hksd search x --resume")
    assert "hksd search x --resume --max-cost 2" in caps.explain("hksd search x --resume")


def test_a_cap_that_is_reached_with_the_last_trial_cut_nothing_short(
    make_space: Make, open_ledger: Make, train: Make
) -> None:
    space = capped(make_space, max_device_hours=6 / HOUR).with_trials(1)
    ledger = open_ledger(space)
    caps = Caps(ledger, 0.0)
    caps.start(gpu=0)
    train(ledger, ledger.next(), (0.1, 0.2, 0.3))
    assert ledger.end == End(Why.CAP, "max_device_hours")
    assert not caps.cut_short()


def test_ctrl_c_before_the_cap_stays_an_interrupt(make_space: Make, open_ledger: Make, epoch_report: Make) -> None:
    ledger = open_ledger(capped(make_space, max_device_hours=1 / HOUR))
    Caps(ledger, 0.0).start(gpu=0)
    number = ledger.next().number
    ledger.stop(Why.INTERRUPTED)
    ledger.report(number, epoch_report(1))
    assert ledger.end == End(Why.INTERRUPTED)


@pytest.mark.parametrize("caps", [{"max_device_hours": 0}, {"max_cost": 1}, {"max_cost": 1, "price": 0}])
def test_caps_that_cannot_be_are_refused_with_their_key(make_space: Make, caps: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="search"):
        capped(make_space, **caps)
