"""Networks by name: sizes that others can check, shapes that terms rely on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from hksd import models
from hksd.config.networks import StudentConfig, TeacherConfig
from hksd.models import MODELS
from hksd.models.size import size_of
from hksd.models.taps import TappedNet

CIFAR = {"in_channels": 3, "classes": 10, "image_size": 32}

# Parameters and FLOPs (2 x MACs) of a 3x32x32 image with 10 classes: the figures of the usual distillation tables.
KNOWN = {"resnet8": (78_042, 25_003_264), "resnet20": (272_474, 81_626_368), "resnet56": (855_770, 251_495_680)}
IN_THE_TABLE = {
    "ResNet50": "cifar_resnet50",
    "MobileNetV2": "cifar_mobilenet_v2",
    "ShuffleV1": "cifar_shufflenet_v1",
    "ShuffleV2": "cifar_shufflenet_v2",
}


def count(network: TappedNet) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", list(KNOWN))
def test_a_network_has_the_size_that_its_name_stands_for(name: str) -> None:
    size = size_of(StudentConfig(model=name).spec(), **CIFAR)
    assert (size.params, size.flops) == KNOWN[name]
    assert size.mflops == KNOWN[name][1] / 1e6


def test_every_network_has_the_size_of_the_reference_table(vectors: Path) -> None:
    rows = json.loads((vectors / "model_sizes.json").read_text())
    assert len({row["model"] for row in rows}) == 22
    for row in rows:
        name = IN_THE_TABLE.get(row["model"], row["model"])
        size = size_of(StudentConfig(model=name).spec(), in_channels=3, classes=row["classes"], image_size=32)
        assert (size.params, size.flops) == (row["params"], row["flops_2mac_32x32"]), row


@pytest.mark.parametrize("name", [name for name in MODELS if re.fullmatch(r"resnet\d+", name)])
def test_the_number_in_the_name_is_the_number_of_weighted_layers(name: str) -> None:
    with torch.device("meta"):
        network = models.build(name, in_channels=3, classes=10)
    layers = [
        module
        for path, module in network.named_modules()
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and not re.search(r"shortcut|downsample", path)
    ]
    assert f"resnet{len(layers)}" == name


@pytest.mark.parametrize("kind", [StudentConfig, TeacherConfig])
@pytest.mark.parametrize(("width", "descriptor", "channels"), [(1.0, None, 3), (0.25, None, 1), (0.5, 128, 1)])
def test_the_size_known_before_training_is_the_size_of_the_network(
    kind: type, width: float, descriptor: int | None, channels: int
) -> None:
    config = kind(model="resnet14", width=width, descriptor_dim=descriptor)
    network = models.build(
        "resnet14", in_channels=channels, classes=7, width=width, descriptor=descriptor, image_size=8
    )
    assert size_of(config.spec(), in_channels=channels, classes=7, image_size=8).params == count(network)


def test_the_size_counts_what_is_given_and_nothing_of_an_earlier_call() -> None:
    sizes = [
        size_of(StudentConfig(model="resnet8").spec(), in_channels=channels, classes=classes, image_size=pixels)
        for channels, classes, pixels in ((3, 10, 32), (1, 10, 32), (3, 100, 32), (3, 10, 16), (3, 10, 32))
    ]
    assert sizes[0] == sizes[4]
    assert sizes[1].params == sizes[0].params - 2 * 9 * 16
    assert sizes[2].params == sizes[0].params + 90 * 65
    assert sizes[3].params == sizes[0].params
    # Convolutions shrink with the image, the classifier does not.
    classifier = 2 * 64 * 10
    assert 4 * (sizes[3].flops - classifier) == sizes[0].flops - classifier


@pytest.mark.parametrize(
    ("width", "channels"),
    [
        (2.0, (32, 64, 128)),
        (0.5, (8, 16, 32)),
        (0.25, (4, 8, 16)),
        (0.3, (5, 10, 19)),
        (0.01, (1, 1, 1)),
    ],
)
def test_the_width_multiplies_every_stage_and_leaves_at_least_one_channel(
    width: float, channels: tuple[int, ...]
) -> None:
    network = models.build("resnet8", width=width, **CIFAR)
    assert network.shapes.stages == channels
    assert network.stem[0].out_channels == channels[0]
    assert network.shapes.embedding == network.classifier.in_features == channels[-1]


def test_half_the_width_has_about_a_quarter_of_the_size() -> None:
    whole, half = (size_of(StudentConfig(model="resnet20", width=width).spec(), **CIFAR) for width in (1.0, 0.5))
    assert 3.8 < whole.params / half.params < 4.0
    assert 3.7 < whole.flops / half.flops < 4.0


def test_a_descriptor_adds_its_projection_and_the_wider_classifier_to_what_is_counted() -> None:
    for classes in (10, 100):
        shape = {"in_channels": 3, "classes": classes, "image_size": 32}
        plain = size_of(StudentConfig(model="resnet20").spec(), **shape)
        with_descriptor = size_of(StudentConfig(model="resnet20", descriptor_dim=128).spec(), **shape)
        assert with_descriptor.params - plain.params == 64 * 128 + 64 * classes
        assert with_descriptor.flops - plain.flops == 2 * (64 * 128 + 64 * classes)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pixels", [8, 28, 32, 64])
@pytest.mark.parametrize(("name", "width", "descriptor"), [("resnet8", 0.5, None), ("resnet14", 0.25, 24)])
def test_the_shapes_that_a_network_states_are_those_of_its_taps(
    name: str, width: float, descriptor: int | None, pixels: int, channels: int
) -> None:
    network = models.build(
        name, in_channels=channels, classes=7, width=width, descriptor=descriptor, image_size=pixels
    ).eval()
    with torch.no_grad():
        out = network.taps(torch.randn(2, channels, pixels, pixels))
    shapes = network.shapes
    rows = [pixels if pixels < 64 else pixels // 2]
    rows += [rows[0] // 2, rows[0] // 4]
    assert shapes.classes == 7
    assert shapes.embedding == (descriptor or shapes.stages[-1])
    assert out.logits.shape == (2, shapes.classes)
    assert out.embedding.shape == (2, shapes.embedding)
    assert [stage.shape for stage in out.stages] == [(2, f, r, r) for f, r in zip(shapes.stages, rows, strict=True)]
    assert [[block.shape for block in stage] for stage in out.blocks] == [
        [(2, f, r, r) for f in stage] for stage, r in zip(shapes.blocks, rows, strict=True)
    ]
    assert all(stage is blocks[-1] for stage, blocks in zip(out.stages, out.blocks, strict=True))
    assert not out.squeezed


@pytest.mark.parametrize("descriptor", [None, 12])
def test_the_logits_are_what_the_classifier_reads_from_the_embedding(descriptor: int | None) -> None:
    network = models.build("resnet8", in_channels=1, classes=4, width=0.25, descriptor=descriptor, image_size=8).eval()
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        out = network.taps(images)
        assert torch.equal(network(images), out.logits)
        assert torch.equal(network.classifier(out.embedding), out.logits)


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_one_image_passes_forwards_and_backwards(training: bool) -> None:
    network = models.build("resnet8", in_channels=1, classes=4, width=0.25, image_size=8).train(training)
    logits = network(torch.randn(1, 1, 8, 8))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_batch_gives_what_its_images_give_alone() -> None:
    network = models.build("resnet14", in_channels=3, classes=5, width=0.5).eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        alone = torch.cat([network(image[None]) for image in images])
        torch.testing.assert_close(network(images), alone, rtol=1e-4, atol=1e-5)


def test_weights_come_from_torchs_generator_alone() -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(models.build("resnet8", width=0.25, **CIFAR).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["stem.0.weight"], states[2]["stem.0.weight"])


def test_an_unknown_network_is_named_with_the_nearest_and_all_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"unknown model 'resnet51'.*did you mean 'resnet.*package\.module:factory"
    ) as caught:
        models.build("resnet51", **CIFAR)
    assert all(name in str(caught.value) for name in MODELS)


@pytest.mark.parametrize("name", list(MODELS))
def test_every_network_names_its_source(name: str) -> None:
    assert "arXiv" in MODELS[name].source
