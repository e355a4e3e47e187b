"""Weights as training scripts leave them: every form that fits loads, every other file is told by what it is."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hksd import models
from hksd.errors import UserError
from hksd.models import weights
from hksd.teacher.prepare import prepare

State = dict[str, Any]


def network(seed: int = 0) -> models.taps.TappedNet:
    torch.manual_seed(seed)
    return models.build("resnet8", in_channels=3, classes=10, width=0.25, image_size=8)


REFERENCE = network(1)
STATE: State = dict(REFERENCE.state_dict())
EMA: State = {name: value + 1 for name, value in STATE.items()}
OPTIMISER: State = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def behind(prefix: str, state: State = STATE) -> State:
    return {prefix + name: value for name, value in state.items()}


def loaded(path: Path) -> State:
    into = network()
    weights.load_into(into, path)
    return into.state_dict()


def same(one: State, two: State) -> bool:
    return all(torch.equal(one[name], two[name]) for name in two if not name.endswith("num_batches_tracked"))


class Kind(enum.Enum):
    ONE = 1


class Settings:
    def __init__(self) -> None:
        self.lr = 0.1


class Filled(dict):  # type: ignore[type-arg]
    """A dict of somebody's own, as EasyDict and CfgNode are."""


AVERAGED = torch.optim.swa_utils.AveragedModel(REFERENCE).state_dict()
FORMS: dict[str, Any] = {
    "compiled, of DDP": behind("_orig_mod.module."),
    "DDP of a compiled one": behind("module._orig_mod."),
    "a wrapper inside": {name.replace("stages.0.", "stages._orig_mod.0.module."): v for name, v in STATE.items()},
    "AveragedModel": AVERAGED,
    "AveragedModel of both": {**behind("module._orig_mod.module."), "n_averaged": torch.tensor(3)},
    "Lightning": {
        "state_dict": behind("model."),
        "hyper_parameters": argparse.Namespace(lr=0.1, root=pathlib.Path("x")),
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.3)}},
        "optimizer_states": [OPTIMISER],
    },
    "nested": {"checkpoint": {"model_state_dict": behind("net.")}, "epoch": 3},
    "net": {"net": STATE, "acc": 91.2},
    "a tuple": (STATE, 3),
    "no counters": {name: value for name, value in STATE.items() if not name.endswith("num_batches_tracked")},
    "parameters": {name: nn.Parameter(v) if v.is_floating_point() else v for name, v in STATE.items()},
    "double": {name: v.double() if v.is_floating_point() else v for name, v in STATE.items()},
    "numpy": {
        "model": STATE,
        "best_acc": np.float64(91.2),
        "curve": np.arange(3),
        "rng": np.random.get_state(),
        "generator": np.random.default_rng(0),
    },
    "of the standard library": {
        "model": STATE,
        "when": datetime.datetime(2026, 1, 2),
        "args": argparse.Namespace(out=pathlib.PurePosixPath("a"), n=[1]),
        "log": collections.defaultdict(list, {"loss": [1.0]}),
        "last": collections.deque([1, 2], maxlen=3),
        "size": torch.Size([1, 2]),
        "classes": frozenset({1}),
    },
    "a defaultdict around": collections.defaultdict(dict, {"model": STATE}),
    "eight deep": {"a": {"b": {"c": {"d": {"e": {"f": {"g": STATE}}}}}}},
    "counted by thop": {**STATE, "total_ops": torch.zeros(1), "stages.0.0.conv1.total_params": torch.zeros(1)},
    "a criterion beside": {"model": STATE, "criterion": nn.CrossEntropyLoss()},
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_the_right_weights_loads_without_a_word(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(FORMS[name], tmp_path / "teacher.pt")
    assert same(loaded(tmp_path / "teacher.pt"), STATE)
    assert not caplog.records


@pytest.mark.parametrize("name", ["AveragedModel", "Lightning", "numpy", "of the standard library"])
def test_files_of_torch_before_1_6_load_too(name: str, tmp_path: Path) -> None:
    torch.save(FORMS[name], tmp_path / "teacher.pth", _use_new_zipfile_serialization=False)
    assert same(loaded(tmp_path / "teacher.pth"), STATE)


PARTS = ("module", "_orig_mod", "model", "net", "network", "ema", "student", "a_wrapper_of_ones_own")


@given(st.lists(st.sampled_from(PARTS), max_size=4))
def test_prefixes_are_taken_away_in_any_order_and_depth(parts: list[str]) -> None:
    own = weights.Names(REFERENCE)
    sets = [weights.checkpoints.WeightSet("", behind("".join(f"{part}." for part in parts)))]
    found = weights.foreign.fits(sets, own, by_order=False)
    assert len(found) == 1
    assert same(found[0].tensors, STATE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_turned_into_the_networks_own(dtype: torch.dtype, tmp_path: Path) -> None:
    half = {name: v.to(dtype) if v.is_floating_point() else v for name, v in STATE.items()}
    torch.save(half, tmp_path / "x.bin")
    got = loaded(tmp_path / "x.bin")
    assert {value.dtype for value in got.values()} == {torch.float32, torch.int64}
    assert same(got, {name: v.to(STATE[name].dtype) for name, v in half.items()})


SEVERAL: dict[str, tuple[Any, State, str]] = {
    "losses and metrics": (
        {"state_dict": {**behind("model."), "criterion.weight": torch.ones(10), "train_acc.tp": torch.ones(10)}},
        STATE,
        "'state_dict.model' are taken; left out: 'state_dict.criterion' (1), 'state_dict.train_acc' (1)",
    ),
    "losses at the network's level": ({**STATE, "loss_fn.weight": torch.ones(10)}, STATE, "left out: 'loss_fn' (1)"),
    "heads that helped the training": (
        {
            **STATE,
            "fc_aux.weight": torch.ones(10),
            "aux_head.0.weight": torch.ones(2),
            "projector.0.bias": torch.ones(3),
        },
        STATE,
        "the top are taken; left out: 'fc_aux' (1), 'aux_head' (1), 'projector' (1)",
    ),
    "numbers beside": ({**STATE, "epoch": torch.tensor(3)}, STATE, "left out: 'epoch' (1)"),
    "an average beside": (
        {**behind("ema_model.module.", EMA), **behind("model.")},
        STATE,
        "'model' are taken; those under 'ema_model.module' fit as well",
    ),
    "two keys": ({"state_dict_ema": EMA, "state_dict": STATE}, STATE, "those under 'state_dict_ema' fit as well"),
    "the average alone fits": ({**behind("ema.", EMA), "model.x": torch.ones(3)}, EMA, "left out: 'model' (1)"),
    "student and teacher": (
        {"model": {**behind("module.teacher.", EMA), **behind("module.student."), "module.head.w": torch.ones(2)}},
        STATE,
        "'model.module.student' are taken; those under 'model.module.teacher' fit as well; "
        "left out: 'model.module.head' (1); to use others, save them alone",
    ),
    "a class of the author's": ({"model": STATE, "cfg": Settings(), "kind": Kind.ONE}, STATE, "Settings"),
    "a dict of the author's": ({"model": STATE, "cfg": Filled(a=1), "n": np.float64(1)}, STATE, "Filled"),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_what_is_taken_from_a_file_that_holds_more_is_said_in_one_line(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content, expected, said = SEVERAL[name]
    torch.save(content, tmp_path / "x.pt")
    assert same(loaded(tmp_path / "x.pt"), expected)
    assert [said in record.getMessage() for record in caplog.records] == [True]


def test_the_names_of_a_larger_network_are_no_extras(tmp_path: Path) -> None:
    """The names of resnet8 are among those of resnet14, and its shapes fit."""
    larger = models.build("resnet14", in_channels=3, classes=10, width=0.25, image_size=8)
    torch.save({"state_dict": behind("module.", larger.state_dict())}, tmp_path / "x.pt")
    with pytest.raises(
        UserError, match=r"they are of resnet14 at width 0\.25 for 10 classes; unexpected stages"
    ) as told:
        loaded(tmp_path / "x.pt")
    assert "'state_dict.module', which a wrapper or the file puts before their names" in str(told.value)
    assert str(told.value).count(";") == 5  # five faults, and the prefix


def test_other_classes_are_the_first_thing_said(tmp_path: Path) -> None:
    other = models.build("resnet8", in_channels=3, classes=7, width=0.25, image_size=8)
    torch.save(behind("module.", other.state_dict()), tmp_path / "x.pt")
    with pytest.raises(UserError, match="do not fit the network: they tell 7 classes apart, but the data has 10"):
        loaded(tmp_path / "x.pt")


# --- files that are something else


class Trap:
    """Something whose unpickling calls a function."""

    def __init__(self, call: Callable[..., object], argument: str):
        self.call, self.argument = call, argument

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, (self.argument,)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def archive(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, b"x")


def numpy_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, weight=np.ones(3))


def cut(path: Path) -> None:
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-500])


def cut_old(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:700])


def turned_bits(path: Path) -> None:
    """What a bad disk or a broken transfer leaves: the right length, other numbers."""
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as file:
        entry = max(file.infolist(), key=lambda one: one.file_size)
    content = bytearray(path.read_bytes())
    content[entry.header_offset + entry.file_size // 2 + 128] ^= 0xFF
    path.write_bytes(content)


def shards(path: Path) -> None:
    path.mkdir()
    for number in (1, 2):
        (path / f"model-0000{number}-of-00002.safetensors").touch()


def distributed(path: Path) -> None:
    path.mkdir()
    for name in (".metadata", "__0_0.distcp"):
        (path / name).touch()


def changed(**values: Tensor) -> State:
    return {**STATE, **{name.replace("__", "."): value for name, value in values.items()}}


def weight_normed() -> State:
    other = network(1)
    nn.utils.parametrizations.weight_norm(other.classifier)
    return other.state_dict()


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
CURE = r"`import torch; torch\.save\(torch\.load\('.*x\.pt', 'cpu', weights_only=False\)"
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: write(p, b""), r"an empty file \(0 bytes\)"),
    "a web page": (lambda p: write(p, b"\n<!DOCTYPE html><html>"), r"a web page \(HTML\)"),
    "a pointer": (lambda p: write(p, POINTER), "a pointer of Git LFS.*`git lfs pull`"),
    "a text": (lambda p: write(p, b'{"weight_map": {}}'), "a text file and no weights"),
    "packed": (lambda p: write(p, b"\x1f\x8b\x08" + bytes(50)), r"packed file \(gzip\): unpack it"),
    "Keras": (lambda p: write(p, b"\x89HDF\r\n\x1a\n" + bytes(50)), "an HDF5 file"),
    "TorchScript": (lambda p: archive(p, "x/constants.pkl"), r"a TorchScript program.*torch\.jit\.load"),
    "torch.export": (lambda p: archive(p, "x/archive_format"), r"a program of torch\.export.*torch\.export\.load"),
    "numpy": (numpy_archive, r"arrays of numpy \(\.npz\).*numpy\.load"),
    "another zip": (lambda p: archive(p, "notes.md"), "zip archive that torch.save did not write"),
    "a plain pickle": (plain_pickle, r"a pickle that torch\.save did not write.*pickle\.load"),
    "cut off": (cut, "damaged or cut off"),
    "cut off, old": (cut_old, "damaged or cut off"),
    "an optimiser": (lambda p: torch.save({"optimizer": OPTIMISER}, p), "state of an optimiser and no weights"),
    "one tensor": (lambda p: torch.save(torch.ones(3), p), r"one tensor \(3,\)"),
    "a network": (lambda p: torch.save(REFERENCE, p), rf"whole network of the class .*CifarResNet.*{CURE}\.state_dict"),
    "a network under a key": (
        lambda p: torch.save({"model": REFERENCE, "epoch": 1}, p),
        rf"CifarResNet under \['model'\].*{CURE}\['model'\]\.state_dict\(\)",
    ),
    "another protocol": (lambda p: torch.save({"a": np.float64(1)}, p, pickle_protocol=4), rf"protocol 4.*{CURE}"),
    "a network of DDP": (
        lambda p: torch.save({"net": nn.DataParallel(REFERENCE)}, p),
        rf"DataParallel under \['net'\].*{CURE}\['net'\]",
    ),
    "turned bits": (turned_bits, "does not have its checksum"),
    "shards": (shards, r"weights in several files; put them together: `import glob, safetensors\.torch"),
    "a distributed checkpoint": (distributed, r"torch\.distributed\.checkpoint; .*dcp_to_torch_save"),
    "a pipe": (lambda p: os.mkfifo(p), "a pipe or a device"),
    "a web page with a mark": (lambda p: write(p, b"\xef\xbb\xbf<html>"), "a web page"),
    "arrays": (
        lambda p: torch.save({n: v.numpy() for n, v in STATE.items()}, p),
        r"arrays of numpy.*torch\.from_numpy",
    ),
    "whole numbers": (
        lambda p: torch.save(changed(classifier__weight=STATE["classifier.weight"].char()), p),
        "is torch.int8, .*a scale",
    ),
    "another rank": (
        lambda p: torch.save(changed(classifier__weight=STATE["classifier.weight"][None]), p),
        r"is \(1, 10, 16\)",
    ),
    "under weight_norm": (lambda p: torch.save(weight_normed(), p), "remove_parametrizations"),
    "a folder": (lambda p: p.mkdir(), "a folder; name the file of weights in it"),
    "no numbers": (lambda p: torch.save(meta(), p), "has no numbers"),
    "a command": (lambda p: torch.save({"model": STATE, "x": Trap(os.mkdir, "sprung")}, p), r"a call of \w+\.mkdir"),
    "code": (lambda p: torch.save({"x": Trap(eval, "open('sprung', 'w')")}, p), r"a call of builtins\.eval"),
}


def meta() -> dict[str, Tensor]:
    return {name: value.to("meta") for name, value in STATE.items()}


@pytest.mark.parametrize("name", FILES)
def test_every_other_file_is_told_by_what_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, said = FILES[name]
    make(tmp_path / "x.pt")
    with pytest.raises(UserError, match=said) as told:
        loaded(tmp_path / "x.pt")
    assert str(told.value).startswith(f"{tmp_path / 'x.pt'}: ")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda net: nn.ModuleDict({"net": net})])
@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_a_network_that_is_wrapped_itself_takes_weights_of_a_bare_one(
    wrap: Callable[[nn.Module], nn.Module], prefix: str, tmp_path: Path
) -> None:
    into = wrap(network())
    torch.save(behind(prefix), tmp_path / "x.pt")
    weights.load_into(into, tmp_path / "x.pt")
    assert same(
        {
            name.removeprefix("module.").removeprefix("_orig_mod.").removeprefix("net."): value
            for name, value in into.state_dict().items()
        },
        STATE,
    )


def test_checksums_that_were_not_written_are_not_missed(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(loaded(tmp_path / "x.pt"), STATE)


def test_one_file_that_is_called_a_set_of_one_is_read_and_a_part_of_two_is_not(tmp_path: Path) -> None:
    for name in ("model-00001-of-00001.bin", "model-00001-of-00002.bin"):
        torch.save(STATE, tmp_path / name)
    assert same(loaded(tmp_path / "model-00001-of-00001.bin"), STATE)
    with pytest.raises(UserError, match=r"one of several files .*torch\.load\(f"):
        loaded(tmp_path / "model-00001-of-00002.bin")


def test_nothing_of_a_foreign_class_is_imported_or_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": STATE, "x": Trap(touch, "sprung")}, tmp_path / "x.pt")
    assert same(loaded(tmp_path / "x.pt"), STATE)
    assert not (tmp_path / "sprung").exists()


def touch(name: str) -> None:
    Path(name).touch()


def test_the_ending_of_a_name_does_not_decide(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.safetensors")
    weights.save(tmp_path / "x.pt", REFERENCE, {"a": "b"})
    for name in ("x.safetensors", "x.pt"):
        assert same(loaded(tmp_path / name), STATE)


def test_a_path_from_the_home_folder_is_found_and_an_unknown_user_is_told(
    make_config: Callable[..., Any], make_data: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"))  # kernels
    monkeypatch.setenv("HOME", str(tmp_path))
    data = make_data(train=20, validation=10)
    teacher = models.build("resnet8", in_channels=1, classes=10, width=0.25, image_size=8)
    torch.save(teacher.state_dict(), tmp_path / "x.pt")
    settings = {"model": "resnet8", "width": 0.25, "checkpoint": "~/x.pt", "expected_accuracy": 0}  # it is untrained
    config = make_config(terms={"kd": {}}, teacher=settings)
    assert same(prepare(config, data, cache_dir=tmp_path / "cache").model.state_dict(), teacher.state_dict())
    unknown = make_config(terms={"kd": {}}, teacher={"model": "resnet8", "checkpoint": "~nobody-of-that-name/x.pt"})
    with pytest.raises(UserError, match=r"teacher\.checkpoint: .*no user of that name"):
        prepare(unknown, data)
