"""Layers under two names and tied weights: looked at, trained, saved once, loaded, exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from hksd import models
from hksd.data import DataSet
from hksd.deploy.export import export
from hksd.errors import UserError
from hksd.fit import fit
from hksd.models import weights
from hksd.models.size import size_of
from hksd.modes.prune import Prune, PruneConfig

Make = Callable[..., Any]

SOURCE = '''
import torch
from torch import nn

class TwoNames(nn.Module):
    def __init__(self, classes, in_channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_channels, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.features = nn.Sequential(self.conv1, self.bn1, nn.ReLU(), self.conv2, self.bn2, nn.ReLU())
        self.fc = nn.Linear(8, classes)
        self.head = nn.Sequential(nn.Flatten(), self.fc)
    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))

class OneBlockThrice(nn.Module):
    def __init__(self, classes, in_channels):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, 2, 1)
        block = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.ModuleList([block] * 3)
        self.fc = nn.Linear(8, classes)
    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))

class Tied(nn.Module):
    def __init__(self, classes, in_channels):
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.two.weight = self.one.weight
        self.stem, self.fc = nn.Conv2d(in_channels, 8, 3, 2, 1), nn.Linear(8, classes)
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("again", self.scale)
    def forward(self, x):
        return self.fc(self.two(self.one(self.stem(x)).relu()).relu().mean((2, 3)) * self.again)

class OneMemory(nn.Module):
    """Two parameters that look into one memory."""
    def __init__(self, classes, in_channels):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(in_channels, 8, 3, 2, 1), nn.Linear(8, classes)
        whole = torch.randn(2, 8)
        self.shift, self.slope = nn.Parameter(whole[0]), nn.Parameter(whole[1])
    def forward(self, x):
        return self.fc(self.stem(x).mean((2, 3)) * self.slope + self.shift)
'''
NETWORKS = {"TwoNames": 10, "OneBlockThrice": 8, "Tied": 7, "OneMemory": 6}  # tensors that are saved


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module in the working directory."""
    name = f"shared{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def make(model: str, **more: Any) -> models.taps.TappedNet:
    return models.build(model, in_channels=1, classes=10, image_size=8, **more)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_look_leaves_the_network_as_it_was(name: str, module: str) -> None:
    network = make(f"{module}:{name}")
    assert {value.device.type for value in network.state_dict(keep_vars=True).values()} == {"cpu"}
    bare = network.bare
    fresh = type(bare)(classes=10, in_channels=1)
    shared = [[len(group) for group in weights.Names(one).groups] for one in (bare, fresh)]
    assert shared[0] == shared[1]  # what was shared still is, and nothing else
    size = size_of(models.NetworkSpec(model=f"{module}:{name}"), in_channels=1, classes=10, image_size=8)
    assert size.params == sum(parameter.numel() for parameter in fresh.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_saved_once_and_load_again(name: str, module: str, tmp_path: Path) -> None:
    network = make(f"{module}:{name}").eval()
    weights.save(tmp_path / "x.safetensors", network, {})
    with safe_open(str(tmp_path / "x.safetensors"), framework="pt") as file:
        groups = weights.Names(network.bare).groups
        assert sorted(file.keys()) == sorted(group[0] for group in groups)
    torch.save({"model": network.bare.state_dict()}, tmp_path / "x.pt")
    images = torch.randn(3, 1, 8, 8)
    for path in ("x.safetensors", "x.pt"):  # the latter has every name
        again = make(f"{module}:{name}").eval()
        weights.load_into(again, tmp_path / path)
        with torch.no_grad():
            assert torch.equal(again(images), network(images))


def test_weights_that_differ_where_the_network_shares_them_are_refused(module: str, tmp_path: Path) -> None:
    state = make(f"{module}:Tied").bare.state_dict()
    torch.save(state | {"two.weight": state["two.weight"] + 1}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"one\.weight and two\.weight are one tensor in the network and differ here"):
        weights.load_into(make(f"{module}:Tied"), tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["TwoNames", "Tied"])
def test_such_a_run_is_trained_resumed_saved_and_exported(
    name: str, module: str, make_config: Make, make_data: Make, tmp_path: Path
) -> None:
    data: DataSet = make_data(train=32, validation=20)
    config = make_config(
        terms={"ce": {}}, teacher=None, student={"model": f"{module}:{name}", "width": 1}, train={"epochs": 2}
    )
    once = fit(config, data=data)
    stopped = fit(config, data=data, out_dir=tmp_path / "run", on_epoch=lambda _: "stop")
    assert stopped.stopped
    result = fit(config, data=data, out_dir=tmp_path / "run")
    assert result.resumed_at == 1
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(result.student.eval()(images), once.student.eval()(images))
    export(config, result.student, data, tmp_path / "export", metadata={})
    again = make(f"{module}:{name}").eval()
    weights.load_into(again, tmp_path / "export" / "student.safetensors")
    with torch.no_grad():
        assert torch.equal(again(images), result.student(images))


def test_every_name_of_a_layer_can_be_tapped_and_a_descriptor_goes_under_all(module: str) -> None:
    network = make(f"{module}:TwoNames", taps=("conv1", "features.5"), descriptor=3)
    assert network.shapes.stages == (8, 8)
    assert network.shapes.embedding == 3
    assert network.bare.head[1] is network.bare.fc  # type: ignore[index,union-attr]
    assert [tuple(stage.shape) for stage in network.taps(torch.randn(2, 1, 8, 8)).stages] == [
        (2, 8, 4, 4),
        (2, 8, 2, 2),
    ]


def test_a_tied_weight_is_pruned_once(module: str) -> None:
    network = make(f"{module}:Tied")
    layers = [part for part in network.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    assert len(Prune(PruneConfig(), network, 4).weights) == len(layers) - 1
