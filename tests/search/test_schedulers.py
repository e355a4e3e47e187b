"""Early stopping: what each rule may never do, what a resume knows, and that Tune obeys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hksd.config.run import dump
from hksd.schema import check
from hksd_search.backend import connect
from hksd_search.backend.connect import stop_ray
from hksd_search.space.settings import SearchConfig
from hksd_search.strategy.stopping import Brackets, EarlyStopping, Rule, Rung, description, grace_epochs, maker, rungs
from hksd_search.study.records import STUDY_FILE, Record

Make = Callable[..., Any]
EPOCHS, GRACE = 6, 2
NAMES = ("asha", "hyperband", "median")
QUICK: dict[str, dict[str, Any]] = {
    "asha": {"grace_epochs": GRACE, "reduction_factor": 2},
    "hyperband": {"grace_epochs": GRACE, "reduction_factor": 2},
    "median": {"grace_epochs": GRACE, "min_trials": 2},
}


@dataclass(frozen=True)
class Event:
    """A trial has finished an epoch."""

    number: int
    epoch: int
    accuracy: float
    costs: tuple[float, ...]


def settings_of(scheduler: Any) -> SearchConfig:
    found, problems = check(SearchConfig, {"trials": 3, "scheduler": scheduler})
    assert found is not None, problems
    return found


def make_rule(name: str) -> Rule:
    make = maker(settings_of({name: QUICK[name]}).scheduler, GRACE, EPOCHS)
    assert make is not None
    return make()


@st.composite
def courses(draw: st.DrawFn, objectives: int) -> list[Event]:
    """Epochs of up to ten trials at once, each trial's in their order, with many equal accuracies and costs."""
    trials, random = draw(st.integers(1, 10)), draw(st.randoms(use_true_random=False))
    curves = [[random.randint(1, 9) for _ in range(EPOCHS)] for _ in range(trials)]
    costs = [tuple(float(random.randint(1, 4)) for _ in range(objectives - 1)) for _ in range(trials)]
    order = [number for number in range(trials) for _ in range(EPOCHS)]
    random.shuffle(order)
    seen = dict.fromkeys(range(trials), 0)
    events = []
    for number in order:
        seen[number] += 1
        events.append(Event(number, seen[number], curves[number][seen[number] - 1] / 10, costs[number]))
    return events


def play(rule: Rule, events: Sequence[Event]) -> Iterator[tuple[Event, bool, list[Event]]]:
    """Each event with what the rule said and all events until then; a trial that was stopped says no more."""
    stopped: set[int] = set()
    past: list[Event] = []
    for event in events:
        if event.number in stopped:
            continue
        past.append(event)
        rule.enter(event.number, event.epoch, event.accuracy, event.costs)
        if stops := rule.stops(event.number, event.epoch):
            stopped.add(event.number)
        yield event, stops, past


def points(past: Sequence[Event], epoch: int) -> dict[int, tuple[float, ...]]:
    """Accuracy and costs of the trials at an epoch, all to be minimised."""
    return {event.number: (-event.accuracy, *event.costs) for event in past if event.epoch == epoch}


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(first, second, strict=True)) and tuple(first) != tuple(second)


# --- what a rule may never do


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), objectives=st.integers(1, 3))
def test_no_trial_is_stopped_before_the_grace_epochs(name: str, data: st.DataObject, objectives: int) -> None:
    for event, stops, _ in play(make_rule(name), data.draw(courses(objectives))):
        assert not (stops and event.epoch < GRACE)


@pytest.mark.parametrize("name", NAMES)
@given(events=courses(1))
def test_the_best_until_now_is_never_stopped(name: str, events: list[Event]) -> None:
    for event, stops, past in play(make_rule(name), events):
        if event.accuracy >= max(other.accuracy for other in past if other.epoch <= event.epoch):
            assert not stops


@pytest.mark.parametrize("name", ["asha", "hyperband"])
@given(data=st.data(), objectives=st.integers(2, 3))
def test_what_a_rung_stops_another_trial_there_beats_in_everything(
    name: str, data: st.DataObject, objectives: int
) -> None:
    for event, stops, past in play(make_rule(name), data.draw(courses(objectives))):
        if stops:
            there = points(past, event.epoch)
            assert any(dominates(other, there[event.number]) for other in there.values())


@given(events=courses(2))
def test_the_median_is_that_of_students_that_cost_at_most_as_much(events: list[Event]) -> None:
    for event, stops, past in play(make_rule("median"), events):
        if stops:
            cheaper = [other for other in past if other.costs <= event.costs and other.number != event.number]
            assert len({other.number for other in cheaper if other.epoch == event.epoch}) >= 2
            assert max(other.accuracy for other in cheaper if other.epoch >= GRACE) > event.accuracy


# --- what each rule is for


@given(accuracies=st.lists(st.integers(0, 10_000), min_size=1, max_size=40, unique=True), factor=st.floats(1.1, 5))
def test_when_all_have_come_a_rung_keeps_the_best_one_in_the_factor(accuracies: list[int], factor: float) -> None:
    rung = Rung()
    for number, accuracy in enumerate(accuracies):
        rung.enter(number, (-accuracy,))
    kept = {accuracy for number, accuracy in enumerate(accuracies) if rung.keeps(number, factor)}
    assert kept == set(sorted(accuracies)[-math.ceil(len(accuracies) / factor - 1e-9) :])


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=30))
def test_a_rung_counts_for_each_trial_those_that_dominate_it(found: list[tuple[int, int]]) -> None:
    rung = Rung()
    for number, point in enumerate(found):
        rung.enter(number, point)
        rung.enter(number, (0, 0))  # a resumed trial repeats its epoch
    assert rung.beaten.tolist() == [sum(dominates(other, point) for other in found) for point in found]


@pytest.mark.parametrize(
    ("grace", "factor", "epochs", "expected"),
    [
        (1, 3.0, 28, [1, 3, 9, 27]),
        (1, 3.0, 27, [1, 3, 9]),
        (4, 3.0, 12, [4]),
        (2, 1.5, 10, [2, 3, 4, 6]),
        (5, 2, 5, []),
    ],
)
def test_rungs_lie_before_the_last_epoch(grace: int, factor: float, epochs: int, expected: list[int]) -> None:
    assert rungs(grace, factor, epochs) == expected


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_brackets_get_their_shares_of_the_trials_also_of_every_nth(every: int) -> None:
    rule = Brackets([1, 3, 9], 3.0)
    assert [list(bracket.rungs) for bracket in rule.brackets] == [[1, 3, 9], [3, 9], [9], []]
    starts = [27, 12, 6, 4]  # HyperBand's numbers for R = 27 and a factor of 3
    assert rule.shares == pytest.approx([start / sum(starts) for start in starts])
    numbers = range(0, 2000 * every, every)
    counts = [sum(rule.of(number) is bracket for number in numbers) / 2000 for bracket in rule.brackets]
    assert counts == pytest.approx(rule.shares, abs=0.01)


def test_fewer_brackets_are_the_first_ones() -> None:
    assert [list(bracket.rungs) for bracket in Brackets([2, 6], 3.0, 2).brackets] == [[2, 6], [6]]
    assert len(Brackets([2, 6], 3.0, 9).brackets) == 3


def test_the_median_rule_stops_what_is_worse_than_half_and_waits_for_enough_others() -> None:
    rule = make_rule("median")
    said = []
    for number, accuracy in enumerate([0.1, 0.9, 0.5, 0.4, 0.8]):
        rule.enter(number, GRACE, accuracy, ())
        said.append(rule.stops(number, GRACE))
    assert said == [False, False, False, True, False]  # medians of the others: none, none, 0.5, 0.5, 0.45


# --- what a resume knows


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), objectives=st.integers(1, 2), now=st.integers(0, 10 * EPOCHS))
def test_a_rule_that_is_shown_the_study_goes_on_like_the_one_that_lived_it(
    name: str, data: st.DataObject, objectives: int, now: int
) -> None:
    events = data.draw(courses(objectives))
    lived, resumed = make_rule(name), make_rule(name)
    past = [event for event, _, _ in play(lived, events[:now])]
    for event in sorted(past, key=lambda event: (event.number, event.epoch)):
        for _ in range(2):  # a resumed trial repeats its last epoch
            resumed.enter(event.number, event.epoch, event.accuracy, event.costs)
    alive = {e.number for e in events} - {e.number for e in past if lived.stops(e.number, e.epoch)}
    coming = [event for event in events[now:] if event.number in alive]
    assert [stops for _, stops, _ in play(lived, coming)] == [stops for _, stops, _ in play(resumed, coming)]


@pytest.mark.parametrize("minimize", [[], ["params"]])
def test_the_study_keeps_the_accuracy_of_every_epoch_in_space_that_grows_with_their_number_only(
    minimize: list[str], make_space: Make, open_ledger: Make, epoch_report: Make, tmp_path: Path
) -> None:
    ledger = open_ledger(make_space(train={"epochs": 60}, search={"minimize": minimize}))
    number, journal, sizes = ledger.next().number, tmp_path / STUDY_FILE, []
    for epoch in range(1, 61):
        before = journal.stat().st_size
        ledger.report(number, epoch_report(epoch, epoch / 100))
        sizes.append(journal.stat().st_size - before)
    assert ledger.records()[0].accuracies == {epoch: epoch / 100 for epoch in range(1, 61)}
    assert max(sizes) < min(sizes) + 40  # digits of the numbers
    assert "accuracies" not in ledger.records()[0].flat()


def test_a_duplicate_has_no_accuracies_of_its_own(make_space: Make, open_ledger: Make, train: Make) -> None:
    tiny = {
        "student": {"model": "resnet8", "width": {"choice": [0.25, 0.5]}},
        "terms": {"ce": {}},
        "train": {"lr": 0.1},
    }
    ledger = open_ledger(make_space(**tiny))
    while (assignment := ledger.next()) is not None:
        train(ledger, assignment, (0.1, 0.2, 0.3))
    duplicates = [record for record in ledger.records() if record.status == "duplicate"]
    assert duplicates
    assert not any(record.accuracies for record in duplicates)


@pytest.mark.parametrize("minimize", [[], ["params"]])
def test_a_resumed_search_remembers_its_rungs(
    minimize: list[str], make_space: Make, open_ledger: Make, train: Make
) -> None:
    space = make_space(search={"minimize": minimize, "scheduler": {"asha": {"grace_epochs": 1}}})
    ledger = open_ledger(space)
    for accuracy in (0.99, 0.99, 0.9, 0.89, 0.88, 0.7):  # the first two are arms
        train(ledger, ledger.next(), (accuracy,))
    anew, resumed = EarlyStopping(space), EarlyStopping(space, open_ledger(space).records())
    costs = {"params": 10**9, "mflops": 1.0}  # beats nobody
    assert not anew.stops(9, None, 1, 0.85, costs)
    assert resumed.stops(9, None, 1, 0.85, costs)
    assert not resumed.stops(10, None, 1, 0.95, costs)  # better than every drawn trial, and arms do not count


# --- who competes


def record(number: int, arm: str | None, accuracy: float) -> Record:
    costs = {"params": 1000.0, "mflops": 1.0}
    return Record(number, "complete", arm, {}, costs, 3, accuracy, 1.0, None, dict.fromkeys((1, 2, 3), accuracy))


@pytest.mark.parametrize("name", NAMES)
def test_fixed_arms_and_last_epochs_never_stop_and_tuned_arms_compete_within_their_own(
    name: str, make_space: Make
) -> None:
    settings = {**QUICK[name], "grace_epochs": 1}
    known = [record(number, arm, 0.9) for number, arm in enumerate([None] * 12 + ["standard KD"] * 12)]
    for arms in ("fixed", "tuned"):
        space = make_space(search={"scheduler": {name: settings}, "arms": arms})
        stopping = EarlyStopping(space, known)

        def bad(arm: str | None, epoch: int = 1, stopping: EarlyStopping = stopping) -> bool:
            costs = {"params": 1000.0, "mflops": 1.0}
            return any(stopping.stops(number, arm, epoch, 0.1, costs) for number in range(50, 55))

        assert bad(None)
        assert not bad(None, epoch=3)
        assert bad("standard KD") == (arms == "tuned")
        assert not stopping.stops(60, "no distillation", 1, 0.1, {"params": 1000.0, "mflops": 1.0})


# --- settings


@pytest.mark.parametrize(
    ("written", "name", "settings"),
    [
        ("none", "none", None),
        ("asha", "asha", {"grace_epochs": None, "reduction_factor": 3.0}),
        ({}, "asha", {"grace_epochs": None, "reduction_factor": 3.0}),
        ({"asha": None}, "none", None),
        ("hyperband", "hyperband", {"grace_epochs": None, "reduction_factor": 3.0, "brackets": None}),
        ({"hyperband": {"brackets": 2}}, "hyperband", {"grace_epochs": None, "reduction_factor": 3.0, "brackets": 2}),
        ({"median": {}}, "median", {"grace_epochs": None, "min_trials": 5}),
        ({"asha": None, "median": {"min_trials": 2}}, "median", {"grace_epochs": None, "min_trials": 2}),
    ],
)
def test_a_scheduler_is_a_name_or_one_section_and_reads_back_as_written(
    written: Any, name: str, settings: dict[str, Any] | None
) -> None:
    found = settings_of(written)
    assert found.scheduler.name == name
    assert (dump(found.scheduler.chosen) if found.scheduler.chosen else None) == settings
    assert settings_of(dump(found.scheduler)) == found


@pytest.mark.parametrize(
    ("written", "path", "message"),
    [
        ({"asha": {}, "median": {}}, ("scheduler",), "one scheduler at a time, got asha and median"),
        ({"hyperband": None}, ("scheduler",), "`scheduler: hyperband` takes the defaults"),
        ("hyperbnd", ("scheduler",), "did you mean 'hyperband'?"),
        ({"hyperband": {"bracket": 1}}, ("scheduler", "hyperband", "bracket"), "did you mean 'brackets'?"),
        ({"median": {"min_trials": 0}}, ("scheduler", "median", "min_trials"), "at least 1"),
        (None, ("scheduler",), "a section of keys"),
    ],
)
def test_a_wrong_scheduler_is_named_with_its_key(written: Any, path: tuple[str, ...], message: str) -> None:
    found, problems = check(SearchConfig, {"trials": 3, "scheduler": written})
    assert found is None
    assert [problem.path for problem in problems] == [path]
    assert message in problems[0].message


@pytest.mark.parametrize(
    ("adversarial", "settings", "epochs", "grace"),
    [
        (None, {}, 12, 4),
        ({"warmup_epochs": 2}, {}, 12, 4),
        ({"warmup_epochs": 4.5, "delay_epochs": 1}, {}, 12, 6),
        ({"warmup_epochs": {"uniform": [1, 7]}, "delay_epochs": {"choice": [3, 1]}}, {}, 12, 10),
        ({"weight": {"log_uniform": [0.01, 1], "off": 0.5}}, {}, 12, 10),  # 10 is the default
        ({}, {}, 8, 8),
        ({}, {"grace_epochs": 3}, 8, 3),
        ({"weight": 0}, {}, 12, 4),
    ],
)
def test_grace_lasts_until_the_adversarial_term_of_every_draw_has_its_full_weight(
    adversarial: dict[str, Any] | None, settings: dict[str, Any], epochs: int, grace: int, make_space: Make
) -> None:
    terms = {"ce": {}} | ({} if adversarial is None else {"adversarial": adversarial})
    space = make_space(terms=terms, train={"epochs": epochs}, search={"scheduler": {"median": settings}})
    assert grace_epochs(space) == grace
    if grace == epochs:
        assert "adversarial" in description(space)
        assert EarlyStopping(space).make is None
    else:
        assert description(space) == f"median: no trial is stopped before epoch {grace} of {epochs}"


def test_grace_looks_at_every_alternative(make_space: Make) -> None:
    two = {"ce": {}, "one_of": {"kd": {"kd": {}}, "game": {"adversarial": {"warmup_epochs": 7}}}}
    assert grace_epochs(make_space(terms=two, train={"epochs": 12})) == 7


# --- Tune


def curve(number: int) -> list[float]:
    """Accuracies of a made-up trial: the later it is drawn, the worse it is."""
    return [0.9 - 0.01 * number + 0.001 * epoch for epoch in range(1, 5)]


def reporting() -> Callable[..., None]:
    """A trial that reports its curve; an inner function, since those travel to workers by value."""

    def trial(assignment: dict[str, Any], **_: Any) -> None:
        from ray import tune

        number = assignment["number"]
        for epoch in range(1, 5):
            accuracy = 0.9 - 0.01 * number + 0.001 * epoch
            tune.report({"number": number, "epoch": epoch, "val_accuracy": accuracy, "seconds": 0.0})

    return trial


@pytest.fixture(scope="module")
def tuning() -> Iterator[Any]:
    """A private Ray of one core, so that trials come one after the other."""
    connect.prepare(None)
    import ray

    from hksd_search.backend import tuning

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield tuning
    stop_ray()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheduler", "minimize"),
    [("none", []), *(({name: {"grace_epochs": 1}}, []) for name in NAMES), ({"asha": {"grace_epochs": 1}}, ["params"])],
    ids=str,
)
def test_tune_stops_the_trials_that_the_rule_stops(
    scheduler: Any, minimize: list[str], tuning: Any, make_space: Make, open_ledger: Make, tmp_path: Path
) -> None:
    tiny = {"student": {"model": "resnet8", "width": 0.25}, "train": {"epochs": 4, "device": "cpu"}}
    space = make_space(**tiny, search={"trials": 12, "scheduler": scheduler, "minimize": minimize, "concurrent": 1})
    ledger = open_ledger(space)
    tuning.tune_trials(ledger, None, tmp_path, tmp_path, trial=reporting())
    stopping = EarlyStopping(space)
    for found in ledger.records():
        if found.status in ("complete", "pruned"):
            number, arm, costs, values = found.number, found.arm, found.costs, enumerate(curve(found.number), 1)
            last = next((epoch for epoch, value in values if stopping.stops(number, arm, epoch, value, costs)), 4)
            assert (found.status, found.epoch) == ("pruned" if last < 4 else "complete", last)
    pruned = sum(found.status == "pruned" for found in ledger.records())
    assert (pruned > 0) == (scheduler != "none")
