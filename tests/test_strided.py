"""Strided 1x1 convolutions of few channels, on whose gradient oneDNN writes outside of its memory."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hksd import models
from hksd.kernels.strided import FEW, Seen, Strided, at_risk, guard
from hksd.models.taps import Out, TappedNet, TapShapes

RUN = """
data: {name: digits, validation: 0.25, limit: 200}
student: {model: resnet8, width: 0.25}
terms: {ce: {weight: 1.0}}
train: {epochs: 2, batch_size: 64, precision: float32}
"""


@pytest.mark.parametrize("stride", [2, (1, 3), 4])
@pytest.mark.parametrize("more", [{}, {"padding": 1}, {"padding": 1, "padding_mode": "reflect"}, {"groups": 2}])
def test_a_guarded_convolution_gives_the_same_and_so_do_its_gradients(stride, more) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 1, stride, **more).double()
    images = torch.randn(2, 6, 9, 11, dtype=torch.float64)
    expected, given = images.clone().requires_grad_(), images.clone().requires_grad_()
    wanted = conv(expected)
    parameters = [part for _, part in conv.named_parameters()]
    grads = torch.autograd.grad(wanted.square().sum(), [expected, *parameters])
    guard(conv)
    assert type(conv) is Strided
    found = conv(given)
    torch.testing.assert_close(found, wanted)
    for got, want in zip(torch.autograd.grad(found.square().sum(), [given, *parameters]), grads, strict=True):
        torch.testing.assert_close(got, want)


class ByHand(nn.Module):
    """A network that calls a convolution at risk as a function."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.filters = nn.Parameter(torch.randn(8, 4, 1, 1))
        self.head = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.conv2d(self.first(images).relu(), self.filters, stride=2).mean((2, 3)))


class AsModule(ByHand):
    """The same with a module."""

    def __init__(self, classes: int = 10):
        super().__init__(classes)
        self.second = nn.Conv2d(4, 8, 1, 2)
        del self.filters

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images).relu()).mean((2, 3)))


def test_none_of_ours_and_none_of_a_users_reaches_torch_with_one_at_risk() -> None:
    here = f"{__name__}:AsModule"
    for name, size, width in (
        ("resnet8", 8, 0.25),
        ("wrn_16_1", 32, 0.5),
        ("cifar_shufflenet_v1", 64, 1),
        (here, 8, 1),
    ):
        network = models.build(name, in_channels=1, classes=10, width=width, image_size=size)
        with Seen() as seen:
            network(torch.randn(2, 1, size, size).to(memory_format=torch.channels_last))
        assert not seen.at_risk, name
        names = [type(module) for module in network.modules()]
        assert Strided in names, name


def test_a_network_that_calls_one_as_a_function_runs_on_contiguous_maps() -> None:
    network = models.build(f"{__name__}:ByHand", in_channels=1, classes=10, image_size=8)
    assert network.contiguous
    assert not models.build(f"{__name__}:AsModule", in_channels=1, classes=10, image_size=8).contiguous


class OwnTaps(TappedNet):
    """A network with taps of its own that calls a convolution at risk as a function, or `view`."""

    def __init__(self, classes: int = 10, by: str = "function"):
        super().__init__()
        self.by, self.shapes = by, TapShapes(classes, 8, (4,), ((4,),))
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.filters = nn.Parameter(torch.randn(8, 4, 1, 1))
        self.classifier = nn.Linear(8, classes)

    def taps(self, images: Tensor) -> Out:
        maps = self.first(images).relu()
        wide = F.conv2d(maps, self.filters, stride=2 if self.by == "function" else 1)
        flat = wide.view(len(wide), -1) if self.by == "view" else wide.flatten(1)
        vector = flat.view(len(wide), 8, -1).mean(2)
        return Out(self.classifier(vector), vector, [maps], [[maps]])


def by_view(classes: int = 10) -> OwnTaps:
    return OwnTaps(classes, "view")


def by_neither(classes: int = 10) -> OwnTaps:
    return OwnTaps(classes, "neither")


@pytest.mark.parametrize(("name", "contiguous"), [("OwnTaps", True), ("by_view", True), ("by_neither", False)])
def test_so_does_one_with_taps_of_its_own_and_its_weights_keep_their_names(name: str, contiguous: bool) -> None:
    network = models.build(f"{__name__}:{name}", in_channels=1, classes=10, image_size=8)
    assert network.contiguous == contiguous
    assert isinstance(network, OwnTaps)
    assert list(network.state_dict()) == list(OwnTaps().state_dict())
    images = torch.randn(2, 8, 8, 1).permute(0, 3, 1, 2)
    for answering in (network, copy.deepcopy(network)):
        assert answering(images).shape == (2, 10)
        assert (answering.taps(images).stages[0].stride()[1] != 1) == contiguous


def test_one_of_many_channels_or_without_stride_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(FEW, 4, 1, 2), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, 2))
    guard(network)
    assert [type(module) for module in network] == [nn.Conv2d] * 3
    assert not any(at_risk(module.weight.shape, tuple(module.stride)) for module in network)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN is not in this torch")
def test_a_narrow_student_trains_in_single_precision_without_our_kernels_on_avx2(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    told = {**os.environ, "HKSD_KERNELS": "0", "ONEDNN_MAX_CPU_ISA": "AVX2", "MALLOC_PERTURB_": "165"}
    command = [sys.executable, "-m", "hksd_search.cli", "train", "run.yaml", "--runs", "runs"]
    done = subprocess.run(command, cwd=tmp_path, env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
