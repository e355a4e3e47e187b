"""Dry runs on real digits: what a miniature is, what `hksd estimate` says, what it leaves alone, how it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hksd import data as datasets
from hksd import teacher as teachers
from hksd.data.augment import Batches
from hksd.errors import RunError, UserError
from search import dry_run
from search import space as spaces
from search.costs import Meter
from search.estimate import Machine, estimate, feasible_draws, fit_numbers, spread
from search.packing import trials_at_once

Make = Callable[..., Any]
SPACE: dict[str, Any] = {
    "data": {"name": "digits", "limit": 400, "validation": 0.25},
    "teacher": {"model": "resnet8", "width": 0.5, "epochs": 6, "batch_size": 64, "min_accuracy": 0.9},
    "student": {"model": "resnet8", "width": {"choice": [0.25, 0.5]}},
    "terms": {
        "logits": {"weight": {"log_uniform": [0.5, 5]}},
        "squeeze": {"weight": {"uniform": [0.1, 1], "off": 0.3}},
    },
    "train": {"epochs": 4, "batch_size": 64, "lr": {"log_uniform": [0.05, 0.2]}, "device": "cpu"},
    "search": {"trials": 12, "sampler": "random", "price": 2.0, "concurrent": 2},
}


def space(**sections: Any) -> spaces.Space:
    tree = {name: {**SPACE[name], **sections.get(name, {})} for name in SPACE}
    return spaces.loads(yaml.safe_dump(tree), "small", "small.yaml")


@pytest.mark.parametrize(("images", "batch"), [(240, 64), (241, 64), (193, 64), (5, 64), (1, 64), (7, 1), (64, 64)])
def test_steps_are_those_of_the_loop(make_data: Make, images: int, batch: int) -> None:
    data = make_data(train=images)
    batches = Batches(data.train, data, crop=0, flip=False, seed=0, device=torch.device("cpu"))
    assert dry_run.steps(images, batch) == batches.steps(batch)


def test_a_miniature_keeps_the_proportion_of_both_splits_and_all_classes(make_data: Make) -> None:
    data = make_data(train=1200, validation=400)
    small = dry_run.miniature(data, 32)
    assert len(small.train) == dry_run.STEPS * 32
    assert len(small.validation) / len(small.train) == pytest.approx(1 / 3, rel=0.02)
    assert set(small.train.labels) == set(range(10))
    assert small.fingerprint != data.fingerprint
    assert len(dry_run.miniature(data, 10_000).train) == 1200


def test_every_worker_measures_every_run_and_no_two_start_with_the_same(make_data: Make, tmp_path: Path) -> None:
    run = space().middle({})
    jobs = dry_run.jobs([run] * 5, run, make_data(), tmp_path, workers=3)
    assert [sorted(number for number, _ in job.configs) for job in jobs] == [list(range(5))] * 3
    assert len({job.configs[0][0] for job in jobs}) == 3


def test_measured_draws_reach_from_small_to_large(shape: dict[str, int]) -> None:
    one = space(student={"width": {"choice": [0.25, 0.5, 0.75, 1.0]}})
    meter = Meter(shape)
    drawn = feasible_draws(one, meter)
    sizes = [meter.costs(run.student)["mflops"] for run in spread(drawn, meter, 8)]
    every = sorted(meter.costs(run.student)["mflops"] for run in drawn)
    assert sizes == sorted(sizes)
    assert len(sizes) == 8
    assert sizes[0] <= every[len(every) // 8]
    assert sizes[-1] >= every[-len(every) // 8]


def test_an_estimate_of_a_small_space_keeps_nothing_and_says_everything(tmp_path: Path) -> None:
    said: list[str] = []
    found = estimate(space(), Machine(cpus=2, gpus=0), runs=tmp_path, say=said.append)
    assert found.missing == ("teacher", "attention")
    assert (found.trials, found.at_once, found.gpu, found.workers) == (12, 2, 0.0, 2)
    assert 0 < found.trial_seconds.low < found.trial_seconds.likely < found.trial_seconds.high
    assert found.device_hours.likely * 3600 > found.teacher_seconds > 0
    assert found.cost is not None
    assert found.cost.likely == pytest.approx(2 * found.device_hours.likely)
    assert 1 < found.expected_epochs < 4
    assert found.peak_bytes > 100 * 2**20
    assert found.measured == 16, "12 draws and four arms"
    assert not (tmp_path / "teachers").exists(), "the cache of teachers is left alone"
    json.dumps(found.facts())
    assert said


def test_what_is_cached_of_the_teacher_costs_nothing(tmp_path: Path) -> None:
    one = space()
    middle = one.middle({"teacher": {**SPACE["teacher"], "min_accuracy": 0.0, "epochs": 1}})
    data = datasets.load(middle.data)
    assert sorted(teachers.missing(middle, data, tmp_path).values()) == ["attention", "teacher"]
    teachers.prepare(middle, data, cache_dir=tmp_path)
    assert teachers.missing(middle, data, tmp_path) == {}


def test_runs_that_fail_are_left_out_and_named_when_none_is_left() -> None:
    def found(measured: dict[int, float]) -> dry_run.Findings:
        return dry_run.Findings(1.0, 0.0, measured, {7: "it broke"}, 1, 0)

    assert fit_numbers([found({1: 0.1, 2: 0.2}), found({2: 0.2})]) == [2]
    with pytest.raises(RunError, match="no draw could be measured: it broke"):
        fit_numbers([found({}), found({2: 0.2})])


def test_a_worker_reports_a_run_that_fails_and_measures_the_others(make_data: Make, tmp_path: Path) -> None:
    run = dry_run.shortened(space().middle({"terms": {"ce": {"weight": 1.0}}}))
    diverging = dry_run.shortened(
        space().middle({"terms": {"ce": {"weight": 1.0}}, "train": {**SPACE["train"], "lr": 1e12}})
    )
    found = dry_run.work(dry_run.jobs([diverging, run], run, make_data(), tmp_path, 1)[0])
    assert "not finite" in found.problems[0]
    assert found.epoch_seconds.keys() == {1}


def test_resources_that_no_trial_fits_into_are_refused() -> None:
    settings = space(search={"resources": {"cpu": 4}}).search
    with pytest.raises(UserError, match=r"a trial wants 4 CPU\(s\)"):
        trials_at_once(settings, 0, cpus=2, gpus=0)
    assert trials_at_once(settings, 0.5, cpus=64, gpus=1) == 2


def test_limits_that_no_draw_keeps_are_an_error_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"search\.limits"):
        estimate(space(search={"limits": {"params": 10}}), Machine(2, 0), runs=tmp_path, say=print)


def test_a_space_of_which_no_draw_makes_a_run_is_an_error(shape: dict[str, int]) -> None:
    off = {"logits": {"weight": {"uniform": [0.5, 5], "off": 1.0}}}
    tree = {**SPACE, "terms": off}
    one = spaces.loads(yaml.safe_dump(tree), "empty", "empty.yaml")
    with pytest.raises(UserError, match=r"empty\.yaml: no random draw of this space makes a valid run"):
        feasible_draws(one, Meter(shape))
