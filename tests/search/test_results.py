"""Reading a search: the best is the best of those that ran to the end, and the table says how everything stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hksd.config.run import config_hash, dump, from_tree
from hksd.errors import UserError
from hksd_search.export import export_trial
from hksd_search.space.arms import ARMS, NO_DISTILLATION, STANDARD_KD
from hksd_search.study.reading import FACTS_FILE, STATUSES, SearchFolder, best, counts, front, open_search
from hksd_search.study.records import Record, Status

Make = Callable[..., Any]
FACTS = {
    "name": "first",
    "minimize": [],
    "teacher": {"model": "resnet20", "accuracy": 0.9, "params": 1000, "mflops": 3.0},
}


def made(
    number: int,
    accuracy: float | None = 0.5,
    params: int | None = 100,
    status: Status = "complete",
    arm: str | None = None,
    config: dict[str, Any] | None = None,
    mflops: float | None = 1.0,
) -> Record:
    return Record(number, status, arm, config, {"params": params, "mflops": mflops}, 3, accuracy, 1.0, None)


# --- the best


def test_the_best_has_the_highest_accuracy_then_fewer_parameters_then_came_earlier() -> None:
    records = [made(0, 0.5, 10), made(1, 0.7, 300), made(2, 0.7, 200), made(3, 0.7, 200), made(4, 0.6, 1)]
    assert best(records) == records[2]
    assert best(records[::-1]) == records[2]


@pytest.mark.parametrize("status", ["pruned", "failed", "rejected", "duplicate", "running", "interrupted"])
def test_only_trials_that_ran_to_the_end_rank(status: Status) -> None:
    records = [made(0, 0.5), made(1, 0.99, status=status)]
    assert best(records) == records[0]
    assert front(records, ["params"]) == [records[0]]
    assert best(records[1:]) is None
    assert front(records[1:], []) == []


def test_an_arm_can_be_the_best() -> None:
    records = [made(0, 0.9, arm=NO_DISTILLATION), made(1, 0.8)]
    assert best(records) == records[0]


def test_nothing_has_no_best_and_no_front() -> None:
    assert best([]) is None
    assert front([], ["params"]) == []


# --- the front

records_of = st.lists(
    st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 4), st.booleans()), max_size=12
).map(
    lambda rows: [
        made(number, accuracy / 4, params, "complete" if whole else "pruned", mflops=float(mflops))
        for number, (accuracy, params, mflops, whole) in enumerate(rows)
    ]
)


@given(records=records_of, minimize=st.sampled_from([[], ["params"], ["mflops"], ["params", "mflops"]]))
def test_the_front_holds_exactly_those_that_no_other_beats(records: list[Record], minimize: list[str]) -> None:
    def beats(one: Record, other: Record) -> bool:
        pairs = [(one.val_accuracy, other.val_accuracy)]
        pairs += [(-getattr(one, name), -getattr(other, name)) for name in minimize]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)  # type: ignore[operator]

    whole = [record for record in records if record.status == "complete"]
    found = front(records, minimize)
    assert {record.number for record in found} == {
        record.number for record in whole if not any(beats(other, record) for other in whole)
    }
    accuracies = [record.val_accuracy or 0.0 for record in found]
    assert sorted(accuracies, reverse=True) == accuracies


# --- counts and rows


def test_every_outcome_is_counted_also_those_that_did_not_happen() -> None:
    records = [made(0), made(1, status="failed"), made(2, status="rejected"), made(3, status="running"), made(4)]
    assert counts(records) == {"complete": 2, "pruned": 0, "failed": 1, "rejected": 1, "duplicate": 0}
    assert tuple(counts([])) == STATUSES


@pytest.fixture
def search(make_tree: Make) -> Callable[..., SearchFolder]:
    """search(records): a search with these records."""

    def make(records: list[Record], facts: dict[str, Any] = FACTS) -> SearchFolder:
        tree = dump(from_tree(make_tree(student={"model": "resnet14", "width": 0.5})))
        whole = [Record(**{**record.__dict__, "config": tree}) for record in records]
        return SearchFolder("first", Path("runs/first"), whole, facts)

    return make


def test_the_table_holds_teacher_best_student_and_arms(search: Make) -> None:
    found = search([made(0, 0.5, arm=NO_DISTILLATION), made(1, 0.6, arm=STANDARD_KD), made(2, 0.7, 90)])
    rows = found.rows()
    assert [row.name for row in rows] == [
        "teacher",
        "best student (trial 2)",
        *(f"arm: {name}" for name in ARMS),
    ]
    assert [row.val_accuracy for row in rows] == [0.9, 0.7, 0.5, 0.6, None, None]
    assert [row.params for row in rows] == [1000, 90, 100, 100, None, None]
    assert [row.model for row in rows[:4]] == ["resnet20", *["resnet14 w0.5"] * 3]


def test_an_arm_that_is_not_there_yet_or_did_not_finish_stands_in_the_table_without_an_accuracy(search: Make) -> None:
    found = search([made(0, 0.5, arm=NO_DISTILLATION, status="failed"), made(1, 0.7)])
    rows = {row.name: row for row in found.rows()}
    assert rows[f"arm: {NO_DISTILLATION}"].val_accuracy is None
    assert rows[f"arm: {NO_DISTILLATION}"].model == "resnet14 w0.5 (failed)"
    assert rows[f"arm: {STANDARD_KD}"].model == "not trained yet"
    assert rows[f"arm: {STANDARD_KD}"].val_accuracy is None
    running = search([made(0, 0.99, arm=NO_DISTILLATION, status="running")])
    assert [row.val_accuracy for row in running.rows()] == [0.9, *[None] * len(ARMS)]


def test_of_an_arm_with_several_trials_the_best_counts_and_the_table_says_of_how_many(search: Make) -> None:
    trials = [
        made(0, 0.5, arm=STANDARD_KD),
        made(1, 0.8, arm=STANDARD_KD),
        made(2, 0.9, arm=STANDARD_KD, status="pruned"),
    ]
    rows = {row.name: row for row in search(trials).rows()}
    assert rows[f"arm: {STANDARD_KD}, best of 3"].val_accuracy == 0.8


def test_a_search_without_arms_has_none_in_its_table(search: Make) -> None:
    found = search([made(0, 0.5)], {**FACTS, "arms": "none"})
    assert [row.name for row in found.rows()] == ["teacher", "best student (trial 0)"]


@pytest.mark.parametrize(
    ("drop", "number", "said"),
    [
        (1.0, 1, "no student came within 1 point of the teacher: the most accurate, trial 1, lies 5.00 points below"),
        (5.0, 1, "the smallest student within 5 points of the teacher is trial 1: params 300"),
        (10.0, 3, "the smallest student within 10 points of the teacher is trial 3: params 100"),
        (20.0, 3, "the smallest student within 20 points of the teacher is trial 3: params 100"),
    ],
)
def test_the_smallest_student_that_loses_no_more_than_asked_wins_else_the_most_accurate(
    drop: float, number: int, said: str, search: Make
) -> None:
    trials = [
        made(0, 0.84, 200),
        made(1, 0.85, 300),
        made(2, 0.8, 100),
        made(3, 0.83, 100),
        made(4, 0.9, 10, status="pruned"),
    ]
    found = search(trials, {**FACTS, "minimize": ["params"], "max_drop": drop})
    assert found.best is not None
    assert found.best.number == number
    assert found.verdict().startswith(said)
    assert "may have been trained on" not in found.verdict()
    loaded = {**FACTS, "minimize": ["params"], "max_drop": drop, "teacher": {**FACTS["teacher"], "familiar": True}}
    verdict = replace(found, facts=loaded).verdict()
    assert verdict.endswith("(of the teacher: its accuracy was measured on images that it may have been trained on)")


def test_the_table_can_show_another_trial_than_the_best(search: Make) -> None:
    found = search([made(0, 0.8), made(1, 0.7)])
    assert [row.name for row in found.rows(found.records[1])][1] == "trial 1"
    assert [row.name for row in found.rows(found.records[0])][1] == "best student (trial 0)"


def test_a_search_that_has_only_begun_has_a_table_of_its_arms(search: Make) -> None:
    assert [row.name for row in search([], {}).rows()] == [f"arm: {name}" for name in ARMS]


def test_the_front_follows_the_objectives_of_the_search(search: Make) -> None:
    records = [made(0, 0.8, 200), made(1, 0.7, 100), made(2, 0.6, 300)]
    assert [record.number for record in search(records).front()] == [0]
    assert [record.number for record in search(records, {**FACTS, "minimize": ["params"]}).front()] == [0, 1]


# --- on disk


@pytest.fixture
def runs(tmp_path: Path, make_space: Make, open_ledger: Make, train: Make) -> Path:
    """A folder with one search of which two trials ended."""
    (tmp_path / "first").mkdir()
    ledger = open_ledger(make_space(), folder=tmp_path / "first")
    train(ledger, ledger.next(), (0.1, 0.2, 0.3))
    train(ledger, ledger.next(), (0.1,))
    (tmp_path / "first" / FACTS_FILE).write_text(json.dumps(FACTS))
    (tmp_path / "teachers").mkdir()
    return tmp_path


def test_a_search_is_read_from_its_folder(runs: Path) -> None:
    found = open_search(runs, "first")
    assert (found.name, found.facts, len(found.records)) == ("first", FACTS, 2)
    assert found.best == found.records[0]
    assert found.arm(STANDARD_KD) == found.records[1]
    assert len({config_hash(from_tree(record.config)) for record in found.records}) == 2


def test_a_search_that_was_killed_before_it_wrote_its_facts_can_be_read(runs: Path) -> None:
    (runs / "first" / FACTS_FILE).unlink()
    assert open_search(runs, "first").facts == {}


def test_an_unknown_search_names_those_that_there_are(runs: Path) -> None:
    with pytest.raises(UserError, match=r"frist: no such search \(there are: first\)"):
        open_search(runs, "frist")
    with pytest.raises(UserError, match=r"no such search$"):
        open_search(runs / "nowhere", "first")


def test_a_folder_that_is_no_search_is_a_users_error(runs: Path) -> None:
    with pytest.raises(UserError, match="no search here"):
        open_search(runs, "teachers")


@pytest.mark.parametrize("content", [b"", b'{"name": "fir', b"\xff\xfe"])
def test_a_damaged_facts_file_is_a_users_error_that_names_it(content: bytes, runs: Path) -> None:
    (runs / "first" / FACTS_FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"search\.json: damaged"):
        open_search(runs, "first")


def test_what_cannot_be_exported_is_said(runs: Path) -> None:
    found = open_search(runs, "first")
    with pytest.raises(UserError, match=r"first: no trial 7 \(0 to 1\)"):
        export_trial(found, 7)
    with pytest.raises(UserError, match="trial 1 is pruned"):
        export_trial(found, 1)
    nothing = SearchFolder("first", runs / "first", found.records[1:], found.facts)
    with pytest.raises(UserError, match="no trial has run to the end"):
        export_trial(nothing)
    # The trial is complete, and somebody has removed its weights.
    with pytest.raises(UserError, match=r"student\.safetensors is missing; `hksd search first"):
        export_trial(found, 0)
    assert not (runs / "first" / "export").exists()
