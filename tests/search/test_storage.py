"""The storage of a study: what belongs together is written together, and no event looks at all trials."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from hksd_search.study import storage as storages
from hksd_search.study.storage import BEST, SEEN, Journal, StudyStorage, thinned

MAX, MIN = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE


def lines(file: Path) -> int:
    return len(file.read_bytes().splitlines())


def read(file: Path) -> list[FrozenTrial]:
    """The trials as Optuna's own storage reads them."""
    trials: list[FrozenTrial] = optuna.load_study(
        study_name="s", storage=JournalStorage(JournalFileBackend(str(file)))
    ).get_trials()
    return trials


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "study.journal"


@pytest.fixture
def study(file: Path) -> optuna.Study:
    return optuna.create_study(study_name="s", storage=StudyStorage(Journal(file)), direction="maximize")


def storage_of(study: optuna.Study) -> StudyStorage:
    storage: StudyStorage = study._storage
    return storage


def test_what_is_written_together_is_seen_at_once_and_on_disk_at_the_end(study: optuna.Study, file: Path) -> None:
    before = lines(file)
    with storage_of(study).together():
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr("facts", {"a": (1, 2)})
        study.tell(trial, 0.5)
        assert study.trials[0].user_attrs == {"facts": {"a": [1, 2]}}  # as it will be read again
        assert study.trials[0].value == 0.5
        assert lines(file) == before
    assert lines(file) == before + 4
    assert read(file) == study.trials


def test_what_was_written_together_is_on_disk_also_after_a_fault_and_written_once(
    study: optuna.Study, file: Path
) -> None:
    with pytest.raises(KeyError), storage_of(study).together():
        study.ask()
        with storage_of(study).together():
            study.ask().set_user_attr("key", 1)
        raise KeyError
    study.ask()
    assert [trial.user_attrs for trial in read(file)] == [{}, {"key": 1}, {}]
    assert read(file) == study.trials


def test_what_the_caller_changes_later_does_not_change_the_study(study: optuna.Study) -> None:
    facts = {"config": [1]}
    with storage_of(study).together():
        trial = study.ask()
        trial.set_user_attr("facts", facts)
        facts["config"].append(2)
    assert study.trials[0].user_attrs["facts"] == {"config": [1]}


def test_trials_that_wait_are_handed_out_first_in_their_order_also_after_a_restart(
    study: optuna.Study, file: Path
) -> None:
    for value in (3, 4, 5):
        study.enqueue_trial({"x": value})
    assert study.ask().suggest_int("x", 0, 9) == 3
    again = optuna.load_study(study_name="s", storage=StudyStorage(Journal(file)))
    assert [again.ask().suggest_int("x", 0, 9) for _ in range(2)] == [4, 5]
    assert again.ask().number == 3
    assert storage_of(again).get_all_trials(again._study_id, states=(TrialState.WAITING,)) == []


def test_a_sampler_sees_a_bounded_number_of_trials_with_the_best_and_all_that_run(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storages, "SEEN", 40)
    monkeypatch.setattr(storages, "BEST", 8)
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    running, dice, seen = study.ask(), random.Random(0), []
    values = [dice.random() for _ in range(200)]
    for value in values:
        study.tell(study.ask(), value)
        with storage_of(study).sampling():
            seen.append(study.get_trials(deepcopy=False))
    assert max(map(len, seen)) <= 40 + 40 // 4 + 1
    assert len(study.get_trials()) == 201  # people see them all
    for shown in seen:
        assert [trial.number for trial in shown] == sorted(trial.number for trial in shown)
        assert shown[0].number == running.number
    shown = {trial.value for trial in seen[-1] if trial.value is not None}
    assert shown.issuperset(sorted(values)[-8:])


def test_no_event_of_a_trial_reads_all_trials(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    storage, looks = storage_of(study), list[object]()
    monkeypatch.setattr(JournalStorage, "get_all_trials", lambda *_, **__: looks.append(1) or [])
    with storage.together(), storage.sampling():
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
    trial.report(0.5, 1)
    study.tell(trial, 0.5)
    assert looks == []


def made(values: list[float], state: TrialState = TrialState.COMPLETE, number: int = 0) -> FrozenTrial:
    trial = create_trial(state=state, values=values if state == TrialState.COMPLETE else None)
    trial.number = number
    return trial


@pytest.mark.parametrize("directions", [[MAX], [MIN], [MAX, MIN]])
def test_of_many_trials_the_best_stay_and_the_others_at_even_distances(directions: list[StudyDirection]) -> None:
    dice = random.Random(1)
    complete = [made([dice.random() for _ in directions], number=number) for number in range(800)]
    pruned = [made([], TrialState.PRUNED, number) for number in range(800, 1600)]
    kept = thinned([*complete, *pruned], directions)
    assert len(kept) <= SEEN
    numbers = [trial.number for trial in kept]
    assert numbers == sorted(numbers)
    if len(directions) == 1:
        ranked = sorted(complete, key=lambda trial: trial.value or 0.0, reverse=directions[0] == MAX)
        assert {trial.number for trial in ranked[:BEST]} <= set(numbers)
    else:
        front = [
            t for t in complete if not any(o.values[0] > t.values[0] and o.values[1] < t.values[1] for o in complete)
        ]
        assert {trial.number for trial in front} <= set(numbers)
    gaps = [after - before for before, after in itertools.pairwise(numbers) if before >= 800]
    assert max(gaps) <= 5
