"""Networks of the user's own: a module file in the working directory, and everything that can be wrong with it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hksd import models
from hksd.config.networks import StudentConfig
from hksd.config.run import load
from hksd.data import DataSet
from hksd.deploy.export import export
from hksd.errors import ConfigError, UserError
from hksd.fit import fit
from hksd.models import NetworkSpec, weights
from hksd.models.size import size_of
from hksd.models.user import source_hash
from hksd.teacher.prepare import prepare

Make = Callable[..., Any]
NUMBERS = itertools.count()

SOURCE = '''
import torch
from torch import nn
from hksd.models.taps import Out, TappedNet, TapShapes

class Small(nn.Module):
    def __init__(self, classes, in_channels, features=4):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(in_channels, features, 3, 2, 1), nn.BatchNorm2d(features), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(features, 2 * features, 3, 2, 1), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(2 * features, classes)
        self.unused = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.head(self.pool(self.second(self.first(x))))

def small(num_classes, in_channels, width=1.0):
    return Small(num_classes, in_channels, round(8 * width))

def fixed(classes=10, in_channels=1):
    return Small(classes, in_channels)

def thousand():
    return Small(1000, 1)

def three_channels(classes):
    return Small(classes, 3)

SCALE = torch.tensor(2.0)

class Scaled(Small):
    def forward(self, x):
        return super().forward(x * SCALE)

class Wayward(Small):
    """Asks for numbers in its pass, which the meta device has not."""
    def forward(self, x):
        if x.sum().item() == float("inf"):
            raise RuntimeError
        return super().forward(x)

def wayward(classes, in_channels):
    return Wayward(classes, in_channels)

class HeadFirst(Small):
    """Its last linear layer is not its classifier."""
    def __init__(self, classes, in_channels):
        super().__init__(classes, in_channels)
        self.gate = nn.Linear(8, 8)

    def forward(self, x):
        vector = self.pool(self.second(self.first(x)))
        return self.head(vector * self.gate(vector).sigmoid())

def head_first(classes, in_channels):
    return HeadFirst(classes, in_channels)

def no_linear(classes, in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def no_network(classes):
    return "network"

def two_outputs(classes, in_channels):
    class Two(Small):
        def forward(self, x):
            return {"a": super().forward(x), "b": x}
    return Two(classes, in_channels)

def wants_more(classes, depth):
    return None

def breaks(classes):
    raise KeyError("inside")

class Tapped(TappedNet):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.conv, self.classifier = nn.Conv2d(in_channels, 3, 3, 2, 1), nn.Linear(3, classes)
        self.shapes = TapShapes(classes, 3, (3,), ((3,),))

    def taps(self, images):
        maps = self.conv(images).relu()
        vector = maps.mean((2, 3))
        return Out(self.classifier(vector), vector, [maps], [[maps]])
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of a module that lies in the working directory."""
    name, paths, known = f"nets{next(NUMBERS)}", sys.path[:], set(sys.modules)
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.path[:] = paths
    for other in set(sys.modules) - known:
        if other.startswith("nets"):
            del sys.modules[other]


def make(model: str, **changes: Any) -> Any:
    arguments = {"in_channels": 1, "classes": 10, "image_size": 8, **changes}
    return models.build(model, **arguments)


def test_a_factory_gives_a_network_with_the_taps_that_are_named(module: str) -> None:
    network = make(f"{module}:small", width=0.5, taps=("first", "second"))
    assert network.shapes == models.taps.TapShapes(10, 8, (4, 8), ((4,), (8,)))
    out = network.taps(torch.randn(2, 1, 8, 8))
    assert torch.equal(network.classifier(out.embedding), out.logits)
    assert [tuple(stage.shape) for stage in out.stages] == [(2, 4, 4, 4), (2, 8, 2, 2)]
    assert make(f"{module}:small").shapes.stages == ()
    assert make(f"{module}:Small").shapes.embedding == 8  # a class is a factory too


def test_a_network_that_needs_numbers_is_measured_on_the_cpu_and_draws_nothing(module: str) -> None:
    size = {"in_channels": 1, "classes": 10, "image_size": 8}
    torch.manual_seed(1)
    found = size_of(StudentConfig(model=f"{module}:wayward", taps=("second",)).spec(), **size)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert found == size_of(StudentConfig(model=f"{module}:fixed").spec(), **size)
    assert found.params == sum(p.numel() for p in make(f"{module}:wayward").parameters())


def test_a_first_look_leaves_the_constants_of_a_module_usable(module: str) -> None:
    spec = NetworkSpec(model=f"{module}:Scaled")
    models.sketch(spec, in_channels=1, classes=10, image_size=8)
    assert sys.modules[module].SCALE.device.type == "cpu"
    assert make(f"{module}:Scaled")(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_a_network_written_for_hksd_shows_its_own_taps(module: str) -> None:
    assert make(f"{module}:Tapped").shapes.stages == (3,)
    with pytest.raises(UserError, match=r"^taps: .*is a TappedNet and decides this itself"):
        make(f"{module}:Tapped", taps=("conv",))


def test_the_classifier_can_be_named(module: str) -> None:
    with pytest.raises(UserError, match=r"^classifier: 'gate' of .*gives \(2, 8\); it must read"):
        make(f"{module}:head_first")
    network = make(f"{module}:head_first", classifier="head", taps=("second",), descriptor=3)
    assert network.shapes.embedding == 3
    assert network.classifier_path == "head.classifier"


FAULTS = [
    ("{m}x:small", {}, r"^model: there is no module '{m}x'; did you mean '{m}'\? \(it must be installed, or lie in"),
    ("{m}.part:small", {}, r"^model: there is no module '{m}\.part'"),
    ("{m}broken:small", {}, r"^model: {m}broken cannot be imported: ZeroDivisionError"),
    ("{m}lacking:small", {}, r"^model: {m}lacking cannot be imported: No module named 'absent_package'"),
    ("{m}:smal", {}, r"^model: {m} has no factory 'smal'; did you mean 'small'"),
    ("{m}:no_network", {}, r"^model: {m}:no_network must return an nn\.Module \(got str\)"),
    ("{m}:wants_more", {}, r"^model: {m}:wants_more needs depth, which hksd does not give \(it gives classes, num_"),
    ("{m}:breaks", {}, r"^model: {m}:breaks failed: KeyError: 'inside'"),
    ("{m}:thousand", {}, r"^model: {m}:thousand tells 1000 classes apart, but the data has 10; let its factory take"),
    ("{m}:two_outputs", {}, r"^model: {m}:two_outputs gives a dict with a, b for two images; it must return log"),
    ("{m}:three_channels", {}, r"^model: {m}:three_channels cannot run on images \(1, 8, 8\): "),
    ("{m}:no_linear", {}, r"^classifier: {m}:no_linear has no nn\.Linear"),
    ("{m}:fixed", {"width": 0.5}, r"^width: {m}:fixed takes no `width`; leave the key out \(got 0\.5\)"),
    ("{m}:small", {"taps": ("frist",)}, r"^taps: {m}:small has no module 'frist'; did you mean 'first'"),
    ("{m}:small", {"taps": ("pool",)}, r"^taps: 'pool' of {m}:small gives \(2, 16\), no map \(N, F, H, W\)"),
    ("{m}:small", {"taps": ("unused",)}, r"^taps: 'unused' of {m}:small does not run"),
]


@pytest.mark.parametrize(("model", "changes", "message"), FAULTS, ids=[m for _, _, m in FAULTS])
def test_every_fault_is_told_with_its_key_before_training(
    model: str, changes: dict[str, Any], message: str, module: str, tmp_path: Path
) -> None:
    (tmp_path / f"{module}broken.py").write_text("1 / 0")
    (tmp_path / f"{module}lacking.py").write_text("import absent_package")
    model, message = (text.replace("{m}", module) for text in (model, message))
    with pytest.raises(UserError, match=message):
        make(model, **changes)
    changes = {"descriptor" if key == "descriptor_dim" else key: value for key, value in changes.items()}
    spec = NetworkSpec(model=model, place="student", **changes)
    with pytest.raises(UserError, match=message.replace("^", r"^student\.")):
        models.sketch(spec, in_channels=1, classes=10, image_size=8)


@pytest.mark.parametrize("name", ["a:", ":b", "a b:c", "a:b:c", "a.:b", "1a:b", "a/b:c"])
def test_a_name_that_is_no_path_to_a_factory_is_a_fault_of_the_file(name: str, make_config: Make) -> None:
    with pytest.raises(ConfigError, match=r"student\.model: .*package\.module:factory"):
        make_config(student={"model": name})


def test_a_run_with_networks_of_ones_own_is_trained_saved_exported_and_loaded(
    module: str, make_config: Make, make_data: Make, tmp_path: Path
) -> None:
    data: DataSet = make_data(train=64, validation=40)
    taps = ["first", "second"]
    config = make_config(
        terms={"ce": {}, "squeeze": {"depth": 1}},
        teacher={"model": f"{module}:small", "width": 2, "taps": taps, "epochs": 1},
        student={"model": f"{module}:fixed", "width": 1, "taps": taps},
        train={"epochs": 1, "batch_size": 32},
    )
    result = fit(config, data=data, out_dir=tmp_path / "run", cache_dir=tmp_path / "teachers")
    assert prepare(config, data, cache_dir=tmp_path / "teachers").cached
    export(config, result.student, data, tmp_path / "export", metadata={})
    again = load(tmp_path / "export" / "best.yaml")
    assert again == config
    network = models.make(again.student.spec(), in_channels=1, classes=10, image_size=8)
    weights.load_into(network, tmp_path / "run" / "student.safetensors")
    bare = sys.modules[module].fixed()
    bare.load_state_dict(weights.read(tmp_path / "run" / "student.safetensors")[0])
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(network.eval()(images), result.student(images))
        assert torch.equal(bare.eval()(images), result.student(images))


def test_a_teacher_whose_code_was_edited_is_another_teacher(module: str, tmp_path: Path) -> None:
    before = source_hash(f"{module}:small")
    assert source_hash(f"{module}:small") == before
    (tmp_path / f"{module}.py").write_text(SOURCE + "# edited\n")
    assert source_hash(f"{module}:small") != before


def test_a_faulty_student_is_told_before_the_teacher_is_trained(
    module: str, make_config: Make, digits: DataSet, tmp_path: Path
) -> None:
    config = make_config(terms={"kd": {}}, student={"model": f"{module}:thousand", "width": 1})
    with pytest.raises(UserError, match=r"^student\.model: .*1000 classes"):
        fit(config, data=digits, cache_dir=tmp_path / "teachers")
    assert not (tmp_path / "teachers").exists()


# Two commands in one process, which imports torch once.
TWICE = """
import sys
from hksd_search.cli import main
for override in sys.argv[1:]:
    sys.argv = ["hksd", "train", "run.yaml", "--set", override]
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    print(f"exit code {code}", file=sys.stderr)
"""


def test_the_command_line_finds_the_module_in_the_working_directory_and_ends_with_2_on_a_fault(
    module: str, child: Make, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(
        f"data: {{name: digits, limit: 60}}\nstudent: {{model: '{module}:fixed', taps: [first]}}\n"
        "terms: {ce: {}}\ntrain: {epochs: 1, device: cpu}\n"
    )
    # -P keeps the working directory out of sys.path, as the installed command does.
    _, errors = child(TWICE, "student.taps=[first]", "student.taps=[frist]", cwd=tmp_path, flags=["-P"]).communicate(
        timeout=120
    )
    good, bad = errors.split("exit code 0\n")
    assert "error" not in good
    place = "error: run.yaml: student.taps (--set): "
    assert f"{place}{module}:fixed has no module 'frist'; did you mean 'first'" in bad
    assert bad.endswith("exit code 2\n")
    assert "Traceback" not in errors
