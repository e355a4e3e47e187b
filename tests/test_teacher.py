"""The teacher stage: trained once for everybody, loaded with clear errors, never touched by a student."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hksd import models
from hksd.config.run import RunConfig
from hksd.data import DataSet
from hksd.errors import NonFiniteLossError, RunError, UserError
from hksd.fit import fit
from hksd.models import weights
from hksd.run import checkpoint
from hksd.teacher.prepare import prepare
from hksd.teacher.teacher import Teacher

Make = Callable[..., Any]
SQUEEZE: dict[str, Any] = {"ce": {}, "squeeze": {}}
TEACHER = {"model": "resnet8", "width": 0.25, "epochs": 2}


def same(one: nn.Module | None, two: nn.Module | None) -> bool:
    assert one is not None
    assert two is not None
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Progress:
    """Records what was trained."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []

    def __call__(self, what: str, epoch: int, epochs: int, accuracy: float) -> None:
        assert 0 <= accuracy <= 1
        self.steps.append((what, epoch, epochs))


@pytest.fixture(scope="module")
def filled(make_config: Make, digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Teacher]:
    """A cache with one teacher and its estimators, and that teacher; the folder is to be copied, not used."""
    folder = tmp_path_factory.mktemp("cache")
    return folder, prepare(make_config(terms=SQUEEZE), digits, cache_dir=folder)


@pytest.fixture
def cache(filled: tuple[Path, Teacher], tmp_path: Path) -> Path:
    """A copy of the filled cache of one's own."""
    return Path(shutil.copytree(filled[0], tmp_path / "cache"))


@pytest.fixture(scope="module")
def original(filled: tuple[Path, Teacher]) -> Teacher:
    return filled[1]


# --- trained once


def test_a_teacher_is_trained_and_then_its_estimators_with_a_report_after_every_epoch(
    make_config: Make, digits: DataSet, tmp_path: Path
) -> None:
    progress = Progress()
    config = make_config(terms=SQUEEZE, teacher={"epochs": 3, "attention": {"epochs": 2}})
    teacher = prepare(config, digits, cache_dir=tmp_path, on_progress=progress)
    assert progress.steps == [*[("teacher", i, 3) for i in (1, 2, 3)], *[("attention", i, 2) for i in (1, 2)]]
    assert not teacher.cached


def test_a_teacher_of_the_cache_is_not_trained_and_is_bit_identical(
    make_config: Make, digits: DataSet, cache: Path, original: Teacher
) -> None:
    progress = Progress()
    teacher = prepare(make_config(terms=SQUEEZE), digits, cache_dir=cache, on_progress=progress)
    assert not progress.steps
    assert teacher.cached
    assert not original.cached
    assert same(teacher.model, original.model)
    assert same(teacher.attention, original.attention)
    assert dataclasses.replace(teacher, model=None, attention=None, cached=False) == dataclasses.replace(  # type: ignore[arg-type]
        original, model=None, attention=None
    )  # type: ignore[arg-type]


def test_without_a_cache_the_teacher_is_the_same(make_config: Make, digits: DataSet, original: Teacher) -> None:
    teacher = prepare(make_config(terms=SQUEEZE), digits)
    assert not teacher.cached
    assert same(teacher.model, original.model)
    assert same(teacher.attention, original.attention)


@pytest.mark.parametrize(
    "change",
    [
        {"student": {"model": "resnet14", "width": 0.5}},
        {"seed": 7},
        {"train": {"lr": 0.3, "epochs": 9, "batch_size": 16}},
        {"terms": {"kd": {"weight": 3}, **SQUEEZE}},
        {"terms": {"ce": {}, "squeeze": {"weight": 9, "depth": 1}}},
        {"terms": {"ce": {}, "squeeze": {"depth": 3, "levels": "all", "metric": "cosine"}}},
        {"teacher": {"min_accuracy": 0.01}},
    ],
    ids=str,
)
def test_what_is_the_students_own_does_not_make_another_teacher(
    change: dict[str, Any], make_config: Make, digits: DataSet, cache: Path, original: Teacher
) -> None:
    progress = Progress()
    teacher = prepare(make_config(**{"terms": SQUEEZE, **change}), digits, cache_dir=cache, on_progress=progress)
    assert not progress.steps
    assert teacher.cached
    assert teacher.key == original.key


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": {"epochs": 1}},
        {"teacher": {"seed": 1}},
        {"teacher": {"lr": 0.2}},
        {"teacher": {"model": "resnet14"}},
        {"teacher": {"width": 0.5}},
        {"teacher": {"descriptor_dim": 6}},
        {"data": {"crop": 0}},
        {"data": {"flip": True}},
        {"data": {"seed": 1}},
    ],
    ids=str,
)
def test_what_makes_a_teacher_makes_another_one(
    change: dict[str, Any], make_config: Make, digits: DataSet, cache: Path, original: Teacher
) -> None:
    teacher = prepare(make_config(**{"terms": {"kd": {}}, **change}), digits, cache_dir=cache)
    assert not teacher.cached
    assert teacher.key != original.key
    assert teacher.model.shapes != original.model.shapes or not same(teacher.model, original.model)


def test_other_data_make_another_teacher(make_config: Make, make_data: Make, cache: Path, original: Teacher) -> None:
    teacher = prepare(make_config(terms={"kd": {}}), make_data(start=50), cache_dir=cache)
    assert not teacher.cached
    assert teacher.key != original.key


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": {"attention": {"epochs": 2}}},
        {"teacher": {"attention": {"lr": 0.2, "epochs": 1}}},
        {"terms": {"ce": {}, "squeeze": {"compatibility": "gap"}}},
        {"terms": {"ce": {}, "squeeze": {"attend": "fused"}}},
    ],
    ids=str,
)
def test_other_estimators_are_trained_on_the_same_network(
    change: dict[str, Any], make_config: Make, digits: DataSet, cache: Path, original: Teacher
) -> None:
    progress = Progress()
    teacher = prepare(make_config(**{"terms": SQUEEZE, **change}), digits, cache_dir=cache, on_progress=progress)
    assert {what for what, _, _ in progress.steps} == {"attention"}
    assert not teacher.cached
    assert same(teacher.model, original.model)


@pytest.mark.parametrize(
    "knobs",
    [
        {"compatibility": "gap", "attend": "fused"},
        {"compatibility": "gap", "pool": "mean"},
        {"compatibility": "gap", "attention_temperature": 2.0},
        {"compatibility": "gap", "share_query": False},
    ],
    ids=str,
)
def test_knobs_without_effect_do_not_train_the_estimators_again(
    knobs: dict[str, Any], make_config: Make, digits: DataSet, cache: Path
) -> None:
    plain = {"ce": {}, "squeeze": {"compatibility": "gap"}}
    prepare(make_config(terms=plain), digits, cache_dir=cache)
    progress = Progress()
    prepare(
        make_config(terms={"ce": {}, "squeeze": {**knobs}}),
        digits,
        cache_dir=cache,
        on_progress=progress,
    )
    assert not progress.steps


# Wants a teacher, and says what it did for it; with a third argument so many forks want it at once.
WANTS = """
import os, pathlib, pickle, sys, time
import torch
from hksd.teacher.prepare import prepare
config, data, cache = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
torch.optim.SGD([torch.zeros(1)], lr=1)  # imports what torch imports late, once for all forks

def want(pause):
    trained = []
    tell = lambda *step: (trained.append(step), time.sleep(pause))
    teacher = prepare(config, data, cache_dir=cache, on_progress=tell)
    said = "|".join(map(str, (len(trained), teacher.accuracy, teacher.attention_accuracy, teacher.cached)))
    os.write(1, f"{said}\\n".encode())  # at once: others write there too

forks = range(int(sys.argv[3]))
for _ in forks:
    if os.fork() == 0:
        want(float(sys.argv[2]))
        os._exit(0)
if not all([os.wait()[1] == 0 for _ in forks]):
    sys.exit("a process failed")
if not forks:
    want(float(sys.argv[2]))
"""


def test_two_processes_that_want_one_teacher_at_once_train_it_once(
    child: Make, make_config: Make, digits: DataSet, original: Teacher, tmp_path: Path
) -> None:
    (tmp_path / "job").write_bytes(pickle.dumps((make_config(terms=SQUEEZE), digits, tmp_path / "cache")))
    process: subprocess.Popen[str] = child(WANTS, tmp_path / "job", 0.1, 2)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    results = [line.split("|") for line in output.splitlines()]
    assert len(results) == 2
    counts = sorted(int(result[0]) for result in results)
    assert sum(counts) == 3, "two epochs of the network and one of its estimators, whoever trained them"
    assert {tuple(result[1:3]) for result in results} == {(str(original.accuracy), str(original.attention_accuracy))}


# --- demands


def test_a_demand_is_no_reason_to_train_again_and_a_broken_one_names_accuracy_and_demand(
    make_config: Make, digits: DataSet, cache: Path, original: Teacher
) -> None:
    assert original.accuracy < 0.9
    progress = Progress()
    with pytest.raises(RunError, match=rf"resnet8 reaches {original.accuracy:.2%}.*min_accuracy 90\.00%"):
        prepare(
            make_config(terms=SQUEEZE, teacher={"min_accuracy": 0.9}), digits, cache_dir=cache, on_progress=progress
        )
    assert not progress.steps
    met = prepare(make_config(terms=SQUEEZE, teacher={"min_accuracy": original.accuracy}), digits, cache_dir=cache)
    assert met.cached


def test_a_run_with_a_teacher_that_is_too_weak_does_not_start(make_config: Make, digits: DataSet, cache: Path) -> None:
    reports: list[Any] = []
    with pytest.raises(RunError, match="min_accuracy"):
        fit(
            make_config(terms=SQUEEZE, teacher={"min_accuracy": 1}),
            data=digits,
            cache_dir=cache,
            on_epoch=reports.append,
        )
    assert not reports


def test_a_teacher_that_diverges_is_an_error_and_is_not_kept(
    make_config: Make, digits: DataSet, tmp_path: Path
) -> None:
    config = make_config(terms={"kd": {}}, teacher={"lr": 1e12})
    for _ in range(2):
        with pytest.raises(NonFiniteLossError):
            prepare(config, digits, cache_dir=tmp_path)
    kept = {path.name for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".json")}
    assert kept <= {"provenance.json"}, "only of what was tried"


# --- damaged caches


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def find(path: Path, text: str, offset: int = 0) -> int:
    return path.read_bytes().index(text.encode()) + offset


DAMAGE: dict[str, Callable[[Path, Path], Any]] = {
    "flip in the weights": lambda tensors, facts: flip(tensors, -10),
    "flip in the header": lambda tensors, facts: flip(tensors, 20),
    "weights cut": lambda tensors, facts: tensors.write_bytes(tensors.read_bytes()[:-8]),
    "weights empty": lambda tensors, facts: tensors.write_bytes(b""),
    "weights gone": lambda tensors, facts: tensors.unlink(),
    "facts gone": lambda tensors, facts: facts.unlink(),
    "facts empty": lambda tensors, facts: facts.write_bytes(b""),
    "facts no mapping": lambda tensors, facts: facts.write_text("[1, 2]"),
    "flip in the brace": lambda tensors, facts: flip(facts, 0),
    "flip in the name accuracy": lambda tensors, facts: flip(facts, find(facts, "accuracy", 2)),
    "flip in the value of the accuracy": lambda tensors, facts: flip(facts, find(facts, "0.", 2)),
    "flip in the checksum": lambda tensors, facts: flip(facts, find(facts, "sha256", 12)),
}


@pytest.mark.parametrize("part", ["teacher", "attention"])
@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_cache_gives_the_same_teacher_made_again_where_it_must_be(
    damage: str, part: str, make_config: Make, digits: DataSet, cache: Path, original: Teacher
) -> None:
    tensors = next((cache / original.key).glob(f"{part}*.safetensors"))
    DAMAGE[damage](tensors, tensors.with_suffix(".json"))
    progress = Progress()
    teacher = prepare(make_config(terms=SQUEEZE), digits, cache_dir=cache, on_progress=progress)
    made = {what for what, _, _ in progress.steps}
    assert made == {part} if "weights" in damage or "header" in damage else made <= {part}
    assert teacher.cached == (not made)
    assert same(teacher.model, original.model)
    assert same(teacher.attention, original.attention)
    assert (teacher.accuracy, teacher.attention_accuracy) == (original.accuracy, original.attention_accuracy)
    assert prepare(make_config(terms=SQUEEZE), digits, cache_dir=cache).cached


def test_a_damaged_cache_is_told_in_the_log(
    make_config: Make, digits: DataSet, cache: Path, original: Teacher, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = cache / original.key / "teacher.safetensors"
    flip(tensors, -10)
    prepare(make_config(terms=SQUEEZE), digits, cache_dir=cache)
    assert str(tensors) in caplog.text
    assert "damaged" in caplog.text


def test_a_cache_that_cannot_be_written_is_a_users_error(make_config: Make, digits: DataSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="teacher cache cannot be written") as caught:
        prepare(make_config(terms={"kd": {}}), digits, cache_dir=tmp_path / "file" / "cache")
    assert str(tmp_path / "file") in str(caught.value)


# --- loaded


@pytest.fixture(scope="module")
def files(original: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original's weights in every form that can be loaded."""
    folder = tmp_path_factory.mktemp("files")
    state = original.model.state_dict()
    weights.save(folder / "teacher.safetensors", original.model, {})
    torch.save(state, folder / "teacher.pt")
    torch.save(state, folder / "teacher.pth")
    torch.save({"state_dict": state, "epoch": 3}, folder / "wrapped.pt")
    return folder


def loaded(make_config: Make, path: Path, **teacher: Any) -> RunConfig:
    return make_config(terms=SQUEEZE, teacher={"checkpoint": str(path), **teacher})


@pytest.mark.parametrize("name", ["teacher.safetensors", "teacher.pt", "teacher.pth", "wrapped.pt"])
def test_a_loaded_teacher_is_the_one_that_was_saved_and_is_not_trained(
    name: str, make_config: Make, digits: DataSet, files: Path, original: Teacher, tmp_path: Path
) -> None:
    for _ in range(2):
        progress = Progress()
        teacher = prepare(loaded(make_config, files / name), digits, cache_dir=tmp_path, on_progress=progress)
        assert "teacher" not in {what for what, _, _ in progress.steps}
        assert same(teacher.model, original.model)
        assert same(teacher.attention, original.attention)
        assert teacher.accuracy == original.accuracy


def test_a_file_with_other_content_under_the_same_name_is_another_teacher(
    make_config: Make, digits: DataSet, files: Path, original: Teacher, tmp_path: Path
) -> None:
    path = tmp_path / "teacher.safetensors"
    shutil.copy(files / "teacher.safetensors", path)
    config = make_config(terms={"kd": {}}, teacher={"checkpoint": str(path), "expected_accuracy": 0})
    first = prepare(config, digits, cache_dir=tmp_path / "cache")
    torch.manual_seed(9)
    weights.save(path, models.build("resnet8", in_channels=1, classes=10, width=0.25, image_size=8), {})
    second = prepare(config, digits, cache_dir=tmp_path / "cache")
    assert first.key != second.key
    assert not second.cached
    assert not same(first.model, second.model)


def test_a_checkpoint_that_does_not_fit_is_told_with_its_keys(make_config: Make, digits: DataSet, files: Path) -> None:
    with pytest.raises(UserError, match=r"do not fit.*missing stages\.0\.1\.conv1\.weight.*and \d+ more") as caught:
        prepare(loaded(make_config, files / "teacher.pt", model="resnet14"), digits)
    assert str(files / "teacher.pt") in str(caught.value)
    with pytest.raises(UserError, match=r"stem\.0\.weight is \(4, 1, 3, 3\), the network has \(8, 1, 3, 3\)"):
        prepare(loaded(make_config, files / "teacher.safetensors", width=0.5), digits)
    with pytest.raises(UserError, match=r"missing descriptor\.weight"):
        prepare(loaded(make_config, files / "teacher.pt", descriptor_dim=16), digits)


@pytest.mark.parametrize("name", ["absent.pt", "absent.safetensors"])
def test_a_checkpoint_that_is_not_there_is_told_with_its_path(
    name: str, make_config: Make, digits: DataSet, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="No such file") as caught:
        prepare(loaded(make_config, tmp_path / name), digits, cache_dir=tmp_path / "cache")
    assert str(tmp_path / name) in str(caught.value)


class Trap:
    """Something whose unpickling does something: it makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("kind", ["garbage", "empty", "cut", "folder", "code", "list"])
def test_a_checkpoint_of_another_kind_is_a_users_error_and_runs_no_code(
    kind: str, name: str, make_config: Make, digits: DataSet, files: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    if kind == "folder":
        path.mkdir()
    elif kind in ("code", "list"):
        torch.save({"a": Trap(tmp_path / "sprung")} if kind == "code" else [1, 2], path)
    else:
        whole = (files / f"teacher{path.suffix}").read_bytes()
        path.write_bytes({"garbage": b"not weights " * 9, "empty": b"", "cut": whole[: len(whole) // 2]}[kind])
    with pytest.raises(UserError) as caught:
        prepare(loaded(make_config, path), digits)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "sprung").exists()


def test_a_run_that_needs_a_teacher_and_has_no_section_is_a_users_error(make_config: Make, digits: DataSet) -> None:
    with pytest.raises(UserError, match="no teacher section"):
        prepare(make_config(teacher=None), digits)


# --- frozen


def test_a_teacher_is_in_eval_mode_without_gradients_and_knows_its_accuracy(original: Teacher, digits: DataSet) -> None:
    for module in (original.model, original.attention):
        assert module is not None
        assert not any(part.training for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())
    images = torch.from_numpy(digits.validation.images.copy()).permute(0, 3, 1, 2).float() / 255
    out = original((images - digits.mean[0]) / digits.std[0], frozenset({"logits"}))
    labels = torch.from_numpy(digits.validation.labels.copy())
    assert (out.logits.argmax(1) == labels).double().mean().item() == pytest.approx(original.accuracy)


def test_what_a_teacher_says_carries_no_gradient_even_from_images_that_need_one(original: Teacher) -> None:
    out = original(torch.randn(2, 1, 8, 8, requires_grad=True), frozenset({"logits", "squeezed"}))
    tensors = [out.logits, out.embedding, *(vector for level in out.squeezed for vector in level)]
    assert len(out.squeezed) == 3
    assert not any(tensor.requires_grad for tensor in tensors)


def test_a_teacher_gives_what_is_asked_for_and_does_not_keep_the_many_maps_that_nobody_asked_for(
    original: Teacher,
) -> None:
    images = torch.randn(2, 1, 8, 8)
    given = {needs: original(images, needs) for needs in map(frozenset, (["logits"], ["squeezed"], ["blocks"]))}
    assert [len(out.blocks) for out in given.values()] == [0, 0, 3]
    assert [len(out.squeezed) for out in given.values()] == [0, 3, 0]
    assert all(torch.equal(out.logits, original.model(images)) for out in given.values())


def test_a_run_leaves_its_teacher_bit_identical_and_keeps_it_out_of_its_checkpoints(
    make_config: Make, digits: DataSet, cache: Path, tmp_path: Path
) -> None:
    config = make_config(terms={**SQUEEZE, "kd": {}, "adversarial": {"hidden": 8, "warmup_epochs": 0}})
    teacher = prepare(config, digits, cache_dir=cache)
    assert teacher.attention is not None
    before = pickle.dumps(
        [[(n, v.numpy().tobytes()) for n, v in m.state_dict().items()] for m in (teacher.model, teacher.attention)]
    )
    fit(config, data=digits, teacher=teacher, out_dir=tmp_path / "run")
    after = pickle.dumps(
        [[(n, v.numpy().tobytes()) for n, v in m.state_dict().items()] for m in (teacher.model, teacher.attention)]
    )
    assert before == after
    assert all(
        p.grad is None and not p.requires_grad for m in (teacher.model, teacher.attention) for p in m.parameters()
    )
    assert not any(part.training for part in teacher.model.modules())
    state = checkpoint.load_newest(tmp_path / "run")
    assert state is not None
    held = [name for part in ("student", "objective") for name in state[part]]
    assert not [name for name in held if "teacher" in name]
    assert set(state["student"]) == set(teacher.model.state_dict()), (
        "same network, so that the next line means something"
    )
    assert not any(
        torch.equal(state["student"][name], value)
        for name, value in teacher.model.state_dict().items()
        if name.endswith("weight") and value.ndim > 1
    )


def test_a_teacher_of_ones_own_and_one_of_the_cache_make_the_same_student(
    make_config: Make, digits: DataSet, cache: Path, original: Teacher
) -> None:
    config = make_config(terms={**SQUEEZE, "kd": {}})
    students = [
        fit(config, data=digits, **how).student
        for how in ({"teacher": original}, {"cache_dir": cache}, {})  # the last one trains its own
    ]
    assert same(students[0], students[1])
    assert same(students[0], students[2])


# --- estimators


def test_the_accuracy_of_every_level_is_told_for_trained_estimators(
    make_config: Make, make_data: Make, digits: DataSet, original: Teacher
) -> None:
    assert len(original.attention_accuracy) == 3
    assert all(0 <= accuracy <= 1 for accuracy in original.attention_accuracy)
    better = prepare(
        make_config(
            terms=SQUEEZE,
            teacher={"width": 0.5, "epochs": 6, "batch_size": 32, "attention": {"epochs": 4, "batch_size": 32}},
        ),
        make_data(train=600),
    )
    assert better.accuracy > 0.5
    assert min(better.attention_accuracy) > 0.4, "heads on the vectors of a good teacher classify"


def test_training_the_estimators_changes_them_and_not_the_network(
    make_config: Make, digits: DataSet, cache: Path, original: Teacher
) -> None:
    config = make_config(terms=SQUEEZE, teacher={"attention": {"mode": "random"}})
    progress = Progress()
    random = prepare(config, digits, cache_dir=cache, on_progress=progress)
    assert not progress.steps, "random estimators are not trained"
    assert random.attention_accuracy == ()
    assert same(random.model, original.model)
    assert random.attention is not None
    assert original.attention is not None
    trained = original.attention.state_dict()
    assert not any(torch.equal(trained[name], value) for name, value in random.attention.state_dict().items())
    again = prepare(config, digits, cache_dir=cache)
    assert again.cached
    assert same(again.attention, random.attention)


@pytest.mark.parametrize("terms", [{"kd": {}}, {"kd": {}, "squeeze": {"weight": 0}}], ids=["absent", "weight 0"])
def test_without_a_squeeze_term_no_estimators_are_built(
    terms: dict[str, Any], make_config: Make, digits: DataSet, tmp_path: Path
) -> None:
    progress = Progress()
    teacher = prepare(make_config(terms=terms), digits, cache_dir=tmp_path, on_progress=progress)
    assert teacher.attention is None
    assert teacher.attention_accuracy == ()
    assert {what for what, _, _ in progress.steps} == {"teacher"}
    assert not list(tmp_path.rglob("attention*"))


def test_facts_of_the_cache_can_be_read_by_people(cache: Path, original: Teacher) -> None:
    facts = json.loads((cache / original.key / "teacher.json").read_text())
    assert facts["accuracy"] == original.accuracy


def test_a_teacher_whose_process_was_killed_goes_on_from_its_last_epoch(
    child: Make, make_config: Make, digits: DataSet, original: Teacher, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    (tmp_path / "job").write_bytes(pickle.dumps((make_config(terms=SQUEEZE), digits, cache)))
    process: subprocess.Popen[str] = child(WANTS, tmp_path / "job", 60, 0)
    deadline = time.monotonic() + 60
    while not list(cache.rglob(checkpoint.LAST)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    progress = Progress()
    teacher = prepare(make_config(terms=SQUEEZE), digits, cache_dir=cache, on_progress=progress)
    assert progress.steps == [("teacher", 1, 2), ("teacher", 2, 2), ("attention", 1, 1)]
    assert same(teacher.model, original.model)
    assert same(teacher.attention, original.attention)
    assert teacher.accuracy == original.accuracy
    assert not list(cache.rglob("*.ckpt")), "what only the training needed is gone"


class AccidentError(Exception):
    """Ends a training between two epochs."""


def accident(*_: object) -> None:
    raise AccidentError


@pytest.mark.parametrize(
    "change", [{"train": {"device": "auto"}}, {"data": {"limit": 240}}, {"data": {"root": "elsewhere"}}], ids=str
)
def test_an_interrupted_teacher_goes_on_under_another_configuration_that_wants_the_same_one(
    change: dict[str, Any], make_config: Make, digits: DataSet, original: Teacher, tmp_path: Path
) -> None:
    with pytest.raises(AccidentError):
        prepare(make_config(terms=SQUEEZE), digits, cache_dir=tmp_path, on_progress=accident)
    teacher = prepare(make_config(terms=SQUEEZE, **change), digits, cache_dir=tmp_path)
    assert teacher.key == original.key
    if not torch.cuda.is_available():
        assert same(teacher.model, original.model)


def test_a_damaged_checkpoint_of_an_interrupted_teacher_does_not_stop_it(
    make_config: Make, digits: DataSet, original: Teacher, tmp_path: Path
) -> None:
    with pytest.raises(AccidentError):
        prepare(make_config(terms=SQUEEZE), digits, cache_dir=tmp_path, on_progress=accident)
    flip(next(tmp_path.rglob(checkpoint.LAST)), -10)
    assert same(prepare(make_config(terms=SQUEEZE), digits, cache_dir=tmp_path).model, original.model)
