"""The teacher's knowledge of views: the same as a teacher at work, computed once, and safe on a bad disk."""

from __future__ import annotations

import dataclasses
import logging
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hksd import data as datasets
from hksd.config.run import RunConfig, config_hash, dump_yaml
from hksd.data import DataSet
from hksd.data.augment import Batch, Batches, batches_of
from hksd.device import precision
from hksd.errors import UserError
from hksd.fit import fit
from hksd.run import loop
from hksd.run.outcome import Result
from hksd.teacher import views
from hksd.teacher.knowledge import Live, Stored, cost
from hksd.teacher.plan import knowledge_of
from hksd.teacher.prepare import prepare
from hksd.teacher.teacher import Teacher

Make = Callable[..., Any]
CPU = torch.device("cpu")
FLOAT32 = precision.resolve("float32", CPU)
TERMS: dict[str, Any] = {"ce": {}, "kd": {}, "squeeze": {"depth": 3}, "attention_transfer": {}, "fsp": {}, "crd": {}}


@pytest.fixture(scope="module")
def config(make_config: Make) -> RunConfig:
    found: RunConfig = make_config(terms=TERMS, train={"precision": "float32"})
    return found


@pytest.fixture(scope="module")
def teacher(config: RunConfig, digits: DataSet, cache_dir: Path) -> Teacher:
    return prepare(config, digits, cache_dir=cache_dir)


@pytest.fixture(scope="module")
def batches(config: RunConfig, digits: DataSet) -> Batches:
    return batches_of(digits.train, digits, config.data, CPU, augment=True)


def stored(
    config: RunConfig, data: DataSet, teacher: Teacher, folder: Path | None = None, *, keep: bool = True
) -> Stored:
    source = knowledge_of(config, data, teacher, FLOAT32, folder=folder, shared=config if keep else None)
    assert isinstance(source, Stored)
    return source


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def weights(result: Result) -> dict[str, torch.Tensor]:
    return dict(result.student.state_dict())


def same(one: Result, other: Result) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first) and [
        dataclasses.replace(report, seconds=0, images_per_s=0) for report in one.history
    ] == [dataclasses.replace(report, seconds=0, images_per_s=0) for report in other.history]


class Counting:
    """Counts what a teacher is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.images = 0
        ask = Teacher.__call__

        def count(teacher: Teacher, images: torch.Tensor, needs: frozenset[str]) -> Any:
            self.images += len(images)
            return ask(teacher, images, needs)

        monkeypatch.setattr(Teacher, "__call__", count)


def test_stored_knowledge_is_what_a_teacher_at_work_says_up_to_half_precision(
    config: RunConfig, digits: DataSet, teacher: Teacher, batches: Batches
) -> None:
    source, live = stored(config, digits, teacher), Live(teacher, config.terms.teacher_needs, FLOAT32)
    for epoch in (0, 1):
        source.begin(epoch, batches)
        for batch in batches.augmented(epoch, 50, 7):
            kept, said = source.known(batch), live.known(batch)
            pairs = [(kept.logits, said.logits), (kept.embedding, said.embedding)]
            for level, goals in zip(kept.squeezed, said.squeezed, strict=True):
                pairs += list(zip(level, goals, strict=True))
            for mine, goal in pairs:
                assert mine.dtype == torch.float32
                torch.testing.assert_close(mine, goal, rtol=2e-3, atol=2e-3)


def test_a_term_has_the_same_value_from_its_digest_as_from_the_maps(
    config: RunConfig, digits: DataSet, teacher: Teacher, batches: Batches, make_config: Make
) -> None:
    for name in ("attention_transfer", "fsp"):
        alone = make_config(terms={"ce": {}, name: {}}, train={"precision": "float32"})
        shapes = teacher.model.shapes
        term = alone.terms[name].build(shapes, shapes)
        source = stored(alone, digits, teacher)
        source.begin(0, batches)
        batch = next(batches.augmented(0, 40, 0))
        kept, said = source.known(batch), teacher(batch.images, frozenset({"stages"}))
        assert not kept.stages
        other = teacher(batch.images.roll(1, 0), frozenset({"stages"}))
        value, goal = term(other, kept, batch.labels), term(other, said, batch.labels)
        assert float(goal) > 0
        torch.testing.assert_close(value, goal, rtol=2e-3, atol=0)


def test_a_trained_student_is_equal_to_the_bit_whether_views_are_kept_or_not_and_whoever_computed_them(
    config: RunConfig, digits: DataSet, teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dataclasses.replace(config, terms=type(config.terms)({k: config.terms[k] for k in ("ce", "kd", "squeeze")}))
    alone = fit(run, data=digits, teacher=teacher)
    counting = Counting(monkeypatch)
    first = fit(run, data=digits, teacher=teacher, cache_dir=tmp_path, shared=config)
    asked = counting.images
    second = fit(run, data=digits, teacher=teacher, cache_dir=tmp_path, shared=config)
    reader = fit(run, data=digits, teacher=teacher, cache_dir=tmp_path)
    assert asked >= 2 * len(digits.train)
    assert counting.images == asked  # later runs ask the teacher nothing
    assert same(alone, first)
    assert same(alone, second)
    assert same(alone, reader)


def test_a_live_teacher_leads_to_nearly_the_same_losses(config: RunConfig, digits: DataSet, teacher: Teacher) -> None:
    live = dataclasses.replace(config, train=dataclasses.replace(config.train, knowledge="live"))
    ours, theirs = (fit(run, data=digits, teacher=teacher) for run in (config, live))
    first, second = ours.history[0], theirs.history[0]
    for name, value in first.terms.items():
        assert value == pytest.approx(second.terms[name], rel=0.02), name


def test_a_run_that_stands_alone_leaves_no_views_behind_unless_it_is_told_to(
    config: RunConfig, digits: DataSet, teacher: Teacher, tmp_path: Path
) -> None:
    fit(config, data=digits, teacher=teacher, cache_dir=tmp_path)
    assert not kept(tmp_path)
    told = dataclasses.replace(config, train=dataclasses.replace(config.train, knowledge="cached"))
    fit(told, data=digits, teacher=teacher, cache_dir=tmp_path)
    assert {path.name.split(".")[0] for path in kept(tmp_path)} == {"0000", "0001"}


def test_a_run_without_squeezed_vectors_keeps_them_for_the_runs_that_share_its_views(
    make_config: Make, digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, middle = (make_config(terms=terms) for terms in ({"ce": {}, "kd": {}}, {"ce": {}, "kd": {}, "squeeze": {}}))
    fit(plain, data=digits, cache_dir=tmp_path, shared=middle)
    counting = Counting(monkeypatch)
    fit(middle, data=digits, cache_dir=tmp_path, shared=middle)
    assert counting.images == 0


def test_views_come_again_after_so_many_epochs_and_no_view_is_computed_twice(
    make_config: Make, digits: DataSet, teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_config(terms={"ce": {}, "kd": {}}, train={"views": 1, "epochs": 3})
    counting = Counting(monkeypatch)
    fit(run, data=digits, teacher=teacher, cache_dir=tmp_path, shared=run)
    assert counting.images == len(digits.train)
    assert {path.name.split(".")[0] for path in kept(tmp_path)} == {"0000"}


def test_the_student_sees_the_view_that_the_teacher_saw(config: RunConfig, batches: Batches, digits: DataSet) -> None:
    ordered = torch.cat(list(batches.ordered(3, 50)))
    assert len(ordered) == len(digits.train)
    for batch in batches.augmented(8, 32, 1, view=3):
        assert batch.index is not None
        assert torch.equal(batch.images, ordered[batch.index])
    assert not torch.equal(ordered, torch.cat(list(batches.ordered(4, 50))))


def test_a_run_trains_on_the_view_whose_knowledge_it_reads(
    make_config: Make, digits: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, seen = loop._Loop.look, []

    def spy(self: Any, batch: Batch, progress: float) -> Any:
        seen.append((batch.index, batch.images))
        return look(self, batch, progress)

    monkeypatch.setattr(loop._Loop, "look", spy)
    for count, again in ((1, True), (None, False)):
        seen.clear()
        fit(make_config(train={"views": count, "epochs": 2}), data=digits)
        half = len(seen) // 2
        first, second = (
            torch.cat([images for _, images in part])[torch.cat([index for index, _ in part]).argsort()]
            for part in (seen[:half], seen[half:])
        )
        assert torch.equal(first, second) == again


def test_a_resumed_run_ends_with_the_same_bits(
    config: RunConfig, digits: DataSet, teacher: Teacher, tmp_path: Path
) -> None:
    run = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=3))
    whole = fit(run, data=digits, teacher=teacher)
    fit(run, data=digits, teacher=teacher, out_dir=tmp_path, on_epoch=lambda r: "stop" if r.epoch == 2 else None)
    rest = fit(run, data=digits, teacher=teacher, out_dir=tmp_path)
    assert rest.resumed_at == 2
    assert same(whole, rest)


@pytest.mark.parametrize(
    ("terms", "sections", "reason"),
    [
        ({"ce": {}, "fitnet": {}}, {}, "terms.fitnet reads whole maps"),
        ({"kd": {}}, {"data_free": {}}, "data_free trains on generated images"),
        ({"ce": {}, "kd": {}}, {"robust": {"teacher_view": "attacked"}}, "robust.teacher_view attacked"),
    ],
    ids=["fitnet", "data_free", "robust"],
)
def test_what_no_view_can_answer_keeps_the_teacher_at_work_and_cannot_be_forced(
    make_config: Make, digits: DataSet, teacher: Teacher, terms: Any, sections: Any, reason: str
) -> None:
    run = make_config(terms=terms, **sections)
    source = knowledge_of(run, digits, teacher, FLOAT32)
    assert not isinstance(source, Stored)
    assert any(reason in why for why in source.why)
    forced = dataclasses.replace(run, train=dataclasses.replace(run.train, knowledge="cached"))
    with pytest.raises(UserError, match=f"train.knowledge=cached, but .*{reason}.*set train.knowledge to live or auto"):
        knowledge_of(forced, digits, teacher, FLOAT32)


def test_attention_maps_that_would_have_to_shrink_for_the_student_are_not_stored(make_config: Make) -> None:
    term = make_config(terms={"ce": {}, "attention_transfer": {}}).terms["attention_transfer"]
    assert term.digest([(8, 8), (4, 4)], [(8, 8), (4, 4)]) is not None
    assert term.digest([(16, 16), (4, 4)], [(8, 8), (4, 4)]) is not None
    assert term.digest([(8, 8), (2, 2)], [(8, 8), (4, 4)]) is None


def test_what_changes_numbers_changes_the_hash_and_a_view_for_every_epoch_is_the_default(config: RunConfig) -> None:
    def changed(**train: Any) -> str:
        return config_hash(dataclasses.replace(config, train=dataclasses.replace(config.train, **train)))

    epochs = config.train.epochs
    assert changed() == changed(views=epochs) == changed(views=epochs + 5)
    assert len({changed(), changed(knowledge="live"), changed(views=1), changed(precision="bfloat16")}) == 4


def test_numbers_beyond_half_precision_are_kept_in_single_precision(
    config: RunConfig, digits: DataSet, teacher: Teacher, batches: Batches, tmp_path: Path
) -> None:
    source = stored(config, digits, teacher, tmp_path)
    source.fields = {"logits": lambda out: [out.logits * 1e7], "embedding": lambda out: [out.embedding]}
    found = source.get(0, batches)
    assert found["logits"].values.dtype == torch.float32
    assert found["embedding"].values.dtype == torch.float16
    assert torch.isfinite(found["logits"].values).all()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _foreign(path: Path) -> None:
    path.write_bytes(b"not a view at all" * 50)


def _other_version(path: Path) -> None:
    save_file({"values": torch.zeros(240, 10)}, path, {"format": "hksd view 0"})


@pytest.mark.parametrize("damage", [_cut, _flip, _empty, _foreign, _other_version])
def test_a_damaged_view_or_one_of_another_version_is_computed_again_with_a_warning(
    config: RunConfig,
    digits: DataSet,
    teacher: Teacher,
    batches: Batches,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    whole = stored(config, digits, teacher, tmp_path).get(0, batches)["logits"].values.clone()
    hurt = next(path for path in kept(tmp_path) if ".logits." in path.name)
    damage(hurt)
    again = stored(config, digits, teacher, tmp_path).get(0, batches)
    assert torch.equal(whole, again["logits"].values)
    assert str(hurt) in caplog.text
    assert "computed again" in caplog.text
    caplog.clear()
    stored(config, digits, teacher, tmp_path).get(0, batches)
    assert not caplog.text


def test_a_folder_that_cannot_be_written_costs_time_and_a_warning_but_no_result(
    config: RunConfig, digits: DataSet, teacher: Teacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / teacher.key).write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        result = fit(config, data=digits, teacher=teacher, cache_dir=tmp_path, shared=config)
    assert "the teacher's knowledge cannot be kept" in caplog.text
    assert caplog.text.count("cannot be kept") == 1
    assert same(result, fit(config, data=digits, teacher=teacher))


def test_a_full_disk_costs_time_and_a_warning_but_no_result(
    config: RunConfig,
    digits: DataSet,
    teacher: Teacher,
    tmp_path: Path,
    full_disk: Callable[[int], AbstractContextManager[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with full_disk(4096):
        result = fit(config, data=digits, teacher=teacher, cache_dir=tmp_path, shared=config)
    assert "the disk is full" in caplog.text
    assert not kept(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
    assert same(result, fit(config, data=digits, teacher=teacher))


BUILD = """
import os, sys, time, torch
from pathlib import Path
from hksd import data as datasets
from hksd.config.run import load
from hksd.device import precision
from hksd.data.augment import batches_of
from hksd.teacher.plan import knowledge_of
from hksd.teacher.prepare import prepare
from hksd.teacher.teacher import Teacher
config = load(sys.argv[1])
data = datasets.load(config.data)
teacher = prepare(config, data, cache_dir=Path(sys.argv[2]))
cpu = torch.device("cpu")
asked, ask = [0], Teacher.__call__
def count(self, images, needs):
    asked[0] += len(images)
    time.sleep(float(sys.argv[4]))
    return ask(self, images, needs)
Teacher.__call__ = count
numbers = precision.resolve("float32", cpu)
source = knowledge_of(config, data, teacher, numbers, folder=Path(sys.argv[3]), shared=config)
batches = batches_of(data.train, data, config.data, cpu, augment=True)
processes = [os.fork() for _ in range(int(sys.argv[5]))]  # each of them does the same
os.write(1, b"ready\\n")  # at once: others write there too
for view in range(config.views()):
    source.get(view, batches)
os.write(1, f"{asked[0]}\\n".encode())
if 0 in processes:
    os._exit(0)
for process in processes:
    os.waitpid(process, 0)
"""


@pytest.fixture
def build(
    child: Callable[..., subprocess.Popen[str]], make_config: Make, cache_dir: Path, tmp_path: Path
) -> Callable[..., subprocess.Popen[str]]:
    """build(pause=0.0, forks=0): a process that builds all views of a run, and so do its forks at the same time.

    It pauses before each batch of the teacher, which is in the cache.
    """
    config = make_config(terms={"ce": {}, "kd": {}}, data={"validation": 0.8}, train={"epochs": 3})
    prepare(config, datasets.load(config.data), cache_dir=cache_dir)
    (tmp_path / "run.yaml").write_text(dump_yaml(config))
    return lambda pause=0.0, forks=0: child(BUILD, tmp_path / "run.yaml", cache_dir, tmp_path / "views", pause, forks)


def test_two_processes_build_every_view_once_between_them(build: Make, tmp_path: Path) -> None:
    asked = [int(word) for word in build(0.05, forks=1).communicate(timeout=120)[0].split() if word != "ready"]
    assert len(asked) == 2
    assert sum(asked) == 3 * 288
    assert len(kept(tmp_path / "views")) == 3


def test_a_builder_that_is_killed_leaves_neither_a_lock_nor_half_a_view(build: Make, tmp_path: Path) -> None:
    victim = build(0.3)
    assert victim.stdout.readline() == "ready\n"
    while not list((tmp_path / "views").rglob("*.lock")):
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert not kept(tmp_path / "views")
    leftover = next((tmp_path / "views").rglob("0000.lock")).with_name(".0000.logits.safetensors.1.tmp")
    leftover.write_bytes(b"half")
    out, errors = build().communicate(timeout=120)
    assert int(out.split()[-1]) == 3 * 288, errors
    assert not leftover.exists()


def test_views_leave_room_on_the_disk_for_everything_else(
    config: RunConfig,
    digits: DataSet,
    teacher: Teacher,
    batches: Batches,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = stored(config, digits, teacher, tmp_path)
    assert cost(source, batches).fits > source.count
    monkeypatch.setattr(views, "RESERVE", 1 << 60)  # more than any disk has
    tight = cost(source, batches)
    assert tight.fits == 0
    assert "the disk has room for 0" in str(tight)
    source.get(0, batches)
    assert "of the disk free" in caplog.text
    assert not kept(tmp_path)


def test_a_disk_that_does_not_give_back_what_it_took_ends_in_a_warning_not_in_a_loop(
    config: RunConfig,
    digits: DataSet,
    teacher: Teacher,
    batches: Batches,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write = views.write_atomically
    monkeypatch.setattr(views, "write_atomically", lambda path, content: write(path, content[:-9]))
    found = stored(config, digits, teacher, tmp_path).get(0, batches)
    assert "does not read back" in caplog.text
    assert len(found["logits"].values) == len(digits.train)
