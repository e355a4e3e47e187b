"""Samplers: each serves the ledger, makes other draws after a restart, and learns over conditional spaces."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from hksd.config.run import config_hash
from hksd.errors import ConfigError
from hksd_search.space.parameters import parameters, varying
from hksd_search.space.settings import SamplerName
from hksd_search.strategy import samplers, surrogate
from hksd_search.strategy.evolution import NSGA2, divisions, population
from hksd_search.strategy.surrogate import SEEN, Axis, Surrogate

Make = Callable[..., Any]
MODELS = ["tpe", "gp", "nsga2", "random"]
ALTERNATIVES = {"ce": {"weight": 1.0}, "one_of": {"none": {}, "kd": {"kd": {"weight": {"uniform": [1, 2]}}}}}
NUMBERS = {
    "student": {"model": "resnet8", "width": 0.25},
    "terms": {"ce": {"weight": 1.0}, "kd": {"temperature": {"uniform": [1, 8]}}},
}
FAST = {"train": {"epochs": 1, "lr": {"log_uniform": [0.01, 0.3]}}}


def accuracy(config: Any) -> float:
    """Best at a learning rate of 0.05 with kd of weight 1."""
    kd = config.terms.active().get("kd")
    gain = 0.2 - 0.1 * abs(math.log10(kd.weight)) if kd else 0.0
    return float(0.6 + gain - 0.2 * abs(math.log10(config.train.lr / 0.05)))


def run(ledger: Any, train: Make, count: int = 10**6) -> list[Any]:
    done: list[Any] = []
    while len(done) < count and (assignment := ledger.next()) is not None:
        train(ledger, assignment, (accuracy(assignment.config),))
        done.append(assignment)
    return done


@pytest.mark.parametrize("minimize", [[], ["params"]], ids=["one objective", "two"])
@pytest.mark.parametrize("name", [*MODELS, "nsga3"])
def test_every_sampler_serves_a_search_with_refusals_parallel_trials_faults_and_a_restart(
    name: str, minimize: list[str], make_space: Make, open_ledger: Make, train: Make
) -> None:
    if name == "nsga3" and not minimize:
        pytest.skip("needs several objectives")
    search = {"sampler": name, "trials": 15, "minimize": minimize, "limits": {"params": 20_000}}
    space = make_space(**FAST, search=search)
    ledger = open_ledger(space)
    run(ledger, train, 12)
    first, second = ledger.next(), ledger.next()
    assert config_hash(first.config) != config_hash(second.config)
    ledger.finish(first.number, "a fault")
    ledger.interrupt()
    again = open_ledger(space)
    resumed = again.next()
    assert (resumed.number, resumed.resumed) == (second.number, True)
    train(again, resumed, (0.5,))
    run(again, train)
    records = [record for record in again.records() if record.status in ("complete", "failed")]
    assert len(records) == again.trained == 15
    assert again.end is None
    drawn = [trial for trial in again.study.trials if trial.user_attrs["facts"]["origin"] != "arm"]
    assert all("train.lr" in trial.params for trial in drawn)


@pytest.mark.parametrize("name", MODELS)
def test_a_search_that_goes_on_does_not_repeat_its_draws(
    name: str, make_space: Make, open_ledger: Make, train: Make
) -> None:
    space = make_space(**FAST, search={"sampler": name, "trials": 40, "arms": "none", "enqueue_defaults": False})
    rates = []
    for _ in range(3):
        rates += [
            assignment.config.train.lr for assignment in run(open_ledger(space), train, 2)
        ]  # nsga2: of its first generation
    assert len(set(rates)) == 6


@pytest.mark.parametrize("name", ["gp", "nsga2"])
def test_a_sampler_learns_where_a_block_is_and_what_its_knob_should_be(
    name: str, make_space: Make, open_ledger: Make, train: Make
) -> None:
    trials = {"gp": 24, "nsga2": 80}[name]
    space = make_space(**FAST, search={"sampler": name, "trials": trials, "enqueue_defaults": False})
    late = run(open_ledger(space), train)[-trials // 3 :]
    assert sum("kd" in assignment.config.terms.active() for assignment in late) > 0.75 * len(late)
    assert np.median([accuracy(assignment.config) for assignment in late]) > 0.7  # of random draws: below 0.6


def test_a_surrogate_stays_away_from_what_was_refused(
    make_space: Make, open_ledger: Make, train: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surrogate, "STARTUP", 5)
    student = {"model": "resnet8", "width": {"uniform": [0.25, 1.0], "step": 0.125}}
    search = {"sampler": "gp", "trials": 14, "limits": {"params": 15_000}, "enqueue_defaults": False, "arms": "none"}
    ledger = open_ledger(make_space(**FAST, student=student, search=search))
    run(ledger, train)
    statuses = [record.status for record in ledger.records()]
    start = [i for i, status in enumerate(statuses) if status == "complete"][5]
    assert statuses[:start].count("rejected") > 3  # most random draws are
    assert statuses[start:].count("rejected") <= 4


def test_a_surrogate_fits_a_bounded_number_of_trials(make_space: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def count(self: Any, study: optuna.Study, trial: Any, space: Any) -> dict[str, Any]:
        seen.append(len(study.get_trials(states=(TrialState.COMPLETE,))))
        return {}

    monkeypatch.setattr(optuna.samplers.GPSampler, "sample_relative", count)
    found = varying(parameters(make_space()))
    study = optuna.create_study(direction="maximize", sampler=Surrogate(found, ["val_accuracy"], 0))
    for number in range(SEEN + 20):
        study.add_trial(
            optuna.create_trial(
                value=number / 1000,
                params={"train.lr": 0.1},
                distributions={"train.lr": found["train.lr"].distribution},
            )
        )
    study.ask().suggest_float("train.lr", 0.01, 0.3, log=True)
    assert seen == [SEEN]


def test_what_the_surrogate_sees_can_be_drawn_again(make_space: Make) -> None:
    for parameter in varying(parameters(make_space())).values():
        axis = Axis(parameter)
        assert axis.distribution._contains(axis.distribution.to_internal_repr(axis.missing))
        assert axis.inward(axis.outward(axis.missing)) == axis.missing
        assert parameter.distribution._contains(parameter.distribution.to_internal_repr(axis.outward(axis.missing)))


def test_genes_of_parents_are_whole_and_arms_are_no_parents(make_space: Make) -> None:
    found = varying(parameters(make_space()))
    sampler = NSGA2(found, population_size=2, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    lr = {"train.lr": found["train.lr"].distribution}
    study.add_trial(optuna.create_trial(value=0.9, params={}, distributions={}))
    study.add_trial(optuna.create_trial(value=0.5, params={"train.lr": 0.02}, distributions=lr))
    parents = sampler.get_population(study, 0)
    assert [parent.params["train.lr"] for parent in parents] == [0.02]
    assert parents[0].params.keys() == found.keys()


@pytest.mark.parametrize(("objectives", "size"), [(2, 8), (2, 50), (3, 8), (3, 50)])
def test_there_is_a_reference_point_for_every_trial_of_a_generation(objectives: int, size: int) -> None:
    parts = divisions(objectives, size)
    assert math.comb(objectives + parts - 1, parts) >= size
    assert math.comb(objectives + parts - 2, parts - 1) < size


def test_a_generation_is_a_part_of_the_trials_within_bounds() -> None:
    assert [population(trials) for trials in (10, 60, 120, 10_000)] == [8, 10, 20, 50]


def test_nsga3_with_one_objective_and_unknown_samplers_are_refused_with_what_to_take(make_space: Make) -> None:
    with pytest.raises(ConfigError, match=r"nsga3 .* needs minimize"):
        make_space(search={"sampler": "nsga3"})
    with pytest.raises(ConfigError, match="did you mean 'nsga2'"):
        make_space(search={"sampler": "nsgaii2"})


def test_each_competitor_has_a_sampler_for_its_own_parameters(make_space: Make, open_ledger: Make, train: Make) -> None:
    space = make_space(**FAST, search={"sampler": "nsga2", "trials": 20, "arms": "tuned"})
    ledger = open_ledger(space)
    run(ledger, train)
    assert set(ledger.samplers) == {None, *ledger.competitors.published}
    for trial in ledger.study.trials:
        arm = trial.user_attrs["facts"]["arm"]
        assert all(name.startswith(f"{arm}: ") if arm else ": " not in name for name in trial.params)


@pytest.mark.parametrize("name", get_args(SamplerName))
def test_every_name_makes_samplers(name: str, make_space: Make) -> None:
    space = make_space(search={"sampler": name, "minimize": ["params"], "grid_points": 2})
    assert set(samplers.of({None: space}, [])) == {None}
    assert samplers.told(space).startswith("sampler ")


@pytest.mark.parametrize(
    ("sections", "name", "reason"),
    [
        ({"train": {"lr": 0.1}, "terms": {"ce": {"weight": 1.0}}}, "grid", "all 4 configurations"),
        ({"train": {"lr": 0.1}, "terms": {"ce": {"weight": 1.0}}, "search": {"trials": 3}}, "tpe", "more"),
        ({}, "tpe", "continuous"),
        ({"search": {"trials": 200}}, "tpe", "continuous"),
        ({"search": {"trials": 200, "scheduler": "none"}}, "nsga2", "200 trials"),
        ({"search": {"scheduler": "none"}}, "tpe", "continuous"),
        ({**NUMBERS, "search": {"scheduler": "none"}}, "gp", "over numbers"),
        ({**NUMBERS, "search": {"trials": 100, "scheduler": "none"}}, "tpe", "continuous"),
        (NUMBERS, "tpe", "continuous"),
        ({"search": {"trials": 200, "scheduler": "none", "minimize": ["params"]}}, "tpe", "continuous"),
        ({"search": {"trials": 200, "scheduler": "none"}, "terms": ALTERNATIVES}, "tpe", "continuous"),
    ],
)
def test_auto_takes_the_grid_where_it_ends_and_else_what_was_measured(
    sections: dict[str, Any], name: str, reason: str, make_space: Make
) -> None:
    space = make_space(**{**sections, "search": {"sampler": "auto", **sections.get("search", {})}})
    chosen, why = samplers.name_and_reason(space)
    assert chosen == name
    assert reason in why
    assert samplers.told(space) == f"sampler {name}, chosen by auto: {why}"
