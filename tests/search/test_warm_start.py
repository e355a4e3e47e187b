"""What a search starts from: the documented defaults, earlier searches, and studies of other programs."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from hksd.config.run import config_hash
from hksd.errors import UserError
from hksd_search.commands import import_study as studies
from hksd_search.ledger import Ledger
from hksd_search.space.nearest import defaults, nearest, point, wishes
from hksd_search.space.ranges import Range
from hksd_search.space.sizes import Meter, check_feasible
from hksd_search.space.space import Space
from hksd_search.strategy import warm_start
from hksd_search.study.reading import FACTS_FILE, open_search
from hksd_search.study.study import WISHES

Make = Callable[..., Any]
TPE = {"sampler": "tpe", "trials": 20}
SAME = ("images", "teacher")  # fingerprint and key of the earlier search


@pytest.fixture
def finished(tmp_path: Path, shape: dict[str, int], train: Make) -> Callable[..., Any]:
    """finished(space, name): a search on disk whose trials are all trained, as others read it."""

    def make(space: Space, name: str = "old") -> Any:
        folder = tmp_path / name
        folder.mkdir()
        ledger = Ledger(space, folder, Meter(shape), check_feasible(space, Meter(shape)))
        while (assignment := ledger.next()) is not None:
            accuracy = 1 / (1 + abs(math.log(assignment.config.train.lr / 0.1)))
            train(ledger, assignment, (0.1, 0.2, accuracy))
        teacher = {"key": SAME[1], "model": "resnet8", "accuracy": 0.9, "params": 78_000, "mflops": 1.4}
        facts = {"data": {"fingerprint": SAME[0]}, "teacher": teacher}
        (folder / FACTS_FILE).write_text(json.dumps(facts))
        return open_search(tmp_path, name)

    return make


def start(space: Space, folder: Path, shape: dict[str, int], *taken: Any) -> Ledger:
    folder.mkdir(exist_ok=True)
    return Ledger(space, folder, Meter(shape), check_feasible(space, Meter(shape)), warm=taken)


def drawn(ledger: Ledger, count: int) -> list[Any]:
    """The first assignments that are no arms."""
    found: list[Any] = []
    while len(found) < count:
        assignment = ledger.next()
        assert assignment is not None
        found += [] if assignment.arm else [assignment]
    return found


# --- defaults


def test_the_first_draw_is_the_documented_defaults_with_the_student_of_the_arms(
    make_space: Make, open_ledger: Make, shape: dict[str, int]
) -> None:
    space = make_space(search=TPE)
    ledger = open_ledger(space)
    first, second = drawn(ledger, 2)
    assert first.config.student == check_feasible(space, Meter(shape))
    assert (first.config.terms["kd"].temperature, first.config.terms["kd"].weight) == (4.0, 1.0)
    assert first.config.train.lr == pytest.approx(0.1)
    stored = ledger.study.trials[first.number]
    assert stored.user_attrs["facts"]["origin"] == "default"
    assert stored.params["terms.kd.temperature"] == 4.0
    assert ledger.study.trials[second.number].user_attrs["facts"]["origin"] == "draw"


@pytest.mark.parametrize(
    "search", [{"sampler": "random"}, {"sampler": "grid", "grid_points": 2}, {**TPE, "enqueue_defaults": False}]
)
def test_random_search_the_grid_and_who_does_not_want_them_draw_no_defaults(
    search: dict[str, Any], make_space: Make, open_ledger: Make
) -> None:
    ledger = open_ledger(make_space(search=search))
    for assignment in drawn(ledger, 2):
        assert ledger.study.trials[assignment.number].user_attrs["facts"]["origin"] == "draw"


def test_a_default_outside_its_range_gives_way_to_the_middle_and_alternatives_have_one_each(
    make_space: Make, shape: dict[str, int]
) -> None:
    terms = {
        "ce": {"weight": 1.0},
        "one_of": {
            "soft": {"kd": {"weight": {"log_uniform": [4, 9]}, "temperature": {"uniform": [6, 8]}}},
            "plain": {"kd": {"temperature": {"uniform": [1, 8]}}},
        },
    }
    space = make_space(terms=terms, search=TPE)
    soft, plain = defaults(space, check_feasible(space, Meter(shape)))
    assert (soft["terms.one_of.soft.kd.weight"], soft["terms.one_of.soft.kd.temperature"]) == (pytest.approx(6.0), 7.0)
    assert plain["terms.one_of.plain.kd.temperature"] == 4.0
    few = space.with_trials(10)
    assert [one["terms.one_of"] for one in defaults(few, check_feasible(few, Meter(shape)))] == ["soft"]


def test_after_a_restart_the_wishes_go_on_where_they_were(
    make_space: Make, tmp_path: Path, shape: dict[str, int]
) -> None:
    space = make_space(search={**TPE, "arms": "none", "enqueue_defaults": False})
    taken = warm_start.Taken("x", wished=[point(space, {"train.lr": lr})[0] for lr in (0.02, 0.03, 0.04)])
    ledger = start(space, tmp_path / "new", shape, taken)
    rates = [assignment.config.train.lr for assignment in drawn(ledger, 2)]
    ledger.interrupt()
    again = start(space, tmp_path / "new", shape)
    rates += [assignment.config.train.lr for assignment in drawn(again, 3)[2:]]
    assert rates == pytest.approx([0.02, 0.03, 0.04])


@given(
    wish=st.floats(-20, 20),
    spread=st.sampled_from(
        [
            Range("uniform", (1.0, 8.0)),
            Range("log_uniform", (0.1, 10.0)),
            Range("uniform", (0.0, 1.0), 0.3),
            Range("int", (2, 9), 3),
            Range("choice", (1, 4, 9)),
        ]
    ),
)
def test_the_nearest_value_lies_in_the_range_and_no_other_is_nearer(wish: float, spread: Range) -> None:
    found = nearest(spread, wish)
    low, high = spread.values[0], spread.values[-1]
    if spread.kind == "choice":
        others: list[Any] = list(spread.values)
    elif spread.step:
        others = [low + k * spread.step for k in range(int((high - low) / spread.step) + 1)]
    else:
        others = [low, high, *([wish] if low <= wish <= high else [])]
    assert low <= found <= high
    assert all(abs(found - wish) <= abs(other - wish) + 1e-9 for other in others)
    assert nearest(spread, found) == found


def test_the_wishes_of_a_draw_lead_back_to_it(make_space: Make, finished: Make) -> None:
    space = make_space()
    for record in finished(space).records:
        if record.arm is None and record.config is not None:
            config = space.draw(optuna.trial.FixedTrial(dict(finished_params(record, space))))
            assert config_hash(config) == config_hash(warm_start.from_tree(record.config))


def finished_params(record: Any, space: Space) -> dict[str, Any]:
    found = point(space, wishes(space, warm_start.from_tree(record.config))[""])
    assert found is not None
    return found[0]


# --- warm start


def test_results_on_the_same_images_with_the_same_teacher_are_evidence_and_nothing_else(
    make_space: Make, finished: Make, tmp_path: Path, shape: dict[str, int], train: Make
) -> None:
    space = make_space(search=TPE)
    old = finished(space)
    taken = warm_start.take(space, old, *SAME)
    trained = [record for record in old.records if record.status == "complete" and record.arm is None]
    assert {record.number for record in trained} <= set(taken.trials)
    assert taken.wished == []
    assert "results of its trials" in str(taken)
    ledger = start(space, tmp_path / "new", shape, taken)
    imported = [record for record in ledger.records() if record.status == "imported"]
    by_hash = {config_hash(warm_start.from_tree(r.config)): r.val_accuracy for r in old.records if r.config}
    assert len(imported) == len(taken.evidence)
    for record in imported:
        stored = ledger.study.trials[record.number]
        assert stored.value == by_hash[config_hash(warm_start.from_tree(record.config))]
    assert ledger.trained == 0
    assert ledger.study.user_attrs[WISHES] == []  # the defaults were trained there
    assignments = []
    while (assignment := ledger.next()) is not None:
        assignments.append(assignment)
        train(ledger, assignment, (0.1, 0.2, 0.3))
    assert len(assignments) == 20
    found = open_search(tmp_path, "new")
    assert found.best is not None
    assert found.best.status == "complete"
    assert start(space, tmp_path / "new", shape).trained == 20


def test_evidence_that_falls_short_of_a_demand_on_accuracy_counts_as_such(
    make_space: Make, finished: Make, tmp_path: Path, shape: dict[str, int]
) -> None:
    found = finished(make_space(search={**TPE, "trials": 12}))
    space = make_space(search={**TPE, "max_drop": 1.0})
    taken = warm_start.take(space, found, *SAME)
    assert taken.evidence
    (tmp_path / "new").mkdir()
    meter = Meter(shape)
    ledger = Ledger(space, tmp_path / "new", meter, check_feasible(space, meter), target=0.8, warm=[taken])
    for trial in ledger.study.trials[: len(taken.evidence)]:
        assert list(trial.constraints.values()) == [pytest.approx(0.8 - trial.values[0])]


def test_what_was_imported_may_be_trained(make_space: Make, finished: Make, tmp_path: Path, shape: Any) -> None:
    terms, small = {"ce": {}}, {"model": "resnet8", "width": {"choice": [0.25, 0.5]}}
    space = make_space(
        student=small, terms=terms, train={"lr": 0.1}, search={"sampler": "grid", "trials": 9, "arms": "none"}
    )
    taken = warm_start.take(space, finished(space), *SAME)
    assert len(taken.evidence) == 2
    assert len(drawn(start(space, tmp_path / "new", shape, taken), 2)) == 2


@pytest.mark.parametrize(
    ("change", "fingerprint", "teacher", "reason"),
    [
        ({}, "others", "teacher", "other images"),
        ({}, "images", "another", "another teacher"),
        ({"train": {"epochs": 2}}, *SAME, "epochs differ"),
        ({"terms": {"ce": {"weight": 0.5}}}, *SAME, "fixed values"),
    ],
)
def test_from_another_setting_only_the_best_configurations_are_drawn_first(
    change: Any,
    fingerprint: str,
    teacher: str,
    reason: str,
    make_space: Make,
    finished: Make,
    tmp_path: Path,
    shape: Any,
) -> None:
    old = finished(make_space(search=TPE))
    space = make_space(**change, search={**TPE, "enqueue_defaults": False})
    taken = warm_start.take(space, old, fingerprint, teacher)
    assert taken.evidence == []
    assert reason in taken.reason
    best = sorted((r for r in old.records if r.arm is None and r.status == "complete"), key=lambda r: -r.val_accuracy)
    assert taken.trials[0] == best[0].number
    ledger = start(space, tmp_path / "new", shape, taken)
    first = drawn(ledger, 1)[0]
    assert first.config.train.lr == pytest.approx(best[0].config["train"]["lr"])
    assert ledger.study.trials[first.number].user_attrs["facts"]["origin"] == "warm start"
    assert len(ledger.study.user_attrs[WISHES]) == len(taken.wished) <= warm_start.BEST


def test_configurations_of_another_space_are_moved_into_the_ranges(make_space: Make, finished: Make) -> None:
    old = finished(make_space(search=TPE))
    space = make_space(train={"lr": {"log_uniform": [0.2, 0.3]}}, terms={"ce": {}}, search=TPE)
    taken = warm_start.take(space, old, "others", "teacher")
    assert all(0.2 <= params["train.lr"] <= 0.3 for params in taken.wished)


def test_a_search_without_finished_trials_gives_nothing_and_says_so(
    make_space: Make, tmp_path: Path, shape: dict[str, int]
) -> None:
    space = make_space(search=TPE)
    start(space, tmp_path / "old", shape)
    taken = warm_start.take(space, open_search(tmp_path, "old"), *SAME)
    assert (taken.evidence, taken.wished) == ([], [])
    assert "no trial that ran to its end" in str(taken)


# --- studies of other programs


def study_at(url: str, name: str = "theirs", direction: str = "maximize", lr: str = "train.lr") -> None:
    storage = url if "://" in url else JournalStorage(JournalFileBackend(url))
    study = optuna.create_study(storage=storage, study_name=name, direction=direction)
    for value in (0.02, 0.05, 5.0):
        trial = study.ask()
        trial.suggest_float(lr, 1e-4, 10, log=True)
        trial.suggest_float("momentum", 0, 1)
        study.tell(trial, value)
        study.enqueue_trial({lr: value})


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_the_best_of_a_study_are_first_draws(
    kind: str, direction: str, make_space: Make, tmp_path: Path, shape: dict[str, int]
) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}" if kind == "sqlite" else str(tmp_path / "old.log")
    study_at(url, direction=direction)
    space = make_space(search={**TPE, "arms": "none", "enqueue_defaults": False})
    found = studies.convert(url, space, tmp_path, "theirs")
    assert (found.trials, found.used, found.unused) == (3, ["train.lr"], ["momentum"])
    taken = warm_start.take(space, open_search(tmp_path, "theirs"), *SAME)
    assert taken.evidence == []
    order = [2, 1, 0] if direction == "maximize" else [0, 1, 2]
    theirs = optuna.load_study(
        study_name="theirs", storage=url if kind == "sqlite" else JournalStorage(JournalFileBackend(url))
    )
    wished = [min(max(theirs.trials[k].params["train.lr"], 0.01), 0.3) for k in order]
    assert taken.wished[0]["train.lr"] == pytest.approx(wished[0])
    assert drawn(start(space, tmp_path / "new", shape, taken), 1)[0].config.train.lr == pytest.approx(wished[0])
    with pytest.raises(UserError, match="exists already"):
        studies.convert(url, space, tmp_path, "theirs")


def test_faults_of_an_import_say_what_there_is(make_space: Make, tmp_path: Path) -> None:
    space, file = make_space(), tmp_path / "old.db"
    url = f"sqlite:///{file}"
    with pytest.raises(UserError, match="no such file"):
        studies.convert(url, space, tmp_path, "x")
    assert not file.exists()
    with pytest.raises(UserError, match="no such file"):
        studies.convert(str(tmp_path / "nothing.log"), space, tmp_path, "x")
    (tmp_path / "text").write_text("no journal\nat all\n")
    sqlite3.connect(tmp_path / "other.db").execute("create table mine (x)")
    for other in (str(tmp_path / "text"), f"sqlite:///{tmp_path / 'text'}", f"sqlite:///{tmp_path / 'other.db'}"):
        with pytest.raises(UserError, match="cannot be read as an Optuna storage"):
            studies.convert(other, space, tmp_path, "x")
    tables = sqlite3.connect(tmp_path / "other.db").execute("select name from sqlite_master").fetchall()
    assert tables == [("mine",)]
    study_at(url, "a", lr="rate")
    with pytest.raises(UserError, match=r"momentum, rate.*train\.lr"):
        studies.convert(url, space, tmp_path, "x")
    study_at(url, "b")
    with pytest.raises(UserError, match=r"--study \(a, b\)"):
        studies.convert(url, space, tmp_path, "x")
    with pytest.raises(UserError, match=r"unknown study 'aa'; did you mean 'a'"):
        studies.convert(url, space, tmp_path, "x", "aa")
    optuna.create_study(storage=url, study_name="empty")
    with pytest.raises(UserError, match="no finished trial"):
        studies.convert(url, space, tmp_path, "x", "empty")
    assert not (tmp_path / "x").exists()
