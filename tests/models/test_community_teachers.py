"""Teachers of RepDistiller and mdistiller: their files, under their names, fill the networks of ours that are the same.

The names are theirs; that the networks compute the same logits was measured once with their code (docs/LOG.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hksd import models
from hksd.errors import UserError
from hksd.models import foreign, weights
from hksd.models.checkpoints import WeightSet

# Their names of our layers: (ours, theirs) for `re.sub`, in turn; stages count from 1 there.
RESNET = (
    (r"^stem\.0\.", "conv1."),
    (r"^stem\.1\.", "bn1."),
    (r"^stages\.(\d+)\.", r"layer<\1>."),
    (r"\.norm(\d)\.", r".bn\1."),
    (r"\.shortcut\.", ".downsample."),
    (r"^classifier\.", "fc."),
)
BOTTLENECKS = (*RESNET[:4], (r"^classifier\.", "linear."))
WIDE = (
    (r"^stem\.", "conv1."),
    (r"^stages\.(\d+)\.", r"block<\1>.layer."),
    (r"\.norm(\d)\.", r".bn\1."),
    (r"\.shortcut\.", ".convShortcut."),
    (r"^tail\.0\.", "bn1."),
    (r"^classifier\.", "fc."),
)
MOBILE = (
    (r"^stem\.", "conv1."),
    (r"\.layers\.", ".conv."),
    (r"^tail\.", "conv2."),
    (r"^classifier\.", "classifier.0."),
)
SPLIT = (
    *RESNET[:3],
    (r"left\.(\d)\.0\.", r"conv(\1+1)."),
    (r"left\.(\d)\.1\.", r"bn(\1+1)."),
    (r"right\.(\d)\.0\.", r"conv(\1+3)."),
    (r"right\.(\d)\.1\.", r"bn(\1+3)."),
    (r"branch\.(\d)\.0\.", r"conv(\1+1)."),
    (r"branch\.(\d)\.1\.", r"bn(\1+1)."),
    (r"^tail\.0\.", "conv2."),
    (r"^tail\.1\.", "bn2."),
    (r"^classifier\.", "linear."),
)
FAMILIES = {
    **{f"resnet{n}": RESNET for n in (8, 14, 20, 32, 44, 56, 110)},
    **dict.fromkeys(("resnet8x4", "resnet32x4"), RESNET),
    "cifar_resnet50": BOTTLENECKS,
    **{f"wrn_{n}": WIDE for n in ("16_1", "16_2", "40_1", "40_2")},
    "cifar_mobilenet_v2": MOBILE,
    "cifar_shufflenet_v1": BOTTLENECKS,
    "cifar_shufflenet_v2": SPLIT,
}
VGG = ("vgg8", "vgg11", "vgg13", "vgg16", "vgg19")  # theirs: block0.0, .1, .3, .4, ..., our blocks in one row
MOBILE_BLOCKS = (1, 2, 3, 4, 3, 3, 1)  # blocks of their seven groups, which are our four stages


def theirs(model: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state of ours under the names that their code gives."""
    named = {}
    row = -1
    group = [f"blocks.{i}.{j}." for i, count in enumerate(MOBILE_BLOCKS) for j in range(count)]
    places: dict[str, str] = {}
    for name, value in state.items():
        other = name
        if model in VGG and name.startswith("stages."):
            stage, block, layer, kind = name.removeprefix("stages.").split(".")
            row = int(layer) - (1 if stage != "0" and block == "0" and int(stage) <= 3 else 0)
            other = f"block{stage}.{3 * int(block) + row}.{kind}"
        if model == "cifar_mobilenet_v2" and name.startswith("stages."):
            place = ".".join(name.split(".")[:3]) + "."
            if place not in places:
                places[place] = group[len(places)]
            other = name.replace(place, places[place])
        for ours, their in FAMILIES.get(model, ()):
            other = re.sub(ours, their, other)
        other = re.sub(r"<(\d+)>", lambda found: str(int(found[1]) + 1), other)
        other = re.sub(r"\((\d)\+(\d)\)", lambda found: str(int(found[1]) + int(found[2])), other)
        named[other] = value
    assert len(named) == len(state)
    return named


def built(model: str, seed: int = 0) -> models.taps.TappedNet:
    torch.manual_seed(seed)
    return models.build(model, in_channels=3, classes=100, image_size=32)


# First, some and last names of theirs, as their code prints them: the rules above are held to these.
SEEN = {
    "resnet8": ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "fc.bias"],
    "cifar_resnet50": ["layer1.0.shortcut.0.weight", "layer4.2.bn3.bias", "linear.weight"],
    "wrn_16_2": ["conv1.weight", "block1.layer.0.bn1.weight", "block1.layer.0.convShortcut.weight", "bn1.bias"],
    "vgg13": ["block0.0.weight", "block0.1.weight", "block0.3.weight", "block4.4.running_var", "classifier.bias"],
    "cifar_mobilenet_v2": ["conv1.0.weight", "blocks.0.0.conv.0.weight", "blocks.6.0.conv.7.bias", "classifier.0.bias"],
    "cifar_shufflenet_v1": ["conv1.weight", "layer3.3.bn3.weight", "linear.bias"],
    "cifar_shufflenet_v2": ["layer1.0.conv5.weight", "layer1.1.conv3.weight", "layer3.0.bn1.weight", "bn2.weight"],
}


def taken(model: str, state: dict[str, Tensor]) -> list[foreign.Fit]:
    """What the order of a state gives the network of that name."""
    return foreign.fits([WeightSet("model", state)], foreign.Names(uninitialised(model)), by_order=True)


def uninitialised(model: str) -> models.taps.TappedNet:
    spec = models.NetworkSpec(model=model)
    return models.sketch(spec, in_channels=3, classes=100, image_size=32).to_empty(device="cpu")


@pytest.mark.parametrize("model", [*FAMILIES, *VGG])
def test_every_tensor_of_their_teacher_finds_its_place_in_our_network(model: str) -> None:
    source = uninitialised(model).state_dict()
    state = theirs(model, source)
    assert set(SEEN.get(model, ())) <= set(state)
    (fit,) = taken(model, state)
    assert all(fit.tensors[name] is value for name, value in source.items() if not name.endswith("num_batches_tracked"))
    assert not fit.left_out


@pytest.mark.parametrize("counters", [True, False])
def test_their_file_is_loaded_and_that_its_order_counts_is_said(
    counters: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = built("resnet8", 1).eval()
    state = theirs("resnet8", source.state_dict())
    state = {name: value for name, value in state.items() if counters or not name.endswith("num_batches_tracked")}
    content = {"epoch": 240, "model": state, "best_acc": torch.tensor(72.3)}
    torch.save(content, tmp_path / "ckpt_epoch_240.pth", _use_new_zipfile_serialization=False)
    network = built("resnet8").eval()
    weights.load_into(network, tmp_path / "ckpt_epoch_240.pth")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(images), source(images))
    (record,) = caplog.records
    assert "taken by their order" in record.getMessage()


def test_a_student_of_mdistiller_is_taken_out_of_its_distiller(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student, teacher = built("resnet8", 1), built("resnet14", 2)
    distiller = {
        **{f"module.student.{name}": value for name, value in theirs("resnet8", student.state_dict()).items()},
        **{f"module.teacher.{name}": value for name, value in theirs("resnet14", teacher.state_dict()).items()},
        "module.embed_s.linear.weight": torch.ones(3, 3),
    }
    torch.save({"epoch": 3, "model": distiller, "best_acc": 71.0}, tmp_path / "latest")
    for model, source in (("resnet8", student), ("resnet14", teacher)):
        network = built(model)
        weights.load_into(network, tmp_path / "latest")
        assert torch.equal(network.state_dict()["classifier.weight"], source.state_dict()["classifier.weight"])
    assert "'model.module.student' are taken" in caplog.text
    assert "left out: 'model.module.teacher' (77), 'model.module.embed_s' (1)" in caplog.text


def test_their_teacher_of_another_network_is_told_by_our_name(tmp_path: Path) -> None:
    torch.save({"model": theirs("wrn_40_2", built("wrn_40_2").state_dict())}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="they are of wrn_40_2 for 100 classes"):
        weights.load_into(built("resnet56"), tmp_path / "x.pth")


def swapped(name: str, one: str, two: str) -> str:
    return name.replace(one, "?").replace(two, one).replace("?", two)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: swapped(name, "conv1.", "conv2."),  # the second convolution first: shapes agree within a stage
        lambda name: name.replace("layer1.0.conv2.", "layer1.0.downsample."),
        lambda name: name.replace("running_mean", "mean"),
        lambda name: name.replace("bn1.weight", "bn9.weight"),  # a weight that is none of its layer's
    ],
    ids=["numbers swapped", "a shortcut elsewhere", "another kind", "another layer"],
)
def test_an_order_that_names_speak_against_is_not_taken(rename: Callable[[str], str]) -> None:
    state = theirs("resnet8", uninitialised("resnet8").state_dict())
    assert taken("resnet8", state)
    assert not taken("resnet8", {rename(name): value for name, value in state.items()})


def test_another_order_is_not_taken() -> None:
    state = theirs("resnet8", uninitialised("resnet8").state_dict())
    assert not taken("resnet8", dict(sorted(state.items())))
