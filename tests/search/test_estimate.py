"""Dry runs on real digits: what a miniature is, what workers measure, what is said of an estimate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hksd import data as datasets
from hksd.data.augment import Batches
from hksd.errors import RunError, UserError
from hksd.teacher import prepare as teachers
from hksd.teacher.teacher import FAMILIAR
from hksd_search.backend.packing import trials_at_once
from hksd_search.commands.estimate import lines
from hksd_search.estimate import dry_run
from hksd_search.estimate.estimate import Estimate, estimate, fit_numbers
from hksd_search.estimate.forecast import Span
from hksd_search.estimate.question import Machine, feasible_draws, spread
from hksd_search.space import space as spaces
from hksd_search.space.sizes import Meter

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


def test_what_is_cached_of_the_teacher_costs_nothing(tmp_path: Path) -> None:
    one = space()
    middle = one.middle({"teacher": {**SPACE["teacher"], "min_accuracy": 0.0, "epochs": 1}})
    data = datasets.load(middle.data)
    assert sorted(teachers.missing(middle, data, tmp_path).values()) == ["attention", "teacher"]
    teachers.prepare(middle, data, cache_dir=tmp_path)
    assert teachers.missing(middle, data, tmp_path) == {}


def made_up(**changes: Any) -> Estimate:
    span = Span(60.0, 90.0, 150.0)
    facts: dict[str, Any] = {
        "trials": 24, "at_once": 2, "gpu": 0.0, "gpu_reason": "", "teacher_seconds": 30.0,
        "missing": ("teacher", "attention", "attention"), "knowledge_seconds": 4.0, "trial_seconds": span,
        "expected_epochs": 4.2, "epochs": 6, "wall_hours": span.times(1 / 60), "device_hours": Span(1.0, 1.5, 2.5),
        "cost": None, "price": None, "peak_bytes": 2**30, "gpu_bytes": 0, "measured": 16, "workers": 2, "seconds": 50.0,
        "familiar": False,
    }  # fmt: skip
    return Estimate(**facts | changes)


def test_people_read_likely_values_with_the_low_and_high_ones() -> None:
    text = "\n".join(lines(made_up(), None, None))
    assert "30 s, training the teacher and attention estimators" in text
    assert "90 s  (60 s to 2.5 min) of training, 4.2 of 6 epochs expected" in text
    assert "90.0 min  (60.0 min to 2.5 h) for 24 trials, 2 at once" in text
    assert "1.5  (1 to 2.5)" in text
    assert "1.0 GiB for each trial process" in text
    assert "money" not in text
    assert "cached" in "\n".join(lines(made_up(missing=()), None, None))


def test_money_and_caps_that_end_the_search_early_are_said() -> None:
    found = made_up(price=2.0, cost=Span(2.0, 3.0, 5.0))
    assert "3.00  (2.00 to 5.00) at 2 a device hour" in "\n".join(lines(found, None, None))
    assert "search.max_device_hours = 0.75 ends it early, at about 50%" in "\n".join(lines(found, 0.75, None))
    assert "search.max_cost = 1 ends it early, at about 33%" in "\n".join(lines(found, None, 1.0))
    assert "early" not in "\n".join(lines(found, 1.6, 3.1))


def test_that_a_loaded_teacher_may_know_the_validation_images_is_said_once() -> None:
    told = [line for line in lines(made_up(familiar=True), None, None) if FAMILIAR in line]
    assert len(told) == 1
    assert "search.max_drop" in told[0]
    assert FAMILIAR not in "\n".join(lines(made_up(), None, None))


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


class Does:
    """A job at whose arrival a process does something."""

    def __init__(self, what: str):
        self.what = what

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (self.what,)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("__import__('os').kill(__import__('os').getpid(), 9)", r"died \(killed, or out of memory\)"),
        ("open('/not/there')", r"could not begin \(exit code 1, its fault is above\)"),
    ],
    ids=["killed", "a file that is not there"],
)
def test_a_process_that_could_not_begin_is_told_from_one_that_was_killed(
    what: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "work", print)  # nothing that a process would have to import first
    jobs: Any = [Does(what), Does("1 / 1")]
    with pytest.raises(RunError, match=said):
        dry_run.run_here(jobs)


def test_resources_that_no_trial_fits_into_are_refused() -> None:
    settings = space(search={"resources": {"cpu": 4}}).search
    with pytest.raises(UserError, match=r"a trial wants 4 CPU\(s\)"):
        trials_at_once(settings, 0, cpus=2, gpus=0)
    assert trials_at_once(settings, 0.5, cpus=64, gpus=1) == 2


def test_limits_that_no_draw_keeps_are_an_error_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"search\.limits"):
        estimate(space(search={"limits": {"params": 10}}), Machine(2, 0), runs=tmp_path, say=print)


def test_a_space_of_which_no_draw_makes_a_run_is_an_error(shape: dict[str, int]) -> None:
    off = {"logits": {"weight": {"uniform": [0.5, 5], "off": 0.999999}}}
    tree = {**SPACE, "terms": off}
    one = spaces.loads(yaml.safe_dump(tree), "empty", "empty.yaml")
    with pytest.raises(UserError, match=r"empty\.yaml: no random draw of this space makes a valid run"):
        feasible_draws(one, Meter(shape))
