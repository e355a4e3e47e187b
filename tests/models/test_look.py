"""A network of one's own is looked at as it will be trained: what it cannot do is told before anything is."""

from __future__ import annotations

import itertools
import logging
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hksd import models
from hksd.data import DataSet
from hksd.deploy.export import export
from hksd.deploy.rehearsal import rehearse
from hksd.device.precision import Precision
from hksd.errors import UserError
from hksd.fit import fit
from hksd.models import NetworkSpec
from hksd.models import look as looking
from hksd.models.look import look
from hksd.teacher.prepare import prepare

Make = Callable[..., Any]
NUMBERS = itertools.count()
SHAPE = {"in_channels": 1, "classes": 10, "image_size": 8}

SOURCE = """
from collections import OrderedDict, namedtuple
import torch
import torch.nn.functional as F
from torch import nn
from hksd.models.taps import Out, TappedNet, TapShapes

Named = namedtuple("Named", "aux logits")
BUILT = []

class Plain(nn.Module):
    def __init__(self, classes, in_channels, features=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(features, classes)
        self.unused = nn.Parameter(torch.ones(2))
        BUILT.append(self)

    def vector(self, x):
        return self.body(x).mean((2, 3))

    def head(self, x):
        return self.fc(self.vector(x))

    def forward(self, x):
        return self.head(x)

class Aux(Plain):
    def forward(self, x):
        return (self.head(x), x) if self.training else self.head(x)

class Records(Plain):
    def forward(self, x):
        return Named(x, self.head(x))

class Mapped(Plain):
    def forward(self, x):
        return OrderedDict(features=x, logits=self.head(x)) if self.training else {"out": self.head(x)}

class Unnamed(Plain):
    def forward(self, x):
        return {"a": self.head(x), "b": self.head(x)} if self.training else self.head(x)

class Views(Plain):
    def __init__(self, classes, in_channels):
        super().__init__(classes, in_channels, 64)

    def vector(self, x):
        maps = self.body(x)
        return maps.view(len(maps), -1) if self.training else maps.flatten(1)

class Strides(Views):
    def vector(self, x):
        return torch.as_strided(self.body(x), (len(x), 64), (64, 1))

class Safe(Views):
    def vector(self, x):
        maps = self.body(x)
        return maps.contiguous().view(maps.shape[0], -1)

class Counted(Views):
    def vector(self, x):
        maps = self.body(x)
        return maps.reshape(len(maps), -1)

class NoGradient(Plain):
    def forward(self, x):
        with torch.no_grad():
            return self.head(x)

class FrozenBody(Plain):
    def vector(self, x):
        with torch.no_grad():
            return super().vector(x)

class Frozen(Plain):
    def __init__(self, classes, in_channels):
        super().__init__(classes, in_channels)
        self.requires_grad_(False)

class RandomAlways(Plain):
    def forward(self, x):
        return F.dropout(self.head(x), 0.5)

class Half(Plain):
    def __init__(self, classes, in_channels):
        super().__init__(classes, in_channels)
        self.double()

    def forward(self, x):
        return self.head(x.double())

class DoubleLogits(Plain):
    def forward(self, x):
        return self.head(x).double()

class Whole(Plain):
    def forward(self, x):
        return self.head(x).long()

class Broken(Plain):
    def __init__(self, classes, in_channels):
        super().__init__(classes, in_channels)
        nn.init.constant_(self.fc.weight, float("nan"))

class Root(Plain):
    def forward(self, x):
        return self.head(x) + (0 * self.vector(x)).norm(dim=1, keepdim=True).sqrt()

class Pair(Plain):
    def vector(self, x):
        return super().vector(x).reshape(2, -1)

class Squeezes(Plain):
    def vector(self, x):
        return F.adaptive_avg_pool2d(self.body(x), 1).squeeze()

class Overwrites(Plain):
    def forward(self, x):
        return self.head(x.mul_(2))

class InPlace(Plain):
    def vector(self, x):
        return torch.sigmoid(super().vector(x)).mul_(2)

class Leaves(Plain):
    def forward(self, x):
        if self.training:
            raise SystemExit("not in training")
        return self.head(x)

class Late(Plain):
    def vector(self, x):
        if not hasattr(self, "late"):
            self.late = nn.Linear(4, 4)
        return self.late(super().vector(x))

class Skips(Plain):
    def vector(self, x):
        return super().vector(x) if not self.training else x.flatten(1)[:, :4]

class BatchOf(Plain):
    def __init__(self, classes, in_channels):
        super().__init__(classes, in_channels)
        self.norm = nn.BatchNorm1d(4)

    def vector(self, x):
        return self.norm(super().vector(x))

class OwnStatistics(Plain):
    def __init__(self, classes, in_channels):
        super().__init__(classes, in_channels)
        self.body[1] = nn.BatchNorm2d(4, track_running_stats=False)

class NoBfloat16(Plain):
    def vector(self, x):
        maps = self.body(x)
        if maps.dtype == torch.bfloat16:
            raise TypeError("bfloat16")
        return maps.mean((2, 3))

class AuxLast(Plain):
    def __init__(self, classes, in_channels):
        super().__init__(classes, in_channels)
        self.aux = nn.Linear(4, classes)

class Lazy(Plain):
    def __init__(self, classes, in_channels):
        super().__init__(classes, in_channels)
        self.fc = nn.LazyLinear(classes)

class EarlyExit(Plain):
    def forward(self, x):
        if x.abs().max().item() > 100:
            return 2 * self.head(x)
        return self.head(x)

class Numpy(Plain):
    def forward(self, x):
        return self.head(x) + torch.from_numpy(x.detach().numpy()).mean()

class ExitsAtOnce(Plain):
    def forward(self, x):
        raise SystemExit(0)

class FeaturesFirst(Plain):
    def forward(self, x):
        return self.vector(x), self.head(x)

class Unlisted(Plain):
    def __init__(self, classes, in_channels):
        super().__init__(classes, in_channels)
        self.more = [nn.Linear(4, 4)]

    def forward(self, x):
        return self.fc(self.more[0](self.vector(x)))

class Unsaved(Plain):
    def state_dict(self, *args, **kwargs):
        return {}

def half(classes, in_channels):
    return Plain(classes, in_channels).half()

def on_meta(classes, in_channels):
    with torch.device("meta"):
        return Plain(classes, in_channels)

def scripted(classes, in_channels):
    return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(4, classes)))

def fails(classes, in_channels):
    raise RuntimeError("first line\\nsecond line")

class Tapped(TappedNet):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.conv, self.classifier = nn.Conv2d(in_channels, 3, 3, 2, 1), nn.Linear(48, classes)
        self.shapes = TapShapes(classes, 48, (3,), ((3,),))

    def taps(self, images):
        maps = self.conv(images).relu()
        vector = maps.view(len(maps), -1)
        return Out(self.classifier(vector), vector, [maps], [[maps]])
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of a module that can be imported, with the networks above."""
    folder, name, paths = tmp_path_factory.mktemp("nets"), f"looked{next(NUMBERS)}", sys.path[:]
    (folder / f"{name}.py").write_text(SOURCE)
    sys.path.append(str(folder))
    yield name
    sys.path[:] = paths
    sys.modules.pop(name, None)


def spec(module: str, network: str, **changes: Any) -> NetworkSpec:
    return NetworkSpec(model=f"{module}:{network}", place="student", **changes)


def see(module: str, network: str, **changes: Any) -> tuple[str, ...]:
    taps = {} if network == "Tapped" else {"taps": ("body",)}
    return look(spec(module, network, **taps), SHAPE, "cpu", "float32", **changes)


def test_a_look_leaves_noise_settings_and_other_networks_as_they_were(module: str) -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    mine = models.make(spec(module, "Aux"), **SHAPE)
    state = {name: value.clone() for name, value in mine.state_dict().items()}
    noise, threads = torch.get_rng_state(), torch.get_num_threads()
    others = random.getstate(), np.random.get_state()[1].copy()
    assert len(see(module, "Aux")) == 1
    assert torch.equal(torch.get_rng_state(), noise)
    assert random.getstate() == others[0]
    assert (np.random.get_state()[1] == others[1]).all()
    assert torch.get_num_threads() == threads
    assert mine.training
    assert all(torch.equal(state[name], value) for name, value in mine.state_dict().items())
    assert all(parameter.grad is None for parameter in mine.parameters())


def test_a_network_is_looked_at_once_in_a_process_and_said_once(module: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        first = see(module, "Records")
        built = len(sys.modules[module].BUILT)
        assert see(module, "Records") == first
    assert len(sys.modules[module].BUILT) == built
    assert [record.getMessage() for record in caplog.records] == list(first)
    assert all("\n" not in line for line in first)


def test_networks_that_come_with_hksd_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "_look", None)
    assert look(NetworkSpec(model="resnet8"), SHAPE) == ()


@pytest.mark.parametrize(
    ("network", "remark"),
    [
        ("Plain", None),
        ("FrozenBody", None),
        ("Safe", None),
        ("DoubleLogits", None),
        ("Lazy", None),
        ("EarlyExit", None),
        ("BatchOf", None),
        ("Aux", "returns a tuple of 2 in training mode: its logits are taken"),
        ("Records", "returns a Named of 2: its logits are taken"),
        ("Mapped", "returns a dict with out: its logits are taken"),
        ("Views", "works on contiguous maps alone"),
        ("Strides", "works on contiguous maps alone"),
        ("OwnStatistics", "answers an image in eval mode according to the other images"),
    ],
)
def test_what_can_be_trained_is_let_through_with_at_most_a_remark(
    network: str, remark: str | None, module: str
) -> None:
    found = see(module, network)
    assert len(found) == (remark is not None)
    assert all(line.startswith(f"student.model: {module}:{network} {remark}") for line in found)


FAULTS = {
    "NoGradient": "lets no gradient reach its weights: its forward works under",
    "Frozen": "has no weights that learn: set `requires_grad`",
    "RandomAlways": "answers the same images differently in eval mode",
    "Half": r"has weights in float64, .* let its factory return it with `\.float\(\)`",
    "Whole": "gives int64 in eval mode; logits are floating-point",
    "Broken": "gives NaN or infinite logits in training mode with its first weights",
    "Root": "gives gradients that are NaN or infinite in its first step",
    "Pair": r"fails on 3 images in eval mode: .* \(line \d+ of looked\d+\.py\)",
    "Squeezes": r"gives \(10,\) for one image in eval mode, where \(1, 10\) is due: .*`flatten\(1\)`",
    "Overwrites": "changes the images that it is given",
    "InPlace": "fails on 2 images backwards, in training mode: .*inplace operation",
    "Leaves": r"fails on 2 images in training mode: SystemExit: not in training \(line \d+",
    "ExitsAtOnce": r"cannot run on images \(.*\): SystemExit: 0 \(line \d+",
    "FeaturesFirst": r"returns a tuple of 2, of which what counts as logits is \(2, 4\) .* \d+ classes; it must",
    "Unlisted": r"computes with 2 weights that it does not show in `parameters\(\)`, .*nn\.ModuleList",
    "Unsaved": r"leaves unused, body\.0\.weight, body\.0\.bias out of its `state_dict\(\)`",
    "half": r"cannot run on images .*it has weights in float16: let its factory return it with `\.float\(\)`",
    "on_meta": r"returns weights without numbers \(made on the meta device\)",
    "scripted": "returns a TorchScript program, whose layers cannot be reached",
    "fails": r"failed: RuntimeError: first line \(line \d+ of",
    "Unnamed": r"gives a dict with a, b for 2 images in training mode, .*under the name `logits` or `out`",
}


@pytest.mark.parametrize("network", FAULTS)
def test_what_cannot_be_trained_is_told_with_its_key_its_line_and_a_cure(network: str, module: str) -> None:
    with pytest.raises(UserError, match=rf"^student\.model: {module}:{network} ({FAULTS[network]})") as caught:
        see(module, network)
    assert "\n" not in str(caught.value)


def test_a_tap_that_does_not_run_in_training_mode_is_named(module: str) -> None:
    with pytest.raises(UserError, match=rf"^student\.taps: 'body\.0' of {module}:Skips did not run in this pass"):
        look(spec(module, "Skips", taps=("body.0",)), SHAPE, "cpu", "float32")


def test_weights_that_come_with_the_first_images_are_refused(module: str) -> None:
    with pytest.raises(UserError, match=rf"^student\.model: {module}:Late makes late\.weight, late\.bias when"):
        models.sketch(spec(module, "Late"), **SHAPE)


def test_the_layer_that_may_be_the_classifier_is_named(module: str) -> None:
    with pytest.raises(UserError, match=r"^student\.classifier: 'aux' .*name the layer that does \(fc\?\)"):
        models.sketch(spec(module, "AuxLast"), **SHAPE)


def test_a_batch_of_one_image_is_tried_where_a_run_has_such(module: str) -> None:
    assert see(module, "BatchOf", batch_size=64) == ()
    with pytest.raises(UserError, match=r"fails on one image in training mode: .*train\.batch_size: 2 or more"):
        see(module, "BatchOf", batch_size=1)


def test_a_fault_of_bfloat16_alone_has_the_key_of_the_arithmetic(module: str) -> None:
    half = Precision("cpu", torch.bfloat16, "")
    arguments = (spec(module, "NoBfloat16"), (1, 10, 8), torch.device("cpu"), half)
    with pytest.raises(UserError, match=r"TypeError: bfloat16 .*set train\.precision to float32"):
        looking._look(*arguments, "auto", 2, True)
    assert see(module, "NoBfloat16") == ()


def test_a_teacher_that_does_not_learn_is_asked_only(module: str) -> None:
    place = NetworkSpec(model=f"{module}:Broken", place="teacher")
    assert look(place, SHAPE, "cpu", "float32", learns=False) == ()
    with pytest.raises(UserError, match=r"^teacher\.model: "):
        look(place, SHAPE, "cpu", "float32")


def test_a_faulty_network_is_told_before_the_teacher_is_trained(
    module: str, make_config: Make, digits: DataSet, tmp_path: Path
) -> None:
    for section in ("student", "teacher"):
        config = make_config(terms={"kd": {}}, **{section: {"model": f"{module}:NoGradient", "width": 1}})
        with pytest.raises(UserError, match=rf"^{section}\.model: .*no gradient"):
            fit(config, data=digits, cache_dir=tmp_path / "teachers")
        assert not (tmp_path / "teachers").exists()
    with pytest.raises(UserError, match=r"^teacher\.model: .*no gradient"):
        prepare(config, digits)


@pytest.mark.parametrize("network", ["Views", "Safe", "Mapped"])
def test_its_layout_and_its_main_output_hold_from_training_to_the_program_at_home(
    network: str, module: str, make_config: Make, make_data: Make, tmp_path: Path
) -> None:
    data: DataSet = make_data(train=64, validation=40)
    own = {"model": f"{module}:{network}", "width": 1, "taps": ["body"]}
    config = make_config(
        terms={"ce": {}, "kd": {}, "attention_transfer": {"weight": 1}},
        teacher=own | {"epochs": 1},
        student=own,
        train={"epochs": 1, "batch_size": 21},  # 63 and one image more
    )
    result = fit(config, data=data, out_dir=tmp_path / "run", cache_dir=tmp_path / "teachers")
    assert prepare(config, data, cache_dir=tmp_path / "teachers").cached
    assert export(config, result.student, data, tmp_path / "export", metadata={}).missing == {}
    student = models.make(config.student.spec(), **SHAPE)
    student.load_state_dict(result.student.state_dict())
    images = torch.rand(3, 8, 8, 1).permute(0, 3, 1, 2)
    mean, std = data.mean[0], data.std[0]
    with torch.no_grad():
        expected: Tensor = student.eval()((images - mean) / std)
    given = torch.export.load(tmp_path / "export" / "student.pt2").module()(images)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        ("EarlyExit", r"a branch in Python depends on what is in the images \(line \d+ of looked"),
        ("Counted", r"it fixes the number of images \(`len\(x\)` does"),
        ("Numpy", r"\.numpy\(\) is not supported .*\(line \d+ of looked"),
    ],
)
def test_what_torch_export_cannot_capture_is_told_in_one_line_and_nothing_else_is_printed(
    network: str, reason: str, module: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        UserError, match=rf"^student\.model: {module}:{network} cannot be exported, .*{reason}"
    ) as caught:
        rehearse(spec(module, network), **SHAPE)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_rehearsal_leaves_no_trace_in_the_noise(module: str) -> None:
    before = torch.get_rng_state()
    rehearse(spec(module, "Aux"), **SHAPE)
    rehearse(NetworkSpec(model="resnet8"), **SHAPE)
    assert torch.equal(torch.get_rng_state(), before)
