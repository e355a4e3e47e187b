"""Families for small images: what every network of them keeps to, at any width and size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hksd import models
from hksd.data import DataSet
from hksd.deploy.export import export
from hksd.errors import UserError
from hksd.fit import fit
from hksd.models import MODELS, NetworkSpec
from hksd.models.staged import StagedNet, shown

Make = Callable[..., Any]
OWN = [name for name, entry in MODELS.items() if not entry.by_path]
# One of each, and the width at which it is quick.
FAMILIES = {
    "resnet8": 0.25,
    "resnet8x4": 0.1,
    "cifar_resnet50": 0.02,
    "wrn_16_1": 0.25,
    "vgg8": 0.05,
    "cifar_mobilenet_v2": 0.2,
    "cifar_shufflenet_v1": 0.1,
    "cifar_shufflenet_v2": 0.1,
}
STAGES = {"cifar_resnet50": 4, "vgg": 5, "cifar_mobilenet": 4}


def small(name: str, **changes: Any) -> StagedNet:
    arguments = {"in_channels": 1, "classes": 4, "width": FAMILIES[name], "image_size": 8, **changes}
    network = models.build(name, **arguments)
    assert isinstance(network, StagedNet)
    return network


@pytest.mark.parametrize(
    ("name", "width", "pixels"),
    [(name, *form) for name in OWN for form in ((1.0, 32), (0.3, 8))]
    + [(name, *form) for name in FAMILIES for form in ((1.0, 8), (1.0, 64), (0.01, 8))],
)
def test_the_shapes_that_a_network_states_are_those_of_its_taps(name: str, width: float, pixels: int) -> None:
    spec = NetworkSpec(model=name, width=width, descriptor=None if width == 1.0 else 6)
    with torch.device("meta"):
        network = models.make(spec, in_channels=3, classes=7, image_size=pixels).eval()
        out = network.taps(torch.empty(2, 3, pixels, pixels))
    shapes = network.shapes
    assert len(shapes.stages) == next((n for start, n in STAGES.items() if name.startswith(start)), 3)
    assert out.logits.shape == (2, 7) == (2, shapes.classes)
    assert out.embedding.shape == (2, shapes.embedding)
    assert tuple(stage.shape[1] for stage in out.stages) == shapes.stages
    assert tuple(tuple(block.shape[1] for block in stage) for stage in out.blocks) == shapes.blocks
    for stage, blocks in zip(out.stages, out.blocks, strict=True):
        assert blocks[-1] is stage
        assert {block.shape for block in blocks} == {stage.shape}
    sizes = [stage.shape[-1] for stage in out.stages]
    assert sizes == sorted(sizes, reverse=True)


def test_blocks_of_other_channels_than_their_stage_are_not_shown() -> None:
    assert [shown(counts) for counts in ([4], [4, 4], [2, 4, 4], [4, 2, 4], [4, 4, 2])] == [1, 2, 2, 1, 1]
    assert small("cifar_mobilenet_v2", width=1.0).shapes.blocks == ((12, 12), (16,) * 3, (48,) * 3, (160,))


@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize("descriptor", [None, 5])
def test_the_logits_are_what_the_classifier_reads_and_every_weight_learns(name: str, descriptor: int | None) -> None:
    network = small(name, descriptor=descriptor)
    images = torch.randn(3, 1, 8, 8)
    out = network.taps(images)
    assert torch.equal(network.classifier(out.embedding), out.logits)
    assert network.bare.get_submodule(network.classifier_path) is network.classifier
    for stage in out.stages:
        stage.retain_grad()
    out.logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert all(stage.grad is not None and stage.grad.any() for stage in out.stages)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_maps_have_no_negative_values_unless_their_block_ends_without_a_relu(name: str) -> None:
    with torch.no_grad():
        out = small(name, width=0.5).eval().taps(torch.randn(2, 1, 8, 8))
    linear = name in ("wrn_16_1", "cifar_mobilenet_v2")
    assert all((stage.min() < 0) == linear for stage in out.stages)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_weights_come_from_torchs_generator_alone(name: str) -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(small(name).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_images_that_are_too_small_for_vgg_are_told_before_training_with_the_cure(make_config: Make) -> None:
    config = make_config(student={"model": "vgg11"})
    with pytest.raises(UserError, match=r"^student\.model: vgg11 halves images 3 times.*data\.image_size to 8"):
        models.make(config.student.spec(), in_channels=1, classes=10, image_size=4)
    with pytest.raises(UserError, match="vgg8 halves"):
        models.build("vgg8", in_channels=3, classes=10, image_size=7)
    models.build("vgg8", in_channels=3, classes=10, image_size=8, width=0.1)


@pytest.mark.parametrize("width", [0.01, 0.07, 0.3, 0.77, 1.5])
@pytest.mark.parametrize("name", ["cifar_shufflenet_v1", "cifar_shufflenet_v2"])
def test_every_width_of_a_shufflenet_can_be_built_and_more_width_is_never_less(name: str, width: float) -> None:
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in models.build(name, in_channels=3, classes=10, width=w).parameters())
            for w in (width, 1.1 * width)
        ]
    assert sizes[0] <= sizes[1]


def test_taps_are_not_chosen_where_a_network_has_its_own() -> None:
    for key, value in (("taps", ("stages.0",)), ("classifier", "classifier")):
        with pytest.raises(ValueError, match=f"^{key}: vgg8 has taps of its own"):
            models.build("vgg8", in_channels=1, classes=4, **{key: value})


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "resnet8"])
def test_one_of_each_family_is_trained_as_teacher_and_student(name: str, make_config: Make, make_data: Make) -> None:
    section = {"model": name, "width": FAMILIES[name]}
    config = make_config(
        terms={"ce": {}, "squeeze": {"top_dim": 8}},
        teacher={**section, "epochs": 1},
        student=section,
        train={"epochs": 1, "batch_size": 32},
    )
    result = fit(config, data=make_data(train=64, validation=40))
    assert len(result.history) == 1
    assert result.history[0].terms["squeeze"] > 0


@pytest.mark.parametrize("name", ["wrn_16_1", "cifar_mobilenet_v2", "cifar_shufflenet_v2"])
def test_the_exported_program_gives_the_answers_of_the_network(
    name: str, make_config: Make, make_data: Make, tmp_path: Path
) -> None:
    data: DataSet = make_data(train=64, validation=40)
    config = make_config(student={"model": name, "width": FAMILIES[name]}, train={"epochs": 1})
    facts = export(config, small(name, classes=10), data, tmp_path, metadata={}).facts
    assert facts["max_difference"] < 1e-3
