"""Population based training: who is replaced by whom, that nothing is lost or doubled, and that forks repeat."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hksd.config.run import config_hash, dump, from_tree, history_hash
from hksd.data import DataSet
from hksd.errors import ConfigError
from hksd.fit import WEIGHTS_FILE, fit
from hksd.run import checkpoint
from hksd_search.backend import trial as trials
from hksd_search.backend.schedulers import Evolution, LedgerScheduler, remove_checkpoints
from hksd_search.ledger import Events, Ledger
from hksd_search.space.ranges import Range
from hksd_search.space.settings import Pbt
from hksd_search.strategy.population import Population, explored, knobs, step
from hksd_search.strategy.stopping import description
from hksd_search.study.records import STUDY_FILE, Assignment, Fork, Record, trial_folder

Make = Callable[..., Any]
EPOCHS, TRIALS = 6, 14
PBT = {"pbt": {"interval_epochs": 2, "grace_epochs": 2, "population": 4}}
SEARCH = {"trials": TRIALS, "arms": "none", "scheduler": PBT}
TRAIN = {"epochs": EPOCHS, "momentum": {"choice": [0.8, 0.9]}}


@pytest.fixture(scope="module")
def space(make_space: Make) -> Any:
    return make_space(search=SEARCH, train=TRAIN)


# --- what a space may ask for


@pytest.mark.parametrize("given_", ["pbt", {"pbt": {}}])
def test_the_defaults_compare_eight_trials_from_a_third_of_the_epochs_on(given_: Any, make_space: Make) -> None:
    space = make_space(search={"scheduler": given_}, train={"epochs": 12})
    assert space.search.scheduler.chosen == Pbt()
    assert description(space) == "pbt: the worst of 8 trials are replaced after epochs 4, 6, 8, 10 of 12"


@pytest.mark.parametrize(
    ("interval", "grace", "found"), [(2, 1, [2, 4]), (2, 3, [4]), (3, 3, [3]), (1, 5, [5]), (6, 1, []), (9, 1, [])]
)
def test_trials_are_compared_at_multiples_of_the_interval_after_the_grace_epochs_and_before_the_last(
    interval: int, grace: int, found: list[int]
) -> None:
    assert list(Pbt(interval_epochs=interval).boundaries(EPOCHS, grace)) == found


@pytest.mark.parametrize(
    ("pbt", "sections", "message"),
    [
        ({"population": 3}, {}, "population 3 times quantile 0.25 is below 1"),
        ({"quantile": 0.6}, {}, "at most 0.5"),
        ({"factor": 1}, {}, "greater than 1"),
        ({"interval": 1}, {}, "interval_epochs"),
        (
            {},
            {"train": {"lr": 0.1}, "terms": {"ce": {}, "kd": {"temperature": {"uniform": [1, 8]}}}},
            "none has a rang",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(
    pbt: dict[str, Any], sections: dict[str, Any], message: str, make_space: Make
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_space(search={"scheduler": {"pbt": pbt}}, **sections)
    assert message in str(caught.value)


# --- who is replaced


def entered(points: dict[int, tuple[float, ...]], size: int = 8, quantile: float = 0.25) -> Population:
    population = Population(size, quantile)
    for number, (accuracy, *costs) in points.items():
        population.enter(number, 2, accuracy, costs)
    return population


def test_only_the_bottom_quantile_is_replaced_and_only_from_the_top() -> None:
    population = entered({n: (n / 10,) for n in range(8)})
    assert [population.better(n, 2) for n in range(8)] == [[6, 7], [6, 7], [], [], [], [], [], []]


def test_nobody_is_replaced_before_a_quantile_is_a_trial() -> None:
    assert entered({0: (0.1,), 1: (0.5,), 2: (0.9,)}).better(0, 2) == []
    assert entered({0: (0.1,), 1: (0.5,), 2: (0.9,), 3: (0.4,)}).better(0, 2) == [2]


def test_equal_accuracies_replace_nobody() -> None:
    population = entered(dict.fromkeys(range(8), (0.5,)))
    assert not any(population.better(n, 2) for n in range(8))


def test_the_population_is_the_latest_trials_and_always_the_one_in_question() -> None:
    population = entered({0: (0.1,), **{n: (1 - n / 100,) for n in range(1, 9)}}, size=4)
    assert population.members(2) == [5, 6, 7, 8]
    assert population.better(0, 2) == [6]  # the best of 6, 7, 8, not 1, which is better still


def test_with_several_objectives_a_trial_is_replaced_by_one_that_dominates_it_or_not_at_all() -> None:
    points = {0: (0.5, 10.0), 1: (0.4, 5.0), 2: (0.6, 8.0), 3: (0.9, 20.0), 4: (0.3, 1.0), 5: (0.2, 30.0)}
    population = entered(points, quantile=0.34)
    assert population.better(5, 2) == [2, 3] or population.better(5, 2) == [1, 2, 3, 4]
    for number, mine in points.items():
        for other in population.better(number, 2):
            assert points[other][0] >= mine[0]
            assert points[other][1] <= mine[1]
    assert [population.better(n, 2) for n in (1, 2, 3, 4)] == [[]] * 4  # nobody dominates these


@given(st.permutations(range(10)), st.lists(st.floats(0, 1), min_size=10, max_size=10))
def test_the_order_of_arrival_does_not_matter(order: list[int], accuracies: list[float]) -> None:
    one, two = entered(dict(enumerate((a,) for a in accuracies))), entered({n: (accuracies[n],) for n in order})
    assert [one.better(n, 2) for n in range(10)] == [two.better(n, 2) for n in range(10)]


# --- what a fork changes


SPREADS = [
    Range("log_uniform", (0.01, 10.0)),
    Range("uniform", (0.0, 2.0)),
    Range("uniform", (0.0, 2.0), step=0.25),
    Range("int", (1, 9)),
    Range("int", (1, 9), step=3),
    Range("choice", (0, 0.5, 4.0, 1.0)),
]


@given(st.sampled_from(SPREADS), st.floats(0.01, 1), st.sampled_from([1.25, 0.8, 3.0, 1 / 3]))
def test_a_step_stays_in_its_range_and_above_0_and_goes_its_way_or_nowhere(
    spread: Range, share: float, factor: float
) -> None:
    value = spread.values[1 + int(share * 2.99)] if spread.kind == "choice" else spread.at(share)
    if value <= 0:
        return
    new = step(spread, value, factor)
    assert new > 0
    assert new >= value if factor > 1 else new <= value
    if spread.kind == "choice":
        assert new in spread.values
        return
    low, high = spread.values
    assert low <= new <= high
    grid = spread.step or (1 if spread.kind == "int" else None)
    if grid:
        assert round((new - low) / grid) == pytest.approx((new - low) / grid)
    elif low < new < high:
        assert new == pytest.approx(value * factor, rel=1e-5)


def test_a_fork_changes_the_ranged_knobs_of_the_terms_that_its_parent_has(space: Any, make_space: Make) -> None:
    draws = random.Random(0)
    both, alone = (space.middle({"terms": terms}) for terms in ({"ce": {}, "kd": {"weight": 2.0}}, {"ce": {}}))
    values = explored(both, knobs(space, {}), 1.25, draws)
    assert values.keys() == {"train.lr", "train.momentum", "terms.kd.weight"} or values["train.lr"]
    assert values["terms.kd.weight"] in (2.5, 1.6)
    assert "terms.kd.weight" not in explored(alone, knobs(space, {}), 1.25, draws)
    assert knobs(space, {}).keys() == {"train.lr", "train.momentum", "terms.kd.weight"}


def test_each_alternative_has_the_knobs_of_its_own(make_space: Make) -> None:
    terms = {"ce": {}, "one_of": {"a": {"kd": {"weight": {"uniform": [1, 2]}}}, "b": {"logits": {"weight": 1}}}}
    space = make_space(terms=terms, search={"scheduler": "pbt"})
    assert knobs(space, {"terms.one_of": "a"}).keys() == {"train.lr", "terms.kd.weight"}
    assert knobs(space, {"terms.one_of": "b"}).keys() == {"train.lr"}


# --- a search with accuracies that are made up


class Search:
    """Trains what a ledger hands out, some at once, with accuracies that hang on configuration and epoch alone."""

    def __init__(self, ledger: Ledger, epoch_report: Make):
        self.ledger, self.report, self.scheduler = ledger, epoch_report, LedgerScheduler(ledger)
        self.live: dict[int, tuple[Assignment, int]] = {}

    def accuracy(self, assignment: Assignment, epoch: int) -> float:
        return random.Random(history_hash(assignment.config, epoch)).random()

    def start(self) -> bool:
        assignment = self.ledger.next()
        if assignment is None:
            return False
        done = self.ledger.records()[assignment.number].epoch
        self.live[assignment.number] = assignment, max(done - assignment.resumed, 0)
        return True

    def epoch(self, number: int) -> None:
        """Train one epoch of a trial; its first after a resume is the last one before."""
        assignment, done = self.live[number]
        result = self.report(done + 1, self.accuracy(assignment, done + 1), EPOCHS)
        stopped = self.scheduler._stops(number, result)
        self.ledger.report(number, result)
        self.live[number] = assignment, done + 1
        if stopped or done + 1 == EPOCHS:
            del self.live[number]
            self.ledger.finish(number)

    def epochs_of(self, number: int) -> None:
        """Train a trial until it ends."""
        while number in self.live:
            self.epoch(number)

    def run(self, concurrent: int = 1, dice: random.Random | None = None, epochs: float = float("inf")) -> None:
        dice = dice or random.Random(0)
        while epochs > 0:
            while len(self.live) < concurrent and self.start():
                pass
            if not self.live:
                return
            self.epoch(dice.choice(sorted(self.live)))
            epochs -= 1


def must_be_sound(records: list[Record], total: int = TRIALS) -> None:
    """Every replaced trial has one fork, of a better one; every fork has its parent's past; the budget is spent."""
    assert {record.status for record in records} <= {"complete", "pruned", "duplicate"}
    trained = [record for record in records if record.status != "duplicate"]
    assert len(trained) == total
    forks = [record for record in trained if record.fork]
    replaced = {record.reason: record for record in trained if record.status == "pruned"}
    assert replaced.keys() == {f"replaced by trial {fork.number}" for fork in forks}
    assert len({config_hash(from_tree(record.config)) for record in trained}) == total
    for record in forks:
        assert record.fork is not None
        parent, epoch, gone = (
            records[record.fork.parent],
            record.fork.epoch,
            replaced[f"replaced by trial {record.number}"],
        )
        assert gone.epoch == epoch
        assert parent.accuracies[epoch] > gone.accuracies[epoch]
        ours, theirs = from_tree(record.config), from_tree(parent.config)
        assert history_hash(ours, epoch) == history_hash(theirs, epoch)
        assert [change.epoch for change in ours.changes][-1] == epoch
        assert {e: record.accuracies[e] for e in range(1, epoch + 1)} == {
            e: parent.accuracies[e] for e in range(1, epoch + 1)
        }
        assert sorted(record.accuracies) == list(range(1, record.epoch + 1))
        assert record.seconds == 2.0 * (record.epoch - epoch)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 999), concurrent=st.integers(1, 5))
def test_every_replaced_trial_has_one_fork_of_a_better_one_and_the_budget_is_spent(
    seed: int, concurrent: int, make_space: Make, open_ledger: Make, epoch_report: Make, tmp_path_factory: Any
) -> None:
    space = make_space(search={**SEARCH, "seed": seed}, train=TRAIN)
    ledger = open_ledger(space, folder=tmp_path_factory.mktemp("search"))
    Search(ledger, epoch_report).run(concurrent, random.Random(seed))
    must_be_sound(ledger.records())
    assert not ledger.storage.waiting()


def test_forks_happen_and_forks_are_forked(space: Any, open_ledger: Make, epoch_report: Make) -> None:
    ledger = open_ledger(space.with_trials(40))
    Search(ledger, epoch_report).run()
    must_be_sound(ledger.records(), 40)
    forks = [record for record in ledger.records() if record.fork]
    assert len(forks) > 5
    assert any(ledger.records()[record.fork.parent].fork for record in forks if record.fork)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 999))
def test_a_scheduler_that_starts_anew_replaces_the_same_trials_by_the_same_forks(
    seed: int, make_space: Make, open_ledger: Make, epoch_report: Make, tmp_path_factory: Any
) -> None:
    space = make_space(search={**SEARCH, "seed": seed}, train=TRAIN)
    ledger = open_ledger(space, folder=tmp_path_factory.mktemp("search"))
    search = Search(ledger, epoch_report)
    going_on = search.scheduler._stops

    def stops(number: int, result: dict[str, Any]) -> bool:
        fresh = LedgerScheduler(ledger)._stops(number, result), ledger.offspring.pop(number, None)
        assert (going_on(number, result), ledger.offspring.get(number)) == fresh
        return fresh[0]

    search.scheduler._stops = stops  # type: ignore[method-assign]
    search.run(2, random.Random(seed))
    must_be_sound(ledger.records())


def test_a_search_that_dies_at_any_write_ends_with_one_fork_for_every_replaced_trial(
    space: Any, open_ledger: Make, epoch_report: Make, tmp_path: Path
) -> None:
    Search(open_ledger(space), epoch_report).run(2)
    lines = (tmp_path / STUDY_FILE).read_text().splitlines(keepends=True)
    for count in range(8, len(lines), 11):
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / STUDY_FILE).write_text("".join(lines[:count]))
        ledger = open_ledger(space, folder=folder)
        Search(ledger, epoch_report).run(2)
        must_be_sound(ledger.records())


def test_a_trial_that_died_between_its_fork_and_its_end_is_replaced_once(
    space: Any, open_ledger: Make, epoch_report: Make, tmp_path: Path
) -> None:
    Search(open_ledger(space), epoch_report).run()
    lines = (tmp_path / STUDY_FILE).read_text().splitlines(keepends=True)
    births = [place for place, line in enumerate(lines, 1) if '"replaces"' in line]
    assert births
    for birth in births:
        for count in range(birth, birth + 4):
            folder = tmp_path / str(count)
            folder.mkdir()
            (folder / STUDY_FILE).write_text("".join(lines[:count]))
            ledger = open_ledger(space, folder=folder)
            Search(ledger, epoch_report).run()
            must_be_sound(ledger.records())


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(epochs=st.integers(1, 60))
def test_a_search_that_is_interrupted_goes_on_without_a_loss(
    epochs: int, make_space: Make, open_ledger: Make, epoch_report: Make, tmp_path_factory: Any
) -> None:
    space, folder = make_space(search=SEARCH, train=TRAIN), tmp_path_factory.mktemp("search")
    for part in (epochs, float("inf")):
        ledger = open_ledger(space, folder=folder)
        Search(ledger, epoch_report).run(2, epochs=part)
        ledger.interrupt()
    must_be_sound(ledger.records())


def test_a_fork_starts_with_the_past_of_its_parent_and_counts_its_own_time(
    space: Any, open_ledger: Make, epoch_report: Make
) -> None:
    started: list[Assignment] = []
    ledger = open_ledger(space, Events(started=[started.append]))
    search = Search(ledger, epoch_report)
    while search.start() and not started[-1].fork:
        search.epochs_of(started[-1].number)
    fork = started[-1]
    assert fork.fork is not None
    assert not fork.resumed
    epoch, records = fork.fork.epoch, ledger.records()
    assert fork.inherited == {e: records[fork.fork.parent].accuracies[e] for e in range(1, epoch + 1)}
    assert str(records[fork.number].fork) == f"fork of {fork.fork.parent} at epoch {epoch}"
    assert records[fork.number].flat()["forked_at"] == epoch
    own, parents = (ledger.trial(number) for number in (fork.number, fork.fork.parent))
    assert own.params == parents.params
    assert own.distributions == parents.distributions
    ledger.report(fork.number, epoch_report(epoch, 0.9))  # what a fork repeats at its start
    assert ledger.records()[fork.number].seconds == 0
    ledger.report(fork.number, {**epoch_report(1, 0.9), "anew": True})  # its parent's checkpoint was not there
    assert ledger.records()[fork.number].seconds == 2.0
    assert ledger.records()[fork.number].accuracies == fork.inherited


def test_without_a_trial_left_the_worst_goes_on(space: Any, open_ledger: Make, epoch_report: Make) -> None:
    ledger = open_ledger(space.with_trials(4))
    Search(ledger, epoch_report).run()
    assert [record.status for record in ledger.records()] == ["complete"] * 4


def test_arms_neither_fork_nor_are_forked(make_space: Make, open_ledger: Make, epoch_report: Make) -> None:
    ledger = open_ledger(make_space(search={**SEARCH, "arms": "tuned", "trials": 40}, train=TRAIN))
    Search(ledger, epoch_report).run()
    records = ledger.records()
    arms = [record for record in records if record.arm]
    assert all(record.status in ("complete", "duplicate") and not record.fork for record in arms)
    assert sum(record.arm is None and record.status in ("complete", "pruned") for record in records) == 8
    assert not {record.fork.parent for record in records if record.fork} & {record.number for record in arms}


def test_several_objectives_replace_only_what_is_dominated(
    make_space: Make, open_ledger: Make, epoch_report: Make
) -> None:
    ledger = open_ledger(make_space(search={**SEARCH, "minimize": ["params"], "trials": 30}, train=TRAIN))
    Search(ledger, epoch_report).run()
    records = ledger.records()
    must_be_sound(records, 30)
    forks = [record for record in records if record.fork]
    assert forks
    for fork in forks:
        gone = next(r for r in records if r.reason == f"replaced by trial {fork.number}")
        assert (fork.params or 0) <= (gone.params or 0)


def test_checkpoints_of_trials_that_left_the_population_are_removed_and_the_rest_at_the_end(
    space: Any, open_ledger: Make, epoch_report: Make, tmp_path: Path
) -> None:
    ledger = open_ledger(space)
    search = Search(ledger, epoch_report)
    kept = [checkpoint.kept(trial_folder(tmp_path, number), 2) for number in range(TRIALS)]
    for path in kept:
        path.parent.mkdir(parents=True)
        path.touch()
    search.run()
    evolution = search.scheduler.evolution
    assert isinstance(evolution, Evolution)
    reached = list(evolution.population.points[2])
    assert {n for n in reached if kept[n].exists()} == set(evolution.population.members(2))
    assert len(reached) > len(evolution.population.members(2)) == 4
    remove_checkpoints(tmp_path)
    assert not any(path.exists() for path in kept)


# --- a fork that is trained


@pytest.fixture(scope="module")
def train(make_tree: Make, digits: DataSet, cache_dir: Path) -> Callable[..., list[dict[str, Any]]]:
    """train(search, number, changes, fork, arm): the reports of a trial that a worker trains."""
    tree = make_tree(terms={"ce": {}, "kd": {}}, train={"epochs": 3})

    def go(
        search: Path, number: int, changes: list[Any], fork: Fork | None = None, arm: str = ""
    ) -> list[dict[str, Any]]:
        reports: list[dict[str, Any]] = []
        told = {"parent": fork.parent, "epoch": fork.epoch} if fork else {}
        config = json.dumps(dump(from_tree({**tree, "changes": changes})))
        assignment = {"number": number, "config": config, "arm": arm, "fork": json.dumps(told)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trials.tune, "report", reports.append)
            shared = json.dumps(dump(from_tree(tree)))
            places = {"search": str(search), "cache_dir": str(cache_dir), "home": str(Path.cwd()), "shared": shared}
            trials.run_trial(assignment, data=digits, keep=[1, 2], **places)
        assert not any("fault" in report for report in reports), reports
        return reports

    return go


CHANGES = [{"epoch": 2, "set": {"train.lr": 0.11, "terms.kd.weight": 1.25}}]


@pytest.mark.parametrize("parent", ["there", "missing", "damaged"])
def test_a_fork_ends_as_its_configuration_does_from_scratch_whatever_became_of_the_checkpoint(
    parent: str, train: Make, make_tree: Make, digits: DataSet, cache_dir: Path, tmp_path: Path
) -> None:
    assert [report["epoch"] for report in train(tmp_path, 0, [])] == [1, 2, 3]
    kept = checkpoint.kept(trial_folder(tmp_path, 0), 2)
    if parent == "missing":
        kept.unlink()
    if parent == "damaged":
        kept.write_bytes(kept.read_bytes()[:-9] + b"otherwise")
    reports = train(tmp_path, 1, CHANGES, Fork(0, 2))
    anew = [report["epoch"] for report in reports if report.get("anew")]
    assert [report["epoch"] for report in reports] == ([2, 3] if parent == "there" else [1, 2, 3])
    assert anew == ([] if parent == "there" else [1, 2])
    assert parent == "there" or any("from scratch" in text for text in reports[-1]["warnings"])
    tree = {**make_tree(terms={"ce": {}, "kd": {}}, train={"epochs": 3}), "changes": CHANGES}
    whole = fit(from_tree(tree), data=digits, cache_dir=cache_dir)
    weights = load_file(trial_folder(tmp_path, 1) / WEIGHTS_FILE)
    assert all(torch.equal(weights[name], value) for name, value in whole.student.state_dict().items())
    result = json.loads((trial_folder(tmp_path, 1) / "result.json").read_text())
    assert [one["val_accuracy"] for one in result["history"]] == [one.val_accuracy for one in whole.history]


def test_a_fork_that_has_begun_does_not_begin_again_and_arms_keep_nothing(train: Make, tmp_path: Path) -> None:
    train(tmp_path, 0, [], arm="standard KD")
    assert not list(trial_folder(tmp_path, 0).glob("epoch-*"))
    train(tmp_path, 1, [])
    train(tmp_path, 2, CHANGES, Fork(1, 2))
    assert [report["epoch"] for report in train(tmp_path, 2, CHANGES, Fork(1, 2))] == [3]
