"""Changes of a run's schedule on its way: what they mean, how they are checked, and that a fork repeats them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hksd.config.run import RunConfig, config_hash, dump, from_tree, history_hash
from hksd.data import DataSet
from hksd.errors import ConfigError, UserError
from hksd.fit import fit
from hksd.run import checkpoint
from hksd.run.outcome import Result

Make = Callable[..., Any]
EPOCHS = 4
TERMS: dict[str, Any] = {"ce": {}, "kd": {}, "adversarial": {"hidden": 8, "warmup_epochs": 0}}
CHANGES: list[dict[str, Any]] = [
    {"epoch": 1, "set": {"train.lr": 0.2, "terms.kd.weight": 3.0}},
    {"epoch": 2, "set": {"train.momentum": 0.5, "train.weight_decay": 0.0, "terms.adversarial.weight": 0.0}},
    {"epoch": 3, "set": {"train.lr": 0.01}},
]


def same(one: Result, two: Result) -> bool:
    first, second = one.student.state_dict(), two.student.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def make(make_tree: Make) -> Callable[..., RunConfig]:
    """make(changes): the run with these changes."""
    tree = make_tree(terms=TERMS, train={"epochs": EPOCHS}, data={"flip": True})
    return lambda changes: from_tree({**tree, "changes": changes})


@pytest.fixture(scope="module")
def run(make: Make, digits: DataSet, cache_dir: Path) -> Callable[..., Result]:
    """run(changes, **arguments of fit)."""
    return lambda changes, **arguments: fit(make(changes), data=digits, cache_dir=cache_dir, **arguments)


@pytest.fixture(scope="module")
def whole(run: Make) -> Result:
    """The run with all changes, from its start to its end."""
    result: Result = run(CHANGES)
    return result


def test_a_run_without_changes_has_the_hash_that_it_had_before_there_were_any(make_tree: Make) -> None:
    tree = make_tree(terms={"ce": {}, "kd": {"temperature": 2.0}})
    assert config_hash(from_tree(tree)) == config_hash(from_tree({**tree, "changes": []})) == "34a262af41eb0032"


def test_changes_are_part_of_dump_and_hash(make: Make) -> None:
    config = make(CHANGES)
    assert from_tree(dump(config)) == config
    assert dump(config)["changes"] == CHANGES
    assert len({config_hash(make(CHANGES[:count])) for count in range(4)}) == 4


def test_what_holds_after_an_epoch_is_the_sum_of_the_changes_so_far(make: Make) -> None:
    config = make(CHANGES)
    lrs = [config.at(epoch).train.lr for epoch in range(EPOCHS)]
    assert lrs == [config.train.lr, 0.2, 0.2, 0.01]
    assert [config.at(epoch).train.momentum for epoch in range(EPOCHS)] == [0.9, 0.9, 0.5, 0.5]
    assert [config.at(epoch).terms["kd"].weight for epoch in range(EPOCHS)] == [1.0, 3.0, 3.0, 3.0]
    assert list(config.at(2).terms.active()) == ["ce", "kd"]
    assert config.at(3).changes == ()


def test_only_changes_up_to_an_epoch_are_part_of_its_history(make: Make) -> None:
    config = make(CHANGES)
    for epoch, count in ((0, 0), (1, 0), (2, 1), (3, 2), (4, 3)):
        assert history_hash(config, epoch) == config_hash(make(CHANGES[:count])), epoch


def test_the_learning_rate_follows_its_schedule_from_the_new_peak(make: Make, whole: Result) -> None:
    steps = 4
    for report, peak in zip(whole.history, (0.05, 0.2, 0.2, 0.01), strict=True):
        share = (report.epoch - 1 / steps) / EPOCHS
        assert report.lr == pytest.approx(0.5 * peak * (1 + math.cos(math.pi * share)))


def test_a_change_makes_a_difference_from_its_epoch_on_and_not_before(run: Make, whole: Result) -> None:
    for count, change in enumerate(CHANGES):
        before = run(CHANGES[:count])
        equal = [one.train_loss == two.train_loss for one, two in zip(before.history, whole.history, strict=True)]
        assert equal == [epoch < change["epoch"] for epoch in range(EPOCHS)]


def test_a_term_whose_weight_becomes_0_is_gone_with_its_own_training(whole: Result) -> None:
    assert ["adversarial" in report.terms for report in whole.history] == [True, True, False, False]
    assert [bool(report.diagnostics) for report in whole.history] == [True, True, False, False]


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_fork_from_a_kept_checkpoint_equals_the_run_from_its_start(
    epoch: int, run: Make, whole: Result, tmp_path: Path
) -> None:
    parent, fork = tmp_path / "parent", tmp_path / "fork"
    run(CHANGES[: epoch - 1], out_dir=parent, keep={epoch})
    assert [path.name for path in parent.glob("epoch-*")] == [f"epoch-{epoch}.ckpt"]
    fork.mkdir()
    shutil.copy(checkpoint.kept(parent, epoch), fork / checkpoint.LAST)
    result = run(CHANGES, out_dir=fork)
    assert result.resumed_at == epoch
    assert same(result, whole)
    assert result.config_hash == whole.config_hash


def test_a_process_that_died_before_it_kept_a_checkpoint_keeps_it_when_it_is_resumed(run: Make, tmp_path: Path) -> None:
    run([], out_dir=tmp_path, on_epoch=lambda report: "stop" if report.epoch == 2 else None)
    last = (tmp_path / checkpoint.LAST).read_bytes()
    run([], out_dir=tmp_path, keep={2})
    assert checkpoint.kept(tmp_path, 2).read_bytes() == last


def test_a_stop_inside_a_changed_epoch_is_resumed_bit_identically(run: Make, whole: Result, tmp_path: Path) -> None:
    for session in range(99):
        asked = iter(range(3 + session % 3))
        result = run(CHANGES, out_dir=tmp_path, should_stop=lambda asked=asked: next(asked, None) is None)
        if not result.stopped:
            break
    assert same(result, whole)


def test_a_checkpoint_with_another_past_is_no_start(run: Make, tmp_path: Path) -> None:
    run(CHANGES[:1], out_dir=tmp_path, on_epoch=lambda report: "stop" if report.epoch == 2 else None)
    with pytest.raises(UserError, match="checkpoint of other settings"):
        run([], out_dir=tmp_path)
    with pytest.raises(UserError, match="checkpoint of other settings"):
        run([{"epoch": 1, "set": {"train.lr": 0.3}}], out_dir=tmp_path)
    assert run(CHANGES, out_dir=tmp_path).resumed_at == 2


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ([{"epoch": 0, "set": {"train.lr": 1}}], "changes.0.epoch", "at least 1"),
        ([{"epoch": 4, "set": {"train.lr": 1}}], "", "changes[0].epoch: 4 is not inside the run (allowed: 1 to 3)"),
        ([{"epoch": 2, "set": {"train.lr": 1}}] * 2, "", "changes[1].epoch: 2 does not come after 2"),
        ([{"epoch": 1, "set": {"train.lrr": 1}}], "changes.0.set", "did you mean 'train.lr'"),
        ([{"epoch": 1, "set": {"train.epochs": 9}}], "changes.0.set", "what can: train.lr, train.momentum"),
        ([{"epoch": 1, "set": {"train.lr": 0}}], "changes.0.set.train.lr", "at least 1e-12"),
        ([{"epoch": 1, "set": {"train.momentum": 1}}], "changes.0.set.train.momentum", "less than 1"),
        ([{"epoch": 1, "set": {"terms.kd.weight": math.nan}}], "changes.0.set.terms.kd.weight", "finite"),
        ([{"epoch": 1, "set": {"terms.kd.weight": -1}}], "changes.0.set.terms.kd.weight", "at least 0"),
        ([{"epoch": 1, "set": {"terms.logits.weight": 1}}], "", "terms.logits.weight: the run has no such term"),
        ([{"epoch": 1, "set": {}}], "changes.0", "set is empty"),
        ([{"epoch": 1}], "changes.0.set", "required"),
        ([{"epoch": 1, "set": [1]}], "changes.0.set", ""),
        ({"epoch": 1}, "changes", "list"),
        ([{"epoch": 1, "set": {f"terms.{name}.weight": 0 for name in TERMS}}], "", "changes[0]: with these values"),
    ],
)
def test_faults_are_told_with_their_place(changes: Any, path: str, message: str, make: Make) -> None:
    with pytest.raises(ConfigError) as caught:
        make(changes)
    assert path in {".".join(map(str, problem.path)) for problem in caught.value.problems}
    assert message in str(caught.value)
