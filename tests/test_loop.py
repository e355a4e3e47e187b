"""The training loop: the same numbers every time, a resume that nobody can tell, and errors at the right moment."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hksd import fit as train
from hksd import provenance
from hksd.config.run import RunConfig, config_hash, load
from hksd.config.train import TrainConfig, learning_rate
from hksd.data import DataSet, Split
from hksd.data.augment import Batches, views
from hksd.device.device import resolve_device
from hksd.errors import NonFiniteLossError, RunError, UserError
from hksd.fit import fit
from hksd.models import weights
from hksd.models.size import size_of
from hksd.run import checkpoint, evaluate, loop
from hksd.run.outcome import EpochReport, Result

Make = Callable[..., Any]
EPOCHS = 4

# Every kind of state that a resume must restore: estimators, discriminator with its optimiser, noise, ramps.
EVERYTHING: dict[str, Any] = {
    "ce": {},
    "kd": {"temperature": 2},
    "logits": {"weight": 0.1},
    "squeeze": {"depth": 3, "top_dim": 8, "levels": "all"},
    "adversarial": {"hidden": 8, "warmup_epochs": 1, "student_dropout": 0.2, "off_fraction": 0.1},
}


def same(one: nn.Module, two: nn.Module) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def timeless(result: Result) -> list[dict[str, Any]]:
    """The history of a run without its times."""
    times = {"seconds": 0.0, "images_per_s": 0.0}
    return [dataclasses.asdict(dataclasses.replace(report, **times)) for report in result.history]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stop_after(epoch: int) -> Callable[[EpochReport], Any]:
    return lambda report: "stop" if report.epoch == epoch else None


@pytest.fixture(scope="module")
def config(make_config: Make) -> RunConfig:
    return make_config(terms=EVERYTHING, train={"epochs": EPOCHS, "clip_norm": 5.0}, data={"flip": True})


@pytest.fixture(scope="module")
def run(config: RunConfig, digits: DataSet, cache_dir: Path) -> Callable[..., Result]:
    """run(**arguments of fit): the run of `config`, with the shared teacher."""
    return lambda **arguments: fit(config, data=digits, cache_dir=cache_dir, **arguments)


@pytest.fixture(scope="module")
def whole(run: Callable[..., Result]) -> Result:
    """The run of `config`, never interrupted."""
    return run()


@pytest.fixture(scope="module")
def halfway(run: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the run of `config` was stopped after epoch 2; to be copied, not used."""
    folder = tmp_path_factory.mktemp("halfway")
    assert run(out_dir=folder, on_epoch=stop_after(2)).stopped
    return folder


@pytest.fixture
def stopped(halfway: Path, tmp_path: Path) -> Path:
    """A copy of `halfway` of one's own."""
    return Path(shutil.copytree(halfway, tmp_path / "run"))


# --- the same numbers every time


def test_the_same_configuration_gives_bit_identical_weights(run: Callable[..., Result], whole: Result) -> None:
    again = run()
    assert same(again.student, whole.student)
    assert timeless(again) == timeless(whole)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"data": {"seed": 1, "flip": True}},
        {"train": {"epochs": EPOCHS, "batch_size": 32}},
        {"train": {"epochs": EPOCHS, "weight_decay": 0.1}},
        {"train": {"epochs": EPOCHS, "nesterov": False}},
    ],
    ids=str,
)
def test_another_seed_or_knob_gives_other_weights(change: dict[str, Any], make_config: Make, digits: DataSet) -> None:
    plain = fit(make_config(train={"epochs": EPOCHS}, data={"flip": True}), data=digits)
    other = fit(make_config(**{"train": {"epochs": EPOCHS}, "data": {"flip": True}, **change}), data=digits)
    assert not same(plain.student, other.student)


def test_runs_in_one_process_leave_no_trace_on_each_other(
    make_config: Make, digits: DataSet, run: Callable[..., Result], whole: Result
) -> None:
    torch.manual_seed(12345)
    fit(make_config(seed=5, student={"width": 0.5}), data=digits)
    with pytest.raises(NonFiniteLossError):
        fit(make_config(train={"lr": 1e12}), data=digits)
    torch.rand(7)
    assert same(run().student, whole.student)


def test_noise_and_threads_of_the_caller_are_left_as_they_were(make_config: Make, digits: DataSet) -> None:
    seen: list[int] = []

    def state() -> tuple[Any, ...]:
        return (
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
        )

    torch.set_num_threads(2)
    try:
        torch.manual_seed(77)
        before = state()
        fit(make_config(terms=EVERYTHING), data=digits, on_epoch=lambda _: seen.append(torch.get_num_threads()))
        assert state() == before
        with pytest.raises(NonFiniteLossError):
            fit(make_config(train={"lr": 1e12}), data=digits)
        assert state() == before
        with pytest.raises(ZeroDivisionError):
            fit(make_config(), data=digits, on_epoch=lambda _: 1 / 0)
        assert state() == before
    finally:
        torch.set_num_threads(1)
    assert seen == [1, 1]


# Forms of the term that have dead knobs.
FORMS: list[dict[str, Any]] = [
    {"compatibility": "gap"},
    {"depth": 1},
    {"depth": 1, "blocks": 1},
    {"depth": 1, "blocks": 2, "levels": "all"},
    {"depth": 2},
    {"depth": 3},
    {"metric": "cosine"},
]


def others(field: dataclasses.Field[Any], value: Any) -> list[Any]:
    """Further values of a knob of the squeeze term."""
    choices = {
        "compatibility": ["dot", "gap"],
        "attend": ["raw", "fused"],
        "pool": ["sum", "mean"],
        "blocks": [1, 2, "all"],
        "levels": ["top", "all"],
        "metric": ["l2", "smooth_l1", "cosine"],
        "depth": [1, 2, 3],
        "decay": ["none", "cosine"],
        "off_fraction": [0.0, 0.5],
    }
    if isinstance(value, bool):
        return [not value]
    known = choices.get(field.name, [value * 2 + 1] if isinstance(value, int | float) else [])
    assert known, f"say which values {field.name} has"
    return [other for other in known if other != value]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_configurations_of_one_hash_give_bit_identical_students(
    form: dict[str, Any], make_config: Make, digits: DataSet, make_data: Make, cache_dir: Path
) -> None:
    # Two blocks per stage, so that queries of their own differ from a shared one; in teacher and student alike.
    networks = {"student": {"model": "resnet14"}, "teacher": {"model": "resnet14"}, "train": {"epochs": 1}}
    data = make_data(train=64)
    base = make_config(terms={"ce": {}, "squeeze": form}, **networks)
    squeeze = base.terms["squeeze"]
    student, dead = fit(base, data=data, cache_dir=cache_dir).student, 0
    for field in dataclasses.fields(squeeze):
        for value in others(field, getattr(squeeze, field.name)):
            config = make_config(terms={"ce": {}, "squeeze": {**form, field.name: value}}, **networks)
            if config_hash(config) == config_hash(base):
                dead += 1
                assert same(fit(config, data=data, cache_dir=cache_dir).student, student), (field.name, value)
    assert dead, "this form has no dead knob"


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (
            {"terms": {"ce": {}}},
            {"terms": {"ce": {}, "kd": {"weight": 0}, "squeeze": {"weight": 0}, "adversarial": {"weight": 0}}},
        ),
        ({}, {"teacher": {"model": "resnet56", "epochs": 99}}),
        ({}, {"train": {"milestones": [0.1], "gamma": 0.5}}),
        ({"train": {"momentum": 0, "nesterov": True}}, {"train": {"momentum": 0, "nesterov": False}}),
        (
            {"terms": {"ce": {}, "adversarial": {"loss": "hinge"}}},
            {"terms": {"ce": {}, "adversarial": {"loss": "hinge", "confusion": 0.9}}},
        ),
    ],
    ids=["weight 0", "teacher nobody asks", "steps of a cosine", "Nesterov of no momentum", "confusion of a hinge"],
)
def test_dead_knobs_outside_the_attention_do_not_change_the_student(
    one: dict[str, Any], two: dict[str, Any], make_config: Make, digits: DataSet, cache_dir: Path
) -> None:
    configs = [make_config(**change) for change in (one, two)]
    assert config_hash(configs[0]) == config_hash(configs[1])
    assert same(*[fit(config, data=digits, cache_dir=cache_dir).student for config in configs])


# --- resume


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_run_resumed_after_any_epoch_is_bit_identical_to_an_uninterrupted_one(
    epoch: int, run: Callable[..., Result], whole: Result, tmp_path: Path
) -> None:
    first = run(out_dir=tmp_path, on_epoch=stop_after(epoch))
    assert (first.stopped, len(first.history)) == (True, epoch)
    torch.rand(3)  # whatever the process did in between
    second = run(out_dir=tmp_path)
    assert (second.stopped, second.resumed_at) == (False, epoch)
    assert same(second.student, whole.student)
    assert timeless(second) == timeless(whole)


def test_a_run_stopped_after_every_epoch_is_bit_identical_to_an_uninterrupted_one(
    run: Callable[..., Result], whole: Result, tmp_path: Path
) -> None:
    for epoch in range(1, EPOCHS):
        assert run(out_dir=tmp_path, on_epoch=stop_after(epoch)).resumed_at == epoch - 1
    assert same(run(out_dir=tmp_path).student, whole.student)


def test_a_resume_reports_the_last_finished_epoch_again_and_may_be_stopped_by_it(
    run: Callable[..., Result], halfway: Path, stopped: Path
) -> None:
    reports: list[EpochReport] = []
    again = run(out_dir=stopped, on_epoch=lambda report: (reports.append(report), "stop")[1])
    assert [report.epoch for report in reports] == [2]
    assert (again.stopped, again.resumed_at, len(again.history)) == (True, 2, 2)
    assert again.history[-1] == reports[0]
    assert (stopped / checkpoint.LAST).read_bytes() == (halfway / checkpoint.LAST).read_bytes()
    reports.clear()
    run(out_dir=stopped, on_epoch=reports.append)
    assert [report.epoch for report in reports] == [2, 3, 4]


def test_resume_off_starts_anew(run: Callable[..., Result], whole: Result, stopped: Path) -> None:
    result = run(out_dir=stopped, resume=False)
    assert result.resumed_at == 0
    assert same(result.student, whole.student)


CHILD = """
import os, pathlib, pickle, signal, sys, time
from hksd.fit import fit
config, data, cache = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
"""


@pytest.fixture(scope="module")
def job(
    config: RunConfig, digits: DataSet, cache_dir: Path, whole: Result, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A file with what a child process needs to run `config`; the teacher is in the cache."""
    path = tmp_path_factory.mktemp("job") / "job.pkl"
    path.write_bytes(pickle.dumps((config, digits, cache_dir)))
    return path


def test_a_process_that_is_killed_is_resumed_bit_identically(
    child: Make, job: Path, run: Callable[..., Result], whole: Result, tmp_path: Path
) -> None:
    slowly = (
        "fit(config, data=data, cache_dir=cache, out_dir=pathlib.Path(sys.argv[2]), on_epoch=lambda _: time.sleep(0.3))"
    )
    process: subprocess.Popen[str] = child(
        CHILD + slowly,
        job,
        tmp_path / "run",
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / checkpoint.LAST).exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(0.35)  # somewhere in the second epoch
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resumed = run(out_dir=tmp_path / "run")
    assert 1 <= resumed.resumed_at < EPOCHS
    assert same(resumed.student, whole.student)
    assert timeless(resumed) == timeless(whole)


# Every run is a fork of this process, which has done nothing but import. A fork kills itself at its n-th call that
# makes something durable (fsync of a file, renaming of a file), before the call; without one it runs to the end.
KILLER = (
    CHILD
    + """
import torch
torch.optim.SGD([torch.zeros(1)], lr=1)  # imports what torch imports late, once for all forks
def run(point, out):
    count = 0
    def deadly(call):
        def wrapped(*arguments):
            nonlocal count
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)
        return wrapped
    os.fsync, pathlib.Path.replace = deadly(os.fsync), deadly(pathlib.Path.replace)
    fit(config, data=data, cache_dir=cache, out_dir=pathlib.Path(out))

point, survived = 0, False
while not survived and point < 99:
    point += 1
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run(point, f"{sys.argv[2]}/{point}")
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    survived = status == 0
    assert survived or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL), status
print(point)
"""
)


def test_a_process_killed_at_any_point_of_a_save_is_resumed_bit_identically(
    child: Make, make_config: Make, make_data: Make, cache_dir: Path, tmp_path: Path
) -> None:
    epochs, data = 3, make_data(train=96)
    config = make_config(train={"epochs": epochs})  # one term: what else there is to restore is tested above
    whole = fit(config, data=data, cache_dir=cache_dir)
    (tmp_path / "job").write_bytes(pickle.dumps((config, data, cache_dir)))
    output, errors = (process := child(KILLER, tmp_path / "job", tmp_path)).communicate(timeout=120)
    assert process.returncode == 0, errors
    points = int(output)
    assert points > 3 * epochs
    found = []
    for point in range(1, points + 1):
        reported: list[int] = []
        folder = tmp_path / str(point)
        result = fit(
            config,
            data=data,
            cache_dir=cache_dir,
            out_dir=folder,
            on_epoch=lambda report, to=reported: to.append(report.epoch),
        )  # type: ignore[misc]
        found.append(result.resumed_at)
        assert same(result.student, whole.student), point
        assert reported == list(range(max(result.resumed_at, 1), epochs + 1)), "the last finished epoch is told again"
        assert checkpoint.load_newest(folder) is not None
        assert (folder / train.RESULT_FILE).exists()
    assert found == sorted(found), "a later kill never loses more"
    assert set(found) == set(range(epochs + 1))
    assert found[-1] == epochs, "a run of a process without an accident equals ours, too"


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind.startswith("cut to"):
        content = content[: {"0": 0, "10": 10, "half": len(content) // 2, "all but one": len(content) - 1}[kind[7:]]]
    elif kind == "other file":
        content = bytearray(b"not a checkpoint at all")
    else:
        where = {
            "magic": 3,
            "checksum": len(checkpoint.MAGIC) + 5,
            "front": 120,
            "middle": len(content) // 2,
            "end": -5,
        }
        content[where[kind[8:]]] ^= 1
    path.write_bytes(content)


DAMAGE = [
    "cut to 0",
    "cut to 10",
    "cut to half",
    "cut to all but one",
    "flip in magic",
    "flip in checksum",
    "flip in front",
    "flip in middle",
    "flip in end",
    "other file",
]


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_is_taken(
    kind: str, run: Callable[..., Result], whole: Result, stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(stopped / checkpoint.LAST, kind)
    broken = (stopped / checkpoint.LAST).read_bytes()
    result = run(out_dir=stopped)
    assert result.resumed_at == 1
    assert same(result.student, whole.student)
    aside = [path for path in stopped.iterdir() if "corrupt" in path.name]
    assert [path.read_bytes() for path in aside] == [broken]
    assert str(stopped / checkpoint.LAST) in caplog.text
    assert aside[0].name in caplog.text


@pytest.mark.parametrize("kind", ["cut to half", "flip in middle"])
def test_with_both_checkpoints_damaged_the_run_starts_anew(
    kind: str, run: Callable[..., Result], whole: Result, stopped: Path
) -> None:
    for name in (checkpoint.LAST, checkpoint.PREVIOUS):
        damage(stopped / name, kind)
    result = run(out_dir=stopped)
    assert result.resumed_at == 0
    assert same(result.student, whole.student)
    assert len([path for path in stopped.iterdir() if "corrupt" in path.name]) == 2


def test_damaged_checkpoints_of_several_accidents_are_all_kept(stopped: Path) -> None:
    good = (stopped / checkpoint.LAST).read_bytes()
    for _ in range(3):
        damage(stopped / checkpoint.LAST, "flip in middle")
        assert checkpoint.load_newest(stopped) is not None
        (stopped / checkpoint.LAST).write_bytes(good)
    assert len([path for path in stopped.iterdir() if "corrupt" in path.name]) == 3


def test_every_single_flipped_bit_is_noticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"a": torch.arange(3)})
    path = tmp_path / checkpoint.LAST
    good = path.read_bytes()
    for position in [*range(200), *range(200, len(good), 37), len(good) - 1]:
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path.write_bytes(bad)
        if position == len(checkpoint.MAGIC) + 64:
            continue  # the end of the checksum's line, which holds nothing
        with pytest.raises(checkpoint.CorruptCheckpointError):
            checkpoint.read(path)


class Trap:
    """Something whose unpickling does something: it makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_reading_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"a": Trap(tmp_path / "sprung")})
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.read(tmp_path / checkpoint.LAST)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("change", "word"), [({"seed": 1}, "settings"), ({"train": {"epochs": 9}}, "settings")], ids=str
)
def test_a_checkpoint_of_another_configuration_is_an_error_that_leaves_the_folder_alone(
    change: dict[str, Any], word: str, make_config: Make, digits: DataSet, cache_dir: Path, stopped: Path
) -> None:
    before = contents(stopped)
    with pytest.raises(UserError, match=f"checkpoint of other {word}") as caught:
        fit(make_config(terms=EVERYTHING, **change), data=digits, cache_dir=cache_dir, out_dir=stopped)
    assert str(stopped) in str(caught.value)
    assert contents(stopped) == before


def test_a_checkpoint_of_other_data_is_an_error_that_leaves_the_folder_alone(
    make_config: Make, make_data: Make, digits: DataSet, tmp_path: Path
) -> None:
    fit(make_config(), data=digits, out_dir=tmp_path, on_epoch=stop_after(1))
    before = contents(tmp_path)
    with pytest.raises(UserError, match="checkpoint of other data") as caught:
        fit(make_config(), data=make_data(start=100), out_dir=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert contents(tmp_path) == before


def test_a_configuration_that_differs_in_dead_knobs_alone_resumes(
    make_config: Make, digits: DataSet, tmp_path: Path
) -> None:
    fit(make_config(), data=digits, out_dir=tmp_path, on_epoch=stop_after(1))
    other = make_config(data={"root": "elsewhere"}, train={"gamma": 0.5})
    assert fit(other, data=digits, out_dir=tmp_path).resumed_at == 1


def test_a_finished_run_is_not_trained_again(make_config: Make, digits: DataSet, tmp_path: Path) -> None:
    first = fit(make_config(), data=digits, out_dir=tmp_path)
    before = contents(tmp_path)
    reports: list[EpochReport] = []
    second = fit(make_config(), data=digits, out_dir=tmp_path, on_epoch=reports.append)
    assert reports == [first.history[-1]]
    assert (second.resumed_at, second.stopped) == (2, False)
    assert same(first.student, second.student)
    assert second.history == first.history
    after = contents(tmp_path)
    rewritten = {train.RESULT_FILE, train.WEIGHTS_FILE}
    assert {name for name in after if after[name] != before[name]} <= rewritten
    assert after.keys() == before.keys()


# --- what a run reports and leaves


def test_reports_say_what_happened_and_the_score_is_the_last_epochs(whole: Result, config: RunConfig) -> None:
    assert [report.epoch for report in whole.history] == [1, 2, 3, 4]
    assert {report.epochs for report in whole.history} == {EPOCHS}
    assert whole.val_accuracy == whole.history[-1].val_accuracy
    assert whole.config_hash == config_hash(config)
    assert whole.seconds == sum(report.seconds for report in whole.history)
    for report in whole.history:
        assert list(report.terms) == list(config.terms)
        assert set(report.diagnostics) == {"adversarial/discriminator_loss", "adversarial/discriminator_accuracy"}
        assert 0 <= report.val_accuracy <= 1
        assert 0 <= report.train_accuracy <= 1
        assert report.seconds > 0
        assert report.images_per_s > 0
        assert all(map(math.isfinite, (report.val_loss, report.train_loss, *report.terms.values())))


def test_the_loss_reported_is_the_weighted_sum_of_the_terms(
    make_config: Make, digits: DataSet, cache_dir: Path
) -> None:
    terms = {"ce": {"weight": 0.5}, "kd": {"weight": 3}, "logits": {"weight": 0.1}}
    for report in fit(make_config(terms=terms), data=digits, cache_dir=cache_dir).history:
        expected = sum(terms[name]["weight"] * value for name, value in report.terms.items())
        assert report.train_loss == pytest.approx(expected, rel=1e-5)


def test_training_learns(make_config: Make, digits: DataSet, make_data: Make) -> None:
    result = fit(make_config(student={"width": 0.5}, train={"epochs": 8, "batch_size": 32}), data=make_data(train=600))
    assert result.history[-1].train_loss < 0.7 * result.history[0].train_loss
    assert result.val_accuracy > 0.5


def test_the_student_comes_back_in_eval_mode_and_gives_the_accuracy_that_was_reported(
    make_config: Make, digits: DataSet
) -> None:
    # Augmented as strongly as can be, so that validation on augmented images would give another number.
    result = fit(make_config(data={"crop": 3, "flip": True}, train={"epochs": 3}), data=digits)
    assert not result.student.training
    images = torch.from_numpy(digits.validation.images.copy()).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        logits = result.student((images - digits.mean[0]) / digits.std[0])
    labels = torch.from_numpy(digits.validation.labels.copy())
    assert evaluate.accuracy(logits, labels) == result.val_accuracy
    assert nn.functional.cross_entropy(logits, labels).item() == pytest.approx(result.history[-1].val_loss, rel=1e-4)


def test_the_size_of_a_student_has_nothing_of_what_only_training_needs(
    whole: Result, config: RunConfig, digits: DataSet
) -> None:
    count = sum(parameter.numel() for parameter in whole.student.parameters())
    assert size_of(config.student.spec(), **digits.image_shape).params == count


def test_a_finished_run_leaves_its_configuration_weights_and_result_and_a_stopped_one_its_checkpoints(
    make_config: Make, digits: DataSet, tmp_path: Path
) -> None:
    config = make_config()
    fit(config, data=digits, out_dir=tmp_path, on_epoch=stop_after(1))
    assert {path.name for path in tmp_path.iterdir()} == {loop.CONFIG_FILE, provenance.FILE, checkpoint.LAST}
    result = fit(config, data=digits, out_dir=tmp_path)
    expected = {loop.CONFIG_FILE, provenance.FILE, train.RESULT_FILE, train.WEIGHTS_FILE}
    expected |= {checkpoint.LAST, checkpoint.PREVIOUS}
    assert {path.name for path in tmp_path.iterdir()} == expected
    assert load(tmp_path / loop.CONFIG_FILE) == config
    found = json.loads((tmp_path / train.RESULT_FILE).read_text())
    assert found["val_accuracy"] == result.val_accuracy
    assert found["params"] == sum(parameter.numel() for parameter in result.student.parameters())
    assert found["config_hash"] == config_hash(config)
    assert [report["epoch"] for report in found["history"]] == [1, 2]
    state, metadata = weights.read(tmp_path / train.WEIGHTS_FILE)
    assert all(torch.equal(state[name], value) for name, value in result.student.state_dict().items())
    assert json.loads(metadata["classes"]) == list(digits.classes)


def test_stop_at_the_last_epoch_is_the_end_and_not_a_stop(make_config: Make, digits: DataSet) -> None:
    assert not fit(make_config(), data=digits, on_epoch=stop_after(2)).stopped


def test_an_epoch_is_saved_before_it_is_reported(make_config: Make, digits: DataSet, tmp_path: Path) -> None:
    saved: list[int] = []

    def look(report: EpochReport) -> None:
        state = checkpoint.load_newest(tmp_path)
        assert state is not None
        saved.append(len(state["history"]) - report.epoch)

    fit(make_config(), data=digits, out_dir=tmp_path, on_epoch=look)
    assert saved == [0, 0]


def test_terms_that_do_not_fit_the_networks_are_told_before_anything_is_trained(
    make_config: Make, digits: DataSet, tmp_path: Path
) -> None:
    config = make_config(terms={"ce": {}, "squeeze": {"blocks": 2}})
    with pytest.raises(UserError, match="only 1 block"):
        fit(config, data=digits, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_last_batch_of_one_image_is_trained_on(make_config: Make, make_data: Make, cache_dir: Path) -> None:
    result = fit(make_config(terms=EVERYTHING), data=make_data(train=129), cache_dir=cache_dir)
    assert len(result.history) == 2


def test_a_last_batch_of_one_image_of_the_smallest_size_is_trained_on(make_config: Make, make_data: Make) -> None:
    whole = make_data(train=65)
    small = [dataclasses.replace(split, images=split.images[:, ::2, ::2]) for split in (whole.train, whole.validation)]
    data = dataclasses.replace(whole, train=small[0], validation=small[1])
    config = make_config(data={"image_size": 4, "crop": 0})
    assert len(fit(config, data=data).history) == 2


@pytest.mark.parametrize("knobs", [{}, {"warmup_epochs": 0, "off_fraction": 0.5}], ids=["warm-up", "end"])
def test_a_run_trains_on_while_the_weight_of_its_only_term_is_0(
    knobs: dict[str, Any], make_config: Make, digits: DataSet, cache_dir: Path
) -> None:
    config = make_config(terms={"adversarial": {"hidden": 8, **knobs}})
    assert len(fit(config, data=digits, cache_dir=cache_dir).history) == 2


# --- a loss that is not finite


def test_a_diverging_run_stops_at_once_and_names_epoch_step_and_every_term(
    make_config: Make, digits: DataSet, cache_dir: Path, tmp_path: Path
) -> None:
    terms = {**EVERYTHING, "adversarial": {"hidden": 8, "warmup_epochs": 0}}
    reports: list[EpochReport] = []
    with pytest.raises(
        NonFiniteLossError, match=r"epoch 1, step [2-4]: ce=.*kd=.*logits=.*squeeze=.*adversarial="
    ) as caught:
        fit(
            make_config(terms=terms, train={"lr": 1e12}),
            data=digits,
            cache_dir=cache_dir,
            out_dir=tmp_path,
            on_epoch=reports.append,
        )
    assert list(caught.value.values) == list(terms)
    assert not all(map(math.isfinite, caught.value.values.values()))
    assert not reports
    assert checkpoint.load_newest(tmp_path) is None


def test_a_run_that_breaks_in_the_last_step_of_an_epoch_is_not_reported(
    make_config: Make, digits: DataSet, tmp_path: Path
) -> None:
    reports: list[EpochReport] = []
    with pytest.raises(NonFiniteLossError, match="validation=") as caught:
        fit(
            make_config(train={"lr": 1e12, "batch_size": len(digits.train)}),
            data=digits,
            out_dir=tmp_path,
            on_epoch=reports.append,
        )
    assert (caught.value.epoch, caught.value.step) == (1, 1)
    assert "ce" in caught.value.values
    assert not reports
    assert checkpoint.load_newest(tmp_path) is None


def test_a_run_that_breaks_in_a_later_epoch_names_that_epoch_and_keeps_its_checkpoint(
    make_config: Make, digits: DataSet, tmp_path: Path
) -> None:
    config = make_config(train={"epochs": 3})
    fit(config, data=digits, out_dir=tmp_path, on_epoch=stop_after(1))
    state = checkpoint.load_newest(tmp_path)
    assert state is not None
    state["student"]["classifier.bias"].fill_(math.inf)
    checkpoint.save(tmp_path, state)
    before = contents(tmp_path)
    with pytest.raises(NonFiniteLossError, match="epoch 2, step 1: ce="):
        fit(config, data=digits, out_dir=tmp_path)
    after = contents(tmp_path)
    assert {name for name in after if after[name] != before.get(name)} == {provenance.FILE}, "a session, no state"


# --- learning rate and device


def test_the_cosine_falls_from_the_peak_to_0() -> None:
    settings = TrainConfig(epochs=10, lr=0.4)
    rates = [learning_rate(settings, progress) for progress in (0, 0.25, 0.5, 0.75, 1)]
    assert rates == pytest.approx([0.4, 0.2 * (1 + math.sqrt(0.5)), 0.2, 0.2 * (1 - math.sqrt(0.5)), 0])


def test_multistep_falls_by_its_factor_at_each_milestone() -> None:
    settings = TrainConfig(epochs=8, lr=0.4, schedule="multistep", milestones=(0.75, 0.5), gamma=0.1)
    rates = [learning_rate(settings, progress) for progress in (0, 0.499, 0.5, 0.749, 0.75, 1)]
    assert rates == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004, 0.004])


@pytest.mark.parametrize("schedule", ["cosine", "multistep"])
def test_the_optimiser_gets_the_rate_of_the_schedule_at_every_step(
    schedule: str, make_config: Make, digits: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *arguments: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    settings = {"schedule": schedule, "milestones": [0.5], "epochs": 2}
    result = fit(make_config(train=settings), data=digits)
    steps = math.ceil(len(digits.train) / 64)
    expected = [learning_rate(make_config(train=settings).train, i / (2 * steps)) for i in range(2 * steps)]
    assert rates == pytest.approx(expected)
    assert [report.lr for report in result.history] == pytest.approx([expected[steps - 1], expected[-1]])


def test_a_gpu_that_is_not_there_is_a_users_error_with_a_cure() -> None:
    with pytest.raises(UserError, match=r"cuda:99: this machine has \d+ CUDA.*auto or cpu"):
        resolve_device("cuda:99")
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_norm_of_the_gradient_is_clipped(make_config: Make, digits: DataSet) -> None:
    settings = {"epochs": 1, "momentum": 0, "weight_decay": 0, "lr": 1.0, "batch_size": len(digits.train)}
    before = fit(make_config(train={**settings, "lr": 1e-12}), data=digits).student
    after = fit(make_config(train={**settings, "clip_norm": 1e-3}), data=digits).student
    moved = [(a - b).norm() for a, b in zip(after.parameters(), before.parameters(), strict=True)]
    assert torch.stack(moved).norm().item() == pytest.approx(1e-3, rel=0.01)


# --- folders that cannot be written


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """mount(options): a file system of its own in memory; skips where that is not permitted."""
    point = tmp_path / "mounted"
    point.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command")

    def mounted(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", point], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
        return point

    yield mounted
    subprocess.run(["umount", point], capture_output=True)


def fill(folder: Path) -> None:
    """Leave no space in the file system of `folder`."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


def test_a_folder_below_a_file_is_a_users_error_before_anything_is_trained(
    make_config: Make, digits: DataSet, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    reports: list[EpochReport] = []
    with pytest.raises(UserError, match="cannot be written") as caught:
        fit(make_config(), data=digits, out_dir=tmp_path / "file" / "run", on_epoch=reports.append)
    assert str(tmp_path / "file" / "run") in str(caught.value)
    assert not reports


def test_a_read_only_folder_is_a_users_error(make_config: Make, digits: DataSet, mount: Callable[[str], Path]) -> None:
    folder = mount("ro")
    for out_dir in (folder, folder / "run"):
        with pytest.raises(UserError, match="cannot be written: Read-only") as caught:
            fit(make_config(), data=digits, out_dir=out_dir)
        assert str(out_dir) in str(caught.value)


def test_a_disk_that_is_full_from_the_start_is_a_users_error(
    make_config: Make, digits: DataSet, mount: Callable[[str], Path]
) -> None:
    folder = mount("size=64k")
    fill(folder)
    with pytest.raises(UserError, match="No space left"):
        fit(make_config(), data=digits, out_dir=folder)


def test_a_disk_that_fills_up_is_a_run_error_and_the_earlier_checkpoint_resumes(
    run: Callable[..., Result], whole: Result, mount: Callable[[str], Path]
) -> None:
    folder = mount("size=4m")
    with pytest.raises(RunError, match="No space left") as caught:
        run(out_dir=folder, on_epoch=lambda report: fill(folder) if report.epoch == 2 else None)
    assert str(folder / checkpoint.LAST) in str(caught.value)
    state = checkpoint.load_newest(folder)
    assert state is not None
    assert len(state["history"]) == 2
    assert not list(folder.glob("*.tmp")) + list(folder.glob(".*.tmp"))
    (folder / "filler").unlink()
    resumed = run(out_dir=folder)
    assert resumed.resumed_at == 2
    assert same(resumed.student, whole.student)


def test_a_disk_that_is_full_at_the_very_end_is_an_error_of_ours_that_names_the_file(
    make_config: Make, digits: DataSet, mount: Callable[[str], Path]
) -> None:
    folder = mount("size=4m")
    with pytest.raises((RunError, UserError), match="No space left") as caught:
        fit(
            make_config(),
            data=digits,
            out_dir=folder,
            on_epoch=lambda report: fill(folder) if report.epoch == 2 else None,
        )
    assert str(folder) in str(caught.value)
    (folder / "filler").unlink()
    assert fit(make_config(), data=digits, out_dir=folder).resumed_at == 2
    assert (folder / train.WEIGHTS_FILE).exists()


# --- views of the images


def test_views_are_a_pure_function_of_seed_epoch_and_index() -> None:
    index = np.arange(1000)
    bits = views(3, 7, index)
    assert np.array_equal(bits, views(3, 7, index))
    shuffled = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(views(3, 7, shuffled), bits[shuffled])
    assert np.array_equal(views(3, 7, index[500:501]), bits[500:501])
    for other in (views(4, 7, index), views(3, 8, index), views(3, 7, index + 1000), views(7, 3, index)):
        assert not np.any(bits == other)


def test_views_are_the_finaliser_of_splitmix64_over_epoch_and_index() -> None:
    # The same numbers on every machine and in every release: what a teacher said about a view may be stored.
    def one(seed: int, epoch: int, index: int) -> int:
        bits, full = seed, 2**64
        for part in (epoch, index):
            bits = ((bits + 0x9E3779B97F4A7C15) % full) ^ (part * 0xD1342543DE82EF95 % full)
            bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % full
            bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % full
            bits ^= bits >> 31
        return bits

    for seed, epoch in ((0, 0), (1, 0), (0, 199), (2**63 - 1, 7)):
        index = np.array([0, 1, 59_999, 2**40])
        assert views(seed, epoch, index).tolist() == [one(seed, epoch, int(i)) for i in index]


@pytest.mark.parametrize("span", [3, 9, 2])
@pytest.mark.parametrize("shift", [0, 8, 32])
def test_views_are_about_uniform_and_independent_of_each_other(span: int, shift: int) -> None:
    index, parts = np.arange(60_000), []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        part = ((views(seed, epoch, index) >> np.uint64(shift)) % np.uint64(span)).astype(int)
        share = np.bincount(part, minlength=span) / len(index)
        assert np.abs(share - 1 / span).max() < 0.01
        parts.append(part)
    pairs = [(0, 1), (0, 2), (1, 2)]
    for one, two in pairs:
        assert (parts[one] == parts[two]).mean() == pytest.approx(1 / span, abs=0.01)
    assert (parts[0][1:] == parts[0][:-1]).mean() == pytest.approx(1 / span, abs=0.01)


@pytest.fixture(scope="module")
def marked() -> DataSet:
    """200 images of which every pixel is another number and every label another image: a view can be told exactly."""
    images = np.stack([np.random.default_rng(i).permutation(255)[:30].reshape(5, 6, 1) + 1 for i in range(200)])
    split = Split(images.astype(np.uint8), np.arange(200), np.arange(200) + 1000)
    return DataSet("marked", ("a",), split, split, (0.5,), (0.25,), "")


def batches(data: DataSet, crop: int = 0, flip: bool = False, seed: int = 0) -> Batches:
    return Batches(data.train, data, crop=crop, flip=flip, seed=seed, device=torch.device("cpu"))


def by_label(found: Iterator[Any]) -> dict[int, Tensor]:
    """Raw pixels (H, W) of every image, by its label."""
    pairs = [
        (label, image) for batch in found for label, image in zip(batch.labels.tolist(), batch.images, strict=True)
    ]
    images = {label: ((image[0] * 0.25 + 0.5) * 255).round() for label, image in pairs}
    assert len(images) == len(pairs), "an image came twice"
    return images


def test_plain_images_are_all_images_in_order_normalised(marked: DataSet) -> None:
    for crop in (0, 2):
        found = list(batches(marked, crop=crop, flip=True).plain(64))
        assert torch.cat([batch.labels for batch in found]).tolist() == list(range(200))
        expected = (torch.from_numpy(marked.train.images.copy()).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
        torch.testing.assert_close(torch.cat([batch.images for batch in found]), expected, rtol=1e-5, atol=1e-5)
        assert [len(batch.labels) for batch in found] == [64, 64, 64, 8]


def test_augmented_images_without_crop_and_flip_are_the_plain_ones_in_another_order(marked: DataSet) -> None:
    source = batches(marked)
    augmented = [label for batch in source.augmented(0, 64, 0) for label in batch.labels.tolist()]
    assert sorted(augmented) == list(range(200))
    assert augmented != sorted(augmented)
    one, two = by_label(source.plain(64)), by_label(source.augmented(0, 64, 0))
    assert all(torch.equal(one[label], two[label]) for label in one)


def locate(view: Tensor, image: np.ndarray, crop: int) -> tuple[int, int, bool]:
    """Shift and flip of a view of an image (H, W) that was padded with zeros."""
    padded = torch.from_numpy(np.pad(image.astype(np.float32), crop))
    height, width = view.shape
    fits = [
        (dy, dx, flip)
        for dy in range(2 * crop + 1)
        for dx in range(2 * crop + 1)
        for flip in (False, True)
        if torch.equal(padded[dy : dy + height, dx : dx + width], view.flip(1) if flip else view)
    ]
    assert len(fits) == 1
    return fits[0]


def placed(data: DataSet, epoch: int, order: int = 0, **knobs: Any) -> dict[int, tuple[int, int, bool]]:
    views_ = by_label(batches(data, **knobs).augmented(epoch, 64, order))
    assert sorted(views_) == list(range(200))
    return {label: locate(view, data.train.images[label, :, :, 0], knobs["crop"]) for label, view in views_.items()}


def test_every_augmented_image_is_a_shift_and_a_flip_of_its_original_and_all_of_them_occur(marked: DataSet) -> None:
    found = Counter(placed(marked, 0, crop=1, flip=True).values())
    assert len(found) == 18
    assert max(found.values()) < 30
    flips = sum(count for (_, _, flip), count in found.items() if flip)
    assert 70 < flips < 130
    assert not any(flip for _, _, flip in placed(marked, 0, crop=1, flip=False).values())


def test_views_change_with_epoch_and_seed_and_not_with_order_or_batch(marked: DataSet) -> None:
    base = placed(marked, 3, crop=2, flip=True, seed=1)
    assert placed(marked, 3, crop=2, flip=True, seed=1, order=9) == base
    for other in (placed(marked, 4, crop=2, flip=True, seed=1), placed(marked, 3, crop=2, flip=True, seed=2)):
        assert sum(other[label] == base[label] for label in base) < 20
    few = by_label(batches(marked, crop=2, flip=True, seed=1).augmented(3, 7, 0))
    assert {label: locate(view, marked.train.images[label, :, :, 0], 2) for label, view in few.items()} == base


def test_the_order_of_the_images_changes_with_epoch_and_order_seed(marked: DataSet) -> None:
    source = batches(marked)
    orders = [
        [label for batch in source.augmented(epoch, 64, seed) for label in batch.labels.tolist()]
        for epoch, seed in ((0, 0), (1, 0), (0, 1), (0, 0))
    ]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_batches_do_not_change_the_images_they_were_given(marked: DataSet) -> None:
    images = marked.train.images.copy()
    images.flags.writeable = False
    source = Batches(
        dataclasses.replace(marked.train, images=images), marked, crop=2, flip=True, seed=0, device=torch.device("cpu")
    )
    for batch in source.augmented(0, 64, 0):
        batch.images.zero_()
    for batch in source.plain(64):
        batch.images.zero_()
    assert np.array_equal(images, marked.train.images)
    assert all(batch.images.abs().sum() > 0 for batch in source.plain(64))
