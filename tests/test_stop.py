"""A run that is stopped inside an epoch: what it saves, and a resume that nobody can tell."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hksd import fit as train
from hksd.config.run import RunConfig
from hksd.data import DataSet
from hksd.errors import RunError
from hksd.fit import fit
from hksd.run import checkpoint
from hksd.run.outcome import EpochReport, Result

Make = Callable[..., Any]
EPOCHS = 3
STEPS = 4  # 240 images in batches of 64

# Every kind of state that an epoch under way has.
KINDS: dict[str, dict[str, Any]] = {
    "views": {"data": {"crop": 2, "flip": True}, "train": {"epochs": EPOCHS, "views": 2}},
    "terms": {
        "terms": {
            "ce": {},
            "kd": {"warmup_epochs": 2},
            "squeeze": {"depth": 2, "levels": "all"},
            "adversarial": {"hidden": 8, "warmup_epochs": 0, "student_dropout": 0.2},
            "crd": {"dims": 8},
        },
        "train": {"epochs": EPOCHS, "clip_norm": 5.0, "schedule": "multistep"},
    },
    "robust": {
        "terms": {"ce": {}, "kd": {}},
        "robust": {"steps": 2, "attack": "total", "evaluate": "every"},
        "train": {"epochs": EPOCHS},
    },
    "prune": {
        "prune": {"strength": 1e-2, "target_sparsity": 0.5, "debias_fraction": 0.5},
        "train": {"epochs": EPOCHS},
    },
    "filters": {
        "prune": {"granularity": "filter", "strength": 1e-1, "debias_fraction": 0.5},
        "train": {"epochs": EPOCHS},
    },
    "data_free": {
        "terms": {"kd": {}},
        "data_free": {"steps_per_epoch": 5, "student_steps": 2, "channels": 8, "latent": 16},
        "train": {"epochs": EPOCHS, "batch_size": 16},
    },
    "two_step": {
        "terms": {"kd": {}, "adversarial": {"hidden": 8, "category_weight": 0}},
        "data_free": {"method": "two_step", "steps_per_epoch": 4, "student_steps": 1, "channels": 8, "latent": 16},
        "train": {"epochs": EPOCHS, "batch_size": 16},
    },
}


def same(one: nn.Module, two: nn.Module) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def timeless(result: Result) -> list[dict[str, Any]]:
    """The history of a run without its times."""
    times = {"seconds": 0.0, "images_per_s": 0.0}
    return [dataclasses.asdict(dataclasses.replace(report, **times)) for report in result.history]


def at_question(number: int) -> Callable[[], bool]:
    """A `should_stop` that says yes when it is asked for the `number`-th time."""
    asked = iter(range(1, number))
    return lambda: next(asked, None) is None


@pytest.fixture(scope="module")
def config(make_config: Make) -> RunConfig:
    return make_config(teacher=None, train={"epochs": EPOCHS}, data={"flip": True})


@pytest.fixture(scope="module")
def whole(config: RunConfig, digits: DataSet) -> Result:
    """The run of `config`, never stopped."""
    return fit(config, data=digits)


@pytest.fixture(scope="module")
def under_way(config: RunConfig, digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the run of `config` was stopped after step 2 of epoch 2; to be copied, not used."""
    folder = tmp_path_factory.mktemp("under-way")
    result = fit(config, data=digits, out_dir=folder, should_stop=at_question(1 + STEPS + 1 + 1 + 2))
    assert (result.stopped, len(result.history), result.step) == (True, 1, 2)
    return folder


@pytest.fixture
def stopped(under_way: Path, tmp_path: Path) -> Path:
    """A copy of `under_way` of one's own."""
    return Path(shutil.copytree(under_way, tmp_path / "run"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_again_and_again_inside_its_epochs_is_bit_identical_to_one_never_stopped(
    kind: str, make_config: Make, digits: DataSet, cache_dir: Path, tmp_path: Path
) -> None:
    config = make_config(**KINDS[kind])
    whole = fit(config, data=digits, cache_dir=cache_dir)
    places = set()
    for session in range(99):
        torch.rand(3)  # whatever the process does in between
        result = fit(
            config, data=digits, cache_dir=cache_dir, out_dir=tmp_path, should_stop=at_question(4 + session % 3)
        )
        if not result.stopped:
            break
        places.add((len(result.history), result.step))
    assert len({epoch for epoch, step in places if step}) == EPOCHS, "no stop inside each of the epochs"
    assert same(result.student, whole.student)
    assert timeless(result) == timeless(whole)


@pytest.mark.parametrize("question", range(1, 1 + EPOCHS * (1 + STEPS + 1)))
def test_a_run_stopped_anywhere_loses_no_step(
    question: int, config: RunConfig, digits: DataSet, whole: Result, tmp_path: Path
) -> None:
    first = fit(config, data=digits, out_dir=tmp_path, should_stop=at_question(question))
    assert first.stopped
    epoch, place = divmod(question - 1, 1 + STEPS + 1)  # asked before the epoch, after its steps, in its validation
    assert (len(first.history), first.step) == (epoch, min(place, STEPS))
    assert not (tmp_path / train.RESULT_FILE).exists()
    second = fit(config, data=digits, out_dir=tmp_path)
    assert (second.resumed_at, second.resumed_step, second.step) == (epoch, first.step, 0)
    assert same(second.student, whole.student)
    assert timeless(second) == timeless(whole)


def test_the_last_finished_epoch_is_reported_again_and_an_epoch_under_way_once(
    config: RunConfig, digits: DataSet, stopped: Path
) -> None:
    reports: list[EpochReport] = []
    fit(config, data=digits, out_dir=stopped, on_epoch=reports.append)
    assert [report.epoch for report in reports] == [1, 2, 3]


def test_the_time_before_a_stop_counts_and_the_pause_after_it_does_not(
    config: RunConfig, digits: DataSet, stopped: Path
) -> None:
    state = checkpoint.read(stopped / checkpoint.LAST)
    assert state["tally"]["seconds"] > 0
    state["tally"]["seconds"] += 1000.0
    checkpoint.save(stopped, state)
    result = fit(config, data=digits, out_dir=stopped)
    assert 1000 < result.history[1].seconds < 2000
    assert result.history[1].images_per_s < 240 / 1000
    assert result.seconds == sum(report.seconds for report in result.history)


def test_without_a_folder_a_run_stops_and_keeps_nothing(config: RunConfig, digits: DataSet) -> None:
    result = fit(config, data=digits, should_stop=at_question(3))
    assert (result.stopped, result.step, result.history) == (True, 2, ())


def test_stopping_where_nothing_new_was_learned_writes_nothing(
    config: RunConfig, digits: DataSet, stopped: Path
) -> None:
    before = (stopped / checkpoint.LAST).stat().st_mtime_ns
    result = fit(config, data=digits, out_dir=stopped, should_stop=lambda: True)
    assert (result.stopped, result.step, result.resumed_step) == (True, 2, 2)
    assert (stopped / checkpoint.LAST).stat().st_mtime_ns == before


def test_a_damaged_checkpoint_inside_an_epoch_falls_back_to_the_one_before(
    config: RunConfig, digits: DataSet, whole: Result, stopped: Path
) -> None:
    content = bytearray((stopped / checkpoint.LAST).read_bytes())
    content[len(content) // 2] ^= 1
    (stopped / checkpoint.LAST).write_bytes(content)
    result = fit(config, data=digits, out_dir=stopped)
    assert (result.resumed_at, result.resumed_step) == (1, 0)
    assert same(result.student, whole.student)


def test_a_disk_that_fills_inside_an_epoch_leaves_the_checkpoints_before(
    config: RunConfig,
    digits: DataSet,
    whole: Result,
    stopped: Path,
    full_disk: Callable[[int], AbstractContextManager[None]],
) -> None:
    before = {name: (stopped / name).read_bytes() for name in (checkpoint.LAST, checkpoint.PREVIOUS)}
    with full_disk(20_000), pytest.raises(RunError, match="cannot be written"):
        fit(config, data=digits, out_dir=stopped, should_stop=at_question(2))
    assert {name: (stopped / name).read_bytes() for name in before} == before
    assert same(fit(config, data=digits, out_dir=stopped).student, whole.student)


def test_a_view_that_the_teacher_is_computing_is_left_and_nobody_waits_for_it(
    make_config: Make, digits: DataSet, cache_dir: Path, tmp_path: Path
) -> None:
    config = make_config(terms={"ce": {}, "kd": {}}, data={"flip": True}, seed=9)
    teacher = train.teachers.prepare(config, digits, cache_dir=cache_dir)
    cache = tmp_path / "cache"
    result = fit(
        config, data=digits, teacher=teacher, cache_dir=cache, out_dir=tmp_path / "run", should_stop=at_question(2)
    )
    assert (result.stopped, result.step) == (True, 0)
    assert not list(cache.rglob("*.safetensors"))
    resumed = fit(config, data=digits, teacher=teacher, cache_dir=cache, out_dir=tmp_path / "run")
    assert same(resumed.student, fit(config, data=digits, teacher=teacher).student)
