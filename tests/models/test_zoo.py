"""torchvision's networks, tapped by path: nothing is kept, nothing mixes, published weights are taken as they are."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hksd import models
from hksd.config.networks import StudentConfig
from hksd.config.run import from_tree
from hksd.data import DataSet, Split
from hksd.deploy.export import export
from hksd.errors import ConfigError, UserError
from hksd.fit import fit
from hksd.models import MODELS, NetworkSpec, weights
from hksd.models.size import size_of
from hksd.models.wrapped import WrappedNet
from hksd.teacher.prepare import prepare
from hksd.torchvision_guard import import_models

Make = Callable[..., Any]
ZOO = [name for name, entry in MODELS.items() if entry.by_path]
NARROW = [name for name in ZOO if MODELS[name].width]
QUICK = "mobilenet_v3_small"


def quick(**changes: Any) -> WrappedNet:
    arguments = {"in_channels": 3, "classes": 5, "width": 0.25, "image_size": 32, **changes}
    network = models.build(QUICK, **arguments)
    assert isinstance(network, WrappedNet)
    return network


@pytest.mark.parametrize(
    ("name", "width"), [(name, 1.0) for name in ZOO if "3_2gf" not in name] + [(n, 0.3) for n in NARROW]
)
def test_stages_lie_at_a_4th_to_a_32nd_of_the_size_and_have_the_shapes_that_are_stated(name: str, width: float) -> None:
    network = models.sketch(NetworkSpec(model=name, width=width), in_channels=3, classes=7, image_size=64).eval()
    device = next(network.parameters()).device
    with torch.no_grad():
        out = network.taps(torch.zeros(2, 3, 64, 64, device=device))
    assert [stage.shape[-1] for stage in out.stages] == [16, 8, 4, 2]
    assert tuple(stage.shape[1] for stage in out.stages) == network.shapes.stages
    assert tuple(tuple(block.shape[1] for block in stage) for stage in out.blocks) == network.shapes.blocks
    assert all(blocks[-1] is stage for stage, blocks in zip(out.stages, out.blocks, strict=True))
    assert all(block.shape == stage.shape for stage, row in zip(out.stages, out.blocks, strict=True) for block in row)
    assert (out.logits.shape, out.embedding.shape) == ((2, 7), (2, network.shapes.embedding))


def test_a_network_is_torchvisions_to_the_last_weight() -> None:
    torch.manual_seed(1)
    mine = models.build("resnet18", in_channels=3, classes=10, image_size=32).eval()
    torch.manual_seed(1)
    theirs = import_models().resnet18(num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    assert mine.bare.state_dict().keys() == theirs.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(mine(images), theirs(images))
        assert torch.equal(mine.taps(images).stages[-1], theirs.layer4(_until_layer4(theirs, images)))
    size = size_of(StudentConfig(model="resnet18").spec(), in_channels=3, classes=10, image_size=32)
    assert size.params == sum(p.numel() for p in theirs.parameters())


def _until_layer4(network: Any, images: torch.Tensor) -> torch.Tensor:
    x: torch.Tensor = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    for stage in (network.layer1, network.layer2, network.layer3):
        x = stage(x)
    return x


@pytest.mark.parametrize("descriptor", [None, 6])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_logits_are_what_the_classifier_reads_and_every_weight_learns(
    channels: int, descriptor: int | None
) -> None:
    network = quick(in_channels=channels, descriptor=descriptor)
    out = network.taps(torch.randn(3, channels, 32, 32))
    assert torch.equal(network.classifier(out.embedding), out.logits)
    assert out.embedding.shape[1] == network.shapes.embedding == (descriptor or 256)
    out.logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_nothing_is_kept_after_a_call_and_two_calls_never_mix() -> None:
    network = quick().eval()
    images = torch.randn(2, 2, 3, 32, 32)
    alone = [network.taps(part).stages[0].detach() for part in images]
    first, second = network.taps(images[0]), network.taps(images[1])
    assert torch.equal(first.stages[0], alone[0])
    assert torch.equal(second.stages[0], alone[1])
    left = [weakref.ref(stage) for stage in (*first.stages, *second.stages)]
    del first, second
    gc.collect()
    assert [ref for ref in left if ref() is not None] == []


def test_calls_in_two_threads_do_not_mix() -> None:
    network = quick().eval()
    images = torch.randn(2, 2, 3, 32, 32)
    with torch.no_grad():
        alone = [network.taps(part).stages[-1] for part in images]
    wrong: list[int] = []

    def work(i: int) -> None:
        with torch.no_grad():
            wrong.extend(i for _ in range(10) if not torch.equal(network.taps(images[i]).stages[-1], alone[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("again", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_a_copy_is_a_network_of_its_own(again: Callable[[WrappedNet], WrappedNet]) -> None:
    network = quick().eval()
    twin = again(network)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        before = network.taps(images)
        for parameter in twin.parameters():
            parameter.mul_(0.5)
        changed, after = twin.taps(images), network.taps(images)
    assert torch.equal(before.stages[0], after.stages[0])
    assert not torch.equal(before.stages[0], changed.stages[0])
    assert [stage.shape for stage in changed.stages] == [stage.shape for stage in before.stages]


def test_building_leaves_mode_statistics_and_random_numbers_as_they_are() -> None:
    torch.manual_seed(5)
    network = quick()
    drawn = torch.rand(1)
    torch.manual_seed(5)
    quick()
    assert torch.equal(torch.rand(1), drawn)
    assert all(module.training for module in network.modules())
    assert all(int(value) == 0 for key, value in network.state_dict().items() if key.endswith("num_batches_tracked"))


# --- taps of one's choice


def test_taps_can_be_chosen_and_sequences_of_blocks_show_their_blocks() -> None:
    network = models.build("resnet18", in_channels=3, classes=5, image_size=32, taps=("layer2.0", "layer4"))
    assert network.shapes.stages == (128, 512)
    assert network.shapes.blocks == ((128,), (512, 512))
    plain = quick(taps=("features.0",))  # convolution, norm, activation: no blocks
    assert plain.shapes.blocks == ((8,),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taps": ("layr4",)}, r"^taps: resnet18 has no module 'layr4'; did you mean 'layer4'.*at its top: conv1, bn1"),
        ({"taps": ("fc",)}, r"^taps: 'fc' of resnet18 gives \(2, 5\), no map"),
        ({"classifier": "fcc"}, "^classifier: resnet18 has no module 'fcc'; did you mean 'fc'"),
        ({"classifier": "layer4"}, r"^classifier: 'layer4' of resnet18 reads \(2, 256, 2, 2\)"),
        ({"classifier": "layer4", "descriptor": 8}, "^descriptor_dim: the classifier 'layer4' is no nn.Linear"),
    ],
)
def test_a_tap_or_classifier_that_cannot_be_is_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.build("resnet18", in_channels=3, classes=5, image_size=32, **changes)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"model": "resnet18", "width": 0.5}, "width: resnet18 exists at width 1 alone.*mobilenet_v2"),
        ({"model": "resnet8", "taps": ["a"]}, "taps: resnet8 has taps of its own"),
        ({"model": "resnet18", "width": 1, "taps": ["a", "a"]}, "taps: every module once"),
        ({"model": "resnet8", "pretrained": True}, "pretrained: there are no published weights of resnet8"),
        ({"model": "mine:net", "pretrained": True}, "pretrained: there are no published weights of mine:net"),
        ({"model": "mobilenet_v2", "width": 0.5, "pretrained": True}, "pretrained.*for width 1"),
        ({"model": "resnet18", "width": 1, "pretrained": True, "checkpoint": "x"}, "pretrained.*leave checkpoint out"),
        ({"model": "resnet18", "width": 1, "pretrained": True, "descriptor_dim": 8}, "pretrained.*descriptor_dim out"),
    ],
)
def test_settings_that_a_network_does_not_take_are_faults_of_the_file(
    section: dict[str, Any], message: str, make_tree: Make
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_tree(make_tree(teacher=section, terms={"kd": {}}))
    assert [problem.path for problem in caught.value.problems] == [("teacher",)]


# --- training and weights


def test_one_is_trained_exported_and_its_weights_are_those_of_the_bare_network(
    make_config: Make, make_data: Make, tmp_path: Path
) -> None:
    data: DataSet = make_data(train=64, validation=40)
    config = make_config(
        terms={"ce": {}, "squeeze": {"depth": 1}},
        teacher={"model": QUICK, "epochs": 1},
        student={"model": QUICK, "taps": ["features.1", "features.4", "features.9", "features.11"]},
        train={"epochs": 1, "batch_size": 32},
    )
    result = fit(config, data=data, out_dir=tmp_path / "run")
    facts = export(config, result.student, data, tmp_path / "export", metadata={}).facts
    assert facts["max_difference"] < 1e-3
    state, metadata = weights.read(tmp_path / "run" / "student.safetensors")
    assert metadata["taps"] == '["features.1", "features.4", "features.9", "features.11"]'
    assert (metadata["in_channels"], metadata["image_size"]) == ("1", "8")
    bare = import_models().mobilenet_v3_small(num_classes=10, width_mult=0.25)
    bare.features[0][0] = torch.nn.Conv2d(1, 8, 3, 2, 1, bias=False)
    bare.load_state_dict(state)


def images_of(classes: int, channels: int = 3) -> DataSet:
    draw = np.random.default_rng(0)
    labels = np.arange(classes, dtype=np.int64)
    images = draw.integers(0, 256, (classes, 32, 32, channels), dtype=np.uint8)
    split = Split(images[:20], labels[:20], labels[:20])
    names = tuple(map(str, range(classes)))
    return DataSet("folder", names, split, split, (0.5,) * channels, (0.2,) * channels, f"{classes}-{channels}")


@pytest.fixture
def pretrained(make_config: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A run with a published teacher, torchvision's cache in an empty folder, and no way out."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    untrained = {"model": QUICK, "width": 1, "pretrained": True, "expected_accuracy": 0}
    return make_config(terms={"kd": {}}, teacher=untrained)


def test_a_published_teacher_is_taken_from_torchvisions_cache_and_not_trained(pretrained: Any, tmp_path: Path) -> None:
    published = import_models().mobilenet_v3_small()
    file = tmp_path / "torch" / "hub" / "checkpoints" / "mobilenet_v3_small-047dcff4.pth"
    file.parent.mkdir(parents=True)
    torch.save(published.state_dict(), file)
    for cached in (False, True):
        teacher = prepare(pretrained, images_of(1000), cache_dir=tmp_path / "teachers")
        assert teacher.cached == cached
        state = teacher.model.bare.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in published.state_dict().items())


def test_published_weights_that_cannot_be_fetched_are_told_with_their_address(pretrained: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^teacher\.pretrained: https://\S+mobilenet_v3_small\S+ could not be"
    ) as caught:
        prepare(pretrained, images_of(1000))
    assert str(tmp_path / "torch") in str(caught.value)


@pytest.mark.parametrize(
    ("classes", "channels", "message"), [(10, 3, "1000 classes apart, but the data has 10"), (1000, 1, "3 channels")]
)
def test_published_weights_suit_images_of_imagenets_form_alone(
    classes: int, channels: int, message: str, pretrained: Any
) -> None:
    with pytest.raises(UserError, match=rf"^teacher\.pretrained: .*{message}"):
        prepare(pretrained, images_of(classes, channels))


@pytest.mark.parametrize("form", ["bare", "prefixed", "state_dict", "model", "ours"])
def test_weights_load_in_every_form_in_which_people_keep_them(form: str, tmp_path: Path) -> None:
    source, network = quick(), quick()
    state = source.bare.state_dict()
    path = tmp_path / "weights.pt"
    if form == "ours":
        path = tmp_path / "weights.safetensors"
        weights.save(path, source, {})
    else:
        kept: Any = {f"module.{key}": value for key, value in state.items()} if form == "prefixed" else state
        torch.save({form: kept, "epoch": 3} if form in ("state_dict", "model") else kept, path)
    weights.load_into(network, path)
    assert all(torch.equal(value, state[key]) for key, value in network.bare.state_dict().items())
    torch.save(source.state_dict(), tmp_path / "wrapped.pt")
    weights.load_into(network, tmp_path / "wrapped.pt")


@pytest.mark.parametrize("name", ["resnet8", QUICK])
def test_weights_of_other_classes_than_the_data_are_told_with_both_numbers(name: str, tmp_path: Path) -> None:
    one, other = (models.build(name, in_channels=3, classes=n, width=0.25, image_size=32) for n in (100, 5))
    weights.save(tmp_path / "w.safetensors", one, {})
    with pytest.raises(UserError, match="they tell 100 classes apart, but the data has 5"):
        weights.load_into(other, tmp_path / "w.safetensors")
