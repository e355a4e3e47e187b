"""The ledger: every trial ends as it ended, nothing is trained twice or in vain, and a dead process loses nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from hksd.config import run as config
from hksd.config.run import RunConfig, config_hash, from_tree
from hksd.errors import UserError
from hksd_search.ending import End, Why
from hksd_search.ledger import Events, Ledger
from hksd_search.space import arms
from hksd_search.space import space as spaces
from hksd_search.space.arms import ARMS
from hksd_search.space.sizes import Meter, check_feasible, within
from hksd_search.study.reading import front
from hksd_search.study.records import STUDY_FILE, Assignment, Record, label, read_records

Make = Callable[..., Any]
TINY = {"student": {"model": "resnet8", "width": {"choice": [0.25, 0.5]}}, "terms": {"ce": {}}, "train": {"lr": 0.1}}


def states(ledger: Ledger) -> Counter[str]:
    return Counter(trial.state.name for trial in ledger.study.get_trials(deepcopy=False))


def trial(ledger: Ledger, number: int) -> optuna.trial.FrozenTrial:
    return ledger.study.get_trials(deepcopy=False)[number]


def statuses(ledger: Ledger) -> Counter[str]:
    return Counter(record.status for record in ledger.records())


def take(ledger: Ledger) -> Assignment:
    assignment = ledger.next()
    assert assignment is not None
    return assignment


def spend(ledger: Ledger, train: Make, accuracies: tuple[float, ...] = (0.1, 0.2, 0.3)) -> list[Assignment]:
    """Train all that the ledger hands out."""
    given_out = []
    while (assignment := ledger.next()) is not None:
        given_out.append(assignment)
        train(ledger, assignment, accuracies)
    return given_out


# --- arms


@pytest.mark.parametrize("limits", [{}, {"params": 20_000}, {"params": 30_000, "mflops": 0.5}])
def test_the_arms_come_first_with_the_largest_student_within_the_limits(
    limits: dict[str, float], make_space: Make, open_ledger: Make, shape: dict[str, int]
) -> None:
    space = make_space(search={"limits": limits})
    ledger = open_ledger(space)
    given = [take(ledger) for _ in range(5)]
    assert [a.arm for a in given] == [*ARMS, None]
    assert [a.number for a in given] == [0, 1, 2, 3, 4]
    none, standard, transfer, preset = (assignment.config for assignment in given[:4])
    assert {c.student for c in (none, standard, transfer, preset)} == {check_feasible(space, Meter(shape))}
    assert {c.train for c in (none, standard, transfer, preset)} == {space.middle({}).train}
    assert list(none.terms.active()) == ["ce"]
    assert {name: term.weight for name, term in standard.terms.items()} == {"ce": 0.1, "kd": 0.9}
    assert standard.terms["kd"].temperature == 4.0
    assert {name: term.weight for name, term in transfer.terms.items()} == {"ce": 1.0, "attention_transfer": 62.5}
    assert list(preset.terms) == list(config.load(spaces.find("hksd")).terms)


def test_an_arm_that_was_given_out_is_not_given_out_again_after_a_restart(make_space: Make, open_ledger: Make) -> None:
    space = make_space()
    first = open_ledger(space)
    take(first)
    first.interrupt()
    again = open_ledger(space)
    assert [take(again).arm for _ in range(5)] == [*ARMS, None]
    assert [record.arm for record in again.records()] == [*ARMS, None]


# --- how a trial ends


@pytest.mark.parametrize(
    ("accuracies", "status", "state"),
    [
        ((), "pruned", "PRUNED"),
        ((0.9,), "pruned", "PRUNED"),
        ((0.9, 0.5), "pruned", "PRUNED"),
        ((0.9, 0.5, 0.4), "complete", "COMPLETE"),
    ],
)
def test_a_trial_is_complete_only_after_its_last_epoch_and_worth_the_value_of_its_last(
    accuracies: tuple[float, ...], status: str, state: str, make_space: Make, open_ledger: Make, train: Make
) -> None:
    ledger = open_ledger(make_space())
    train(ledger, take(ledger), accuracies)
    told, record = trial(ledger, 0), ledger.records()[0]
    assert (record.status, told.state.name) == (status, state)
    assert told.value == (accuracies[-1] if accuracies else None)
    assert told.intermediate_values == dict(enumerate(accuracies, 1))
    assert (record.epoch, record.val_accuracy) == (len(accuracies), accuracies[-1] if accuracies else None)
    assert record.seconds == 2.0 * len(accuracies)
    assert record.reason is None


@pytest.mark.parametrize("accuracies", [(), (0.5,), (0.5, 0.6, 0.7)])
def test_a_trial_with_a_fault_has_failed_with_its_reason_however_far_it_got(
    accuracies: tuple[float, ...], make_space: Make, open_ledger: Make, train: Make
) -> None:
    ledger = open_ledger(make_space())
    train(ledger, take(ledger), accuracies, "NonFiniteLossError: at epoch 1")
    assert trial(ledger, 0).state == TrialState.FAIL
    record = ledger.records()[0]
    assert (record.status, record.reason, record.epoch) == ("failed", "NonFiniteLossError: at epoch 1", len(accuracies))


def test_a_repeated_report_of_an_epoch_is_ignored(make_space: Make, open_ledger: Make, epoch_report: Make) -> None:
    heard: list[int] = []
    ledger = open_ledger(make_space(), Events(reported=[lambda number, report: heard.append(report["epoch"])]))
    number = take(ledger).number
    for epoch, accuracy in [(1, 0.1), (2, 0.2), (1, 0.8), (2, 0.9), (3, 0.3), (3, 0.7)]:
        ledger.report(number, epoch_report(epoch, accuracy))
    ledger.finish(number)
    assert heard == [1, 2, 3]
    assert trial(ledger, number).intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3}
    record = ledger.records()[number]
    assert (record.val_accuracy, record.seconds) == (0.3, 6.0)


def test_trials_at_the_same_time_do_not_mix(make_space: Make, open_ledger: Make, epoch_report: Make) -> None:
    ledger = open_ledger(make_space())
    numbers = [take(ledger).number for _ in range(3)]
    for epoch in (1, 2, 3):
        for number in numbers:
            if number != 1 or epoch < 2:
                ledger.report(number, epoch_report(epoch, number / 10 + epoch / 100))
    ledger.finish(2)
    ledger.finish(1)
    ledger.finish(0, "a fault")
    assert [record.status for record in ledger.records()] == ["failed", "pruned", "complete"]
    assert [record.val_accuracy for record in ledger.records()] == [0.03, 0.11, 0.23]


def test_observers_hear_of_every_start_report_and_end_in_order(
    make_space: Make, open_ledger: Make, train: Make
) -> None:
    heard: list[tuple[Any, ...]] = []
    events = Events(
        started=[lambda assignment: heard.append(("start", assignment.number, assignment.resumed))],
        reported=[lambda number, report: heard.append(("epoch", number, report["epoch"]))],
        ended=[lambda record: heard.append(("end", record.number, record.status))],
    )
    space = make_space(search={"trials": 3})
    ledger = open_ledger(space, events)
    train(ledger, take(ledger), (0.1, 0.2, 0.3))
    train(ledger, take(ledger), (0.1,))
    take(ledger)
    ledger.interrupt()
    assert heard == [
        ("start", 0, False),
        ("epoch", 0, 1),
        ("epoch", 0, 2),
        ("epoch", 0, 3),
        ("end", 0, "complete"),
        ("start", 1, False),
        ("epoch", 1, 1),
        ("end", 1, "pruned"),
        ("start", 2, False),
        ("end", 2, "interrupted"),
    ]
    heard.clear()
    take(open_ledger(space, events))
    assert heard == [("start", 2, True)]


# --- what is not trained


def test_draws_outside_the_limits_are_told_but_neither_trained_nor_counted(
    make_space: Make, open_ledger: Make, train: Make, shape: dict[str, int]
) -> None:
    space = make_space(search={"trials": 8, "limits": {"params": 20_000}})
    ended: list[Record] = []
    ledger = open_ledger(space, Events(ended=[ended.append]))
    given_out = spend(ledger, train)
    assert len(given_out) == ledger.trained == 8
    assert not any(within(space.search.limits, Meter(shape).costs(a.config.student)) for a in given_out)
    refused = [record for record in ledger.records() if record.status == "rejected"]
    assert refused
    assert {record.number for record in refused}.isdisjoint(a.number for a in given_out)
    for record in refused:
        assert record.params is not None
        assert record.params > 20_000
        assert record.reason == f"outside the limits: params {record.params} > 20000"
        assert trial(ledger, record.number).state == TrialState.PRUNED
    assert [record.number for record in ended] == list(range(len(ledger.records())))
    assert states(ledger).keys() == {"COMPLETE", "PRUNED"}


def test_a_space_without_anything_new_stops_by_itself_and_says_so(
    make_space: Make, open_ledger: Make, train: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "PATIENCE", 25)
    space = make_space(**TINY, search={"trials": 50})
    ledger = open_ledger(space)
    given_out = spend(ledger, train)
    # Arms with the largest student, of which the first is a draw of the space too, and one smaller student.
    assert len(given_out) == ledger.trained == 5
    assert len({config_hash(assignment.config) for assignment in given_out}) == 5
    assert ledger.end == End(Why.EXHAUSTED)
    records = ledger.records()
    by_number = {record.number: record for record in records}
    duplicates = [record for record in records if record.status == "duplicate"]
    assert 25 <= len(duplicates) == len(records) - 5 <= 75
    for record in duplicates:
        twin = int(str(record.reason).rsplit(" ", 1)[1])
        assert by_number[twin].status == "complete"
        assert by_number[twin].config == record.config
        assert trial(ledger, record.number).state == TrialState.PRUNED
    # To the sampler a duplicate is worth what its twin reached.
    assert {trial(ledger, record.number).value for record in duplicates} == {0.3}


def test_an_exhausted_space_still_ends_when_it_is_continued(
    make_space: Make, open_ledger: Make, train: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "PATIENCE", 10)
    space = make_space(**TINY, search={"trials": 50})
    spend(open_ledger(space), train)
    again = open_ledger(space)
    assert spend(again, train) == []
    assert again.end == End(Why.EXHAUSTED)
    assert again.trained == 5


def test_the_patience_is_with_refusals_in_a_row_and_not_with_all_of_them(
    make_space: Make, open_ledger: Make, train: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "PATIENCE", 12)
    ledger = open_ledger(make_space(search={"trials": 24, "limits": {"params": 12_000}}))
    assert len(spend(ledger, train)) == 24
    assert statuses(ledger)["rejected"] > 12
    assert ledger.end is None


@pytest.mark.parametrize(
    "sections",
    [
        # A term of weight 0 and no such term, and Nesterov's form of no momentum, are the same run.
        {"terms": {"ce": {"weight": 0.5}, "kd": {"weight": {"choice": [0.0], "off": 0.5}}}, "train": {"lr": 0.1}},
        {"terms": {"ce": {"weight": 0.5}}, "train": {"lr": 0.1, "momentum": 0, "nesterov": {"choice": [True, False]}}},
    ],
    ids=["weight", "momentum"],
)
def test_draws_that_differ_only_in_what_cannot_matter_are_duplicates(
    sections: dict[str, Any], make_space: Make, open_ledger: Make, train: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "PATIENCE", 10)
    ledger = open_ledger(make_space(student={"model": "resnet8", "width": 0.25}, **sections))
    given_out = spend(ledger, train)
    assert [assignment.arm for assignment in given_out] == [*ARMS, None]
    assert statuses(ledger) == {"complete": 5, "duplicate": 10}
    assert len({json.dumps(trial(ledger, record.number).params) for record in ledger.records()[4:]}) > 1


@pytest.mark.parametrize(
    "terms",
    [
        {"ce": {"weight": {"uniform": [0.1, 1], "off": 0.5}}, "kd": {"weight": {"uniform": [0.1, 1], "off": 0.5}}},
        {"ce": {"weight": {"choice": [1, 0]}}},
        {"ce": {"weight": {"choice": [1, 0]}}, "kd": {"weight": {"uniform": [1, 2], "off": 0.5}}},
        {"kd": {"weight": {"choice": [1.0], "off": 0.5}}, "squeeze": {}},
        {"ce": {"weight": {"choice": [1.0], "off": 0.5}}, "adversarial": {"category_weight": {"choice": [1, 0]}}},
    ],
    ids=str,
)
def test_a_draw_without_any_term_that_tells_the_classes_is_refused_like_one_outside_the_limits(
    terms: dict[str, Any], make_space: Make, open_ledger: Make, train: Make
) -> None:
    ledger = open_ledger(make_space(terms=terms, search={"trials": 12}))
    given_out = spend(ledger, train)
    assert len(given_out) == ledger.trained == 12
    assert all(assignment.config.terms.active() for assignment in given_out)
    refused = [record for record in ledger.records() if record.status == "rejected"]
    assert refused
    assert all("no term tells the student the classes" in str(record.reason) for record in refused)
    assert states(ledger) == {"COMPLETE": 12, "PRUNED": len(refused)}


def test_what_failed_or_was_stopped_is_not_trained_again_either(
    make_space: Make, open_ledger: Make, train: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "PATIENCE", 10)
    ledger = open_ledger(make_space(**TINY, search={"trials": 50}))
    for reason, accuracies in (("broken", (0.1,)), (None, (0.1,)), ("broken", ()), (None, ()), ("broken", (0.1,))):
        train(ledger, take(ledger), accuracies, reason)
    assert ledger.next() is None
    assert statuses(ledger) == {"failed": 3, "pruned": 2, "duplicate": len(ledger.records()) - 5}


# --- the budget


@pytest.mark.parametrize("trials", [1, 2, 5])
def test_the_budget_counts_trials_that_run_and_trials_that_ended_in_any_way(
    trials: int, make_space: Make, open_ledger: Make, train: Make
) -> None:
    ends = [((0.1, 0.2, 0.3), None), ((0.1,), None), ((0.1,), "a fault"), ((), "a fault"), ((0.1, 0.2), None)]
    ledger = open_ledger(make_space(search={"trials": trials}))
    live = [take(ledger) for _ in range(trials)]
    assert ledger.next() is None
    for assignment, (accuracies, reason) in zip(live, ends, strict=False):
        train(ledger, assignment, accuracies, reason)
        assert ledger.next() is None
    assert ledger.trained == trials == len(ledger.records())
    assert ledger.end is None


def test_a_ledger_over_a_finished_search_hands_out_nothing_until_the_budget_is_raised(
    make_space: Make, open_ledger: Make, train: Make
) -> None:
    space = make_space(search={"trials": 6})
    before = open_ledger(space)
    spend(before, train)
    records = before.records()
    after = open_ledger(space)
    assert (after.trained, after.next()) == (6, None)
    assert after.records() == records
    more = open_ledger(space.with_trials(8))
    assert [assignment.number for assignment in spend(more, train)] == [6, 7]
    assert more.records()[:6] == records


@settings(max_examples=12)
@given(course=st.lists(st.sampled_from(["complete", "pruned", "failed", "interrupted"]), min_size=1, max_size=6))
def test_after_any_course_of_events_nothing_runs_and_a_restart_trains_exactly_what_is_left(
    course: list[str], make_space: Make, shape: dict[str, int], train: Make, tmp_path_factory: pytest.TempPathFactory
) -> None:
    space = make_space(search={"trials": 6})

    def ledger() -> Ledger:
        return Ledger(space, folder, Meter(shape), check_feasible(space, Meter(shape)))

    folder = tmp_path_factory.mktemp("course")
    first = ledger()
    assignments = [take(first) for _ in course]
    for assignment, end in zip(assignments, course, strict=True):
        if end != "interrupted":
            accuracies = {"complete": (0.1, 0.2, 0.3), "pruned": (0.1,), "failed": (0.1, 0.2)}[end]
            train(first, assignment, accuracies, "a fault" if end == "failed" else None)
    first.interrupt()
    assert [record.status for record in first.records()] == course
    assert states(first)["RUNNING"] == 0
    second = ledger()
    again = spend(second, train)
    waiting = [assignment for assignment, end in zip(assignments, course, strict=True) if end == "interrupted"]
    assert [(a.number, a.config, a.arm) for a in again if a.resumed] == [(a.number, a.config, a.arm) for a in waiting]
    assert len(again) == 6 - len(course) + len(waiting)
    assert second.trained == 6 == sum(statuses(second)[status] for status in ("complete", "pruned", "failed"))


# --- stopping, dying, continuing


def test_an_interrupt_leaves_nothing_running_and_keeps_what_was_reported(
    make_space: Make, open_ledger: Make, epoch_report: Make
) -> None:
    space = make_space()
    ledger = open_ledger(space)
    first, second, third = (take(ledger) for _ in range(3))
    ledger.report(first.number, epoch_report(1, 0.4))
    for epoch in (1, 2, 3):
        ledger.report(second.number, epoch_report(epoch, 0.5))
    ledger.interrupt()
    assert not ledger.live
    assert ledger.next() is None
    # The second one is through, but whether its student is on disk nobody knows.
    assert states(ledger) == {"WAITING": 3}
    assert [record.status for record in ledger.records()] == ["interrupted"] * 3
    again = open_ledger(space)
    resumed = [take(again) for _ in range(3)]
    assert [(a.number, a.config, a.resumed) for a in resumed] == [
        (0, first.config, True),
        (1, second.config, True),
        (2, third.config, True),
    ]
    for epoch in (1, 2, 3):
        again.report(0, epoch_report(epoch, epoch / 10))
    again.finish(0)
    # The epoch from before the interrupt stands, with its value and its time.
    assert trial(again, 0).intermediate_values == {1: 0.4, 2: 0.2, 3: 0.3}
    assert again.records()[0].seconds == 6.0


def test_a_trial_that_ends_while_the_search_stops_waits_unless_it_is_through(
    make_space: Make, open_ledger: Make, epoch_report: Make
) -> None:
    ledger = open_ledger(make_space())
    numbers = [take(ledger).number for _ in range(3)]
    ledger.stop(Why.INTERRUPTED)
    ledger.report(numbers[0], epoch_report(1))
    ledger.finish(numbers[0])
    for epoch in (1, 2, 3):
        ledger.report(numbers[1], epoch_report(epoch))
    ledger.finish(numbers[1])
    ledger.finish(numbers[2], "a fault")
    assert [record.status for record in ledger.records()] == ["interrupted", "complete", "failed"]
    assert ledger.next() is None


DRIVER = """
import json, os, sys, time
from pathlib import Path
from hksd_search.space import space as spaces
from hksd_search.ledger import Ledger
from hksd_search.space.sizes import Meter, check_feasible

space = spaces.load(sys.argv[1])
shape = {"in_channels": 1, "classes": 10, "image_size": 8}
ledger = Ledger(space, Path(sys.argv[2]), Meter(shape), check_feasible(space, Meter(shape)))
report = lambda n, e, a: ledger.report(n, {"epoch": e, "val_accuracy": a, "seconds": 1.0})
"""
DIES_BETWEEN = (
    DRIVER
    + """
taken = [ledger.next() for _ in range(4)]
for epoch in (1, 2, 3):
    report(0, epoch, epoch / 10)
ledger.finish(0)
report(1, 1, 0.6)
ledger.finish(1, "a fault")
report(2, 1, 0.7)
print(json.dumps([[a.number, a.arm] for a in taken]), flush=True)
time.sleep(60)
"""
)


def die(process: subprocess.Popen[str], lines: int) -> list[Any]:
    """Read some lines of a child, then kill it as the kernel does."""
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    _, complaint = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL, complaint
    return [json.loads(line) for line in said]


def test_after_a_killed_process_its_trials_go_on_under_their_numbers_and_finished_ones_count(
    child: Make, tmp_path: Path, space_text: Make, make_space: Make, open_ledger: Make, train: Make
) -> None:
    (tmp_path / "small.yaml").write_text(space_text())
    (taken,) = die(child(DIES_BETWEEN, tmp_path / "small.yaml", tmp_path), 1)
    assert taken == [[number, arm] for number, arm in enumerate(ARMS)]
    before = read_records(tmp_path)
    assert [record.status for record in before] == ["complete", "failed", "running", "running"]
    ledger = open_ledger(make_space())
    assert ledger.trained == 2
    assert states(ledger) == {"COMPLETE": 1, "FAIL": 1, "WAITING": 2}
    resumed = [take(ledger), take(ledger)]
    assert [(a.number, a.resumed) for a in resumed] == [(2, True), (3, True)]
    assert [a.config for a in resumed] == [from_tree(record.config) for record in before[2:]]
    for assignment in resumed:
        train(ledger, assignment, (0.1, 0.2, 0.3))
    assert [a.number for a in spend(ledger, train)] == [4, 5, 6, 7]
    assert ledger.trained == 8 == len(ledger.records())
    assert trial(ledger, 2).intermediate_values == {1: 0.7, 2: 0.2, 3: 0.3}
    assert len({config_hash(from_tree(record.config)) for record in ledger.records()}) == 8


# The process dies after the n-th record of the journal, so in the middle of anything that takes two, although records
# are appended together.
DIES_WRITING = """
import os, sys
from pathlib import Path
from optuna.storages.journal import JournalFileBackend
from hksd_search.space import space as spaces
from hksd_search.ledger import Ledger
from hksd_search.space.sizes import Meter, check_feasible

space, folder = spaces.load(sys.argv[1]), Path(sys.argv[2])
shape = {"in_channels": 1, "classes": 10, "image_size": 8}
largest, write = check_feasible(space, Meter(shape)), JournalFileBackend.append_logs

def deadly(self, logs):
    global left
    for log in logs:
        write(self, [log])
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)

for writes in map(int, sys.argv[3:]):
    left = writes
    if os.fork() == 0:
        JournalFileBackend.append_logs = deadly
        (folder / str(writes)).mkdir()
        ledger = Ledger(space, folder / str(writes), Meter(shape), largest)
        while (a := ledger.next()) is not None:
            ledger.report(a.number, {"epoch": 1, "val_accuracy": 0.5, "seconds": 1.0})
            ledger.finish(a.number, "a fault" if a.number % 3 == 1 else None)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == -9, writes
"""
LIMITED = {
    "search": {"trials": 8, "sampler": "random", "limits": {"params": 20_000}, "seed": 1},
    "train": {"epochs": 1},
}
WRITES = range(1, 60, 2)


@pytest.fixture(scope="module")
def dead(child: Make, space_text: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of searches whose process died after so many writes."""
    folder = tmp_path_factory.mktemp("dead")
    (folder / "small.yaml").write_text(space_text(**LIMITED))
    process = child(DIES_WRITING, folder / "small.yaml", folder, *WRITES)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 0, complaint
    return folder


@pytest.mark.parametrize("writes", WRITES)
def test_a_process_that_dies_at_any_write_costs_no_trial_and_lets_none_pass(
    writes: int, dead: Path, make_space: Make, open_ledger: Make, train: Make
) -> None:
    ledger = open_ledger(make_space(**LIMITED), folder=dead / str(writes))
    assert states(ledger)["RUNNING"] == 0
    spend(ledger, train, (0.5,))
    assert states(ledger).keys() <= {"COMPLETE", "PRUNED", "FAIL"}
    ended = [record for record in ledger.records() if record.status in ("complete", "pruned", "failed")]
    assert len(ended) == 8
    assert [record.arm for record in ended] == [*ARMS, None, None, None, None]
    assert all(record.params is not None and record.params <= 20_000 for record in ended)
    assert len({config_hash(from_tree(record.config)) for record in ended}) == 8
    for record in ledger.records():
        expected = {"complete": "COMPLETE", "failed": "FAIL"}.get(record.status, "PRUNED")
        assert trial(ledger, record.number).state.name == expected
        assert (record.reason is None) == (record.status in ("complete", "pruned"))


def test_a_restart_does_not_repeat_the_draws_of_the_start(make_space: Make, open_ledger: Make, train: Make) -> None:
    space = make_space(search={"trials": 10})
    first = open_ledger(space.with_trials(5))
    spend(first, train)
    spend(open_ledger(space), train)
    records = open_ledger(space).records()
    assert [record.status for record in records] == ["complete"] * 10
    drawn = [record.config["train"]["lr"] for record in records[4:] if record.config]
    assert len(set(drawn)) == 6


def test_the_same_seed_draws_the_same_and_another_seed_another(
    make_space: Make, open_ledger: Make, train: Make, tmp_path: Path
) -> None:
    drawn: list[list[RunConfig]] = []
    for number, seed in enumerate((3, 3, 4)):
        (tmp_path / str(number)).mkdir()
        ledger = open_ledger(make_space(search={"seed": seed, "trials": 7}), folder=tmp_path / str(number))
        drawn.append([assignment.config for assignment in spend(ledger, train)])
    assert drawn[0] == drawn[1]
    assert drawn[0][4:] != drawn[2][4:]


# --- several objectives


def test_several_objectives_are_told_in_their_order_and_give_a_front(
    make_space: Make, open_ledger: Make, train: Make
) -> None:
    space = make_space(search={"trials": 8, "minimize": ["mflops", "params"]})
    ledger = open_ledger(space)
    dice = random.Random(0)
    for index in range(8):
        accuracies = tuple(round(dice.random(), 2) for _ in range(1 if index == 5 else 3))
        train(ledger, take(ledger), accuracies, "a fault" if index == 6 else None)
    assert ledger.study.metric_names == ["val_accuracy", "mflops", "params"]
    assert [direction.name for direction in ledger.study.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    assert statuses(ledger) == {"complete": 6, "pruned": 1, "failed": 1}
    for record in ledger.records():
        told = trial(ledger, record.number)
        if record.status == "complete":
            assert told.values == [record.val_accuracy, record.mflops, record.params]
    pruned = ledger.records()[5]
    assert (pruned.status, pruned.epoch, trial(ledger, 5).state) == ("pruned", 1, TrialState.PRUNED)
    ours = [record.number for record in front(ledger.records(), ["mflops", "params"])]
    assert sorted(ours) == sorted(best.number for best in ledger.study.best_trials)
    accuracies = [ledger.records()[number].val_accuracy for number in ours]
    assert accuracies == sorted(accuracies, reverse=True)


def test_several_objectives_survive_an_interrupt(make_space: Make, open_ledger: Make, train: Make) -> None:
    space = make_space(search={"trials": 4, "minimize": ["params"], "limits": {"params": 20_000}})
    ledger = open_ledger(space)
    train(ledger, take(ledger), (0.1, 0.2, 0.3))
    take(ledger)
    ledger.interrupt()
    again = open_ledger(space)
    assert [assignment.resumed for assignment in spend(again, train)] == [True, False, False]
    assert again.trained == 4


@pytest.mark.parametrize("minimize", [[], ["params"]])
def test_the_tree_sampler_copes_with_everything_that_can_happen_to_a_trial(
    minimize: list[str], make_space: Make, open_ledger: Make, train: Make
) -> None:
    space = make_space(
        search={
            "trials": 24,
            "sampler": "tpe",
            "minimize": minimize,
            "limits": {"params": 20_000},
            "seed": 1,
        }
    )
    dice, ledger = random.Random(1), open_ledger(space)
    while True:
        live = [a for a in (ledger.next(), ledger.next()) if a is not None]
        if not live:
            break
        for assignment in live:
            accuracies = tuple(dice.random() for _ in range(dice.choice([0, 1, 3, 3, 3])))
            train(ledger, assignment, accuracies, "a fault" if dice.random() < 0.2 else None)
        if dice.random() < 0.2:
            ledger.interrupt()
            ledger = open_ledger(space)
    assert ledger.trained == 24
    assert len(statuses(ledger)) >= 4
    assert states(ledger)["RUNNING"] == states(ledger)["WAITING"] == 0


# --- reading


def test_the_records_on_disk_are_those_of_the_ledger(
    make_space: Make, open_ledger: Make, train: Make, tmp_path: Path, epoch_report: Make
) -> None:
    ledger = open_ledger(make_space(search={"limits": {"params": 20_000}}))
    train(ledger, take(ledger), (0.1, 0.2, 0.3))
    train(ledger, take(ledger), (0.1,), "a fault")
    running = take(ledger)
    ledger.report(running.number, epoch_report(1, 0.25))
    found = read_records(tmp_path)
    assert found == ledger.records()
    assert (found[-1].status, found[-1].epoch, found[-1].val_accuracy) == ("running", 1, 0.25)
    assert from_tree(found[-1].config) == running.config
    assert (found[-1].params, found[-1].mflops) == (running.costs["params"], running.costs["mflops"])


def test_a_folder_without_a_study_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no search here"):
        read_records(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torn", [1, 20])
def test_a_journal_whose_last_line_is_torn_by_a_full_disk_or_a_power_cut_is_continued(
    torn: int, make_space: Make, open_ledger: Make, train: Make, tmp_path: Path
) -> None:
    space = make_space()
    ledger = open_ledger(space)
    train(ledger, take(ledger), (0.1, 0.2, 0.3))
    take(ledger)
    journal = tmp_path / STUDY_FILE
    journal.write_bytes(journal.read_bytes()[:-torn])
    assert [record.status for record in read_records(tmp_path)][:1] == ["complete"]
    again = open_ledger(space)
    spend(again, train)
    assert again.trained == 8
    assert [record.status for record in read_records(tmp_path)] == ["complete"] * 8


@pytest.mark.parametrize("content", ["", "no journal\n", '{"op_code": 99}\n'])
def test_a_journal_that_is_none_is_a_users_error(content: str, tmp_path: Path) -> None:
    (tmp_path / STUDY_FILE).write_text(content)
    with pytest.raises(UserError, match=r"study\.journal"):
        read_records(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_a_users_error(make_space: Make, open_ledger: Make, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match=r"study\.journal"):
            open_ledger(make_space())
    finally:
        tmp_path.chmod(0o700)


def test_a_trial_is_called_by_number_student_depth_and_terms(make_config: Make) -> None:
    terms = {"adversarial": {}, "squeeze": {"depth": 2}, "kd": {"weight": 1}}
    config = make_config(student={"model": "resnet8", "width": 0.5}, terms=terms)
    assert label(14, config) == "014 resnet8 w0.50 d2 kd+squeeze+adv"
    assert label(7, make_config(student={"model": "resnet14", "width": 1.0})) == "007 resnet14 w1.00 ce"
