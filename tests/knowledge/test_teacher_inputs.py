"""A teacher from elsewhere sees its images as it wants them, wherever it looks; all others see them as before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hksd import models
from hksd.config.run import RunConfig, from_tree
from hksd.data import IMAGENET_MEAN, IMAGENET_STD, DataSet
from hksd.data.augment import batches_of
from hksd.device import precision
from hksd.errors import ConfigError, UserError
from hksd.fit import fit
from hksd.models import weights
from hksd.models.size import grids_of, size_of
from hksd.models.taps import TappedNet
from hksd.teacher.inputs import OwnInputs
from hksd.teacher.knowledge import Stored
from hksd.teacher.plan import knowledge_of
from hksd.teacher.prepare import prepare
from hksd.terms import TERMS

Make = Callable[..., Any]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def colours(make_data: Make) -> DataSet:
    """Digits in three channels of different brightness."""
    data: DataSet = make_data(train=64, validation=32)
    scale = torch.tensor([1.0, 0.5, 0.25]).numpy()

    def painted(split: Any) -> Any:
        return replace(split, images=(split.images * scale).astype("uint8"))

    mean, std = (0.3, 0.15, 0.07), (0.37, 0.19, 0.09)
    return replace(data, train=painted(data.train), validation=painted(data.validation), mean=mean, std=std)


@pytest.fixture(scope="module")
def plain(colours: DataSet) -> TappedNet:
    torch.manual_seed(0)
    return models.build("resnet8", width=0.25, **colours.image_shape).eval()


@pytest.fixture(scope="module")
def file(plain: TappedNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "teacher.safetensors"
    weights.save(path, plain, {})
    return path


@pytest.fixture
def run(make_config: Make, file: Path) -> Callable[..., RunConfig]:
    """run(terms={...}, preprocess="none"): a run with the teacher of the file, whatever it knows."""

    def make(terms: dict[str, Any] | None = None, student: Any = None, **teacher: Any) -> RunConfig:
        taken = {"checkpoint": str(file), "expected_accuracy": 0, **teacher}
        config: RunConfig = make_config(
            terms=terms or {"kd": {}}, teacher=taken, student=student or {}, train={"epochs": 1, "batch_size": 32}
        )
        return config

    return make


def pixels(data: DataSet) -> Tensor:
    """The validation images on 0..1, (N, 3, H, W)."""
    return torch.from_numpy(data.validation.images).permute(0, 3, 1, 2).float() / 255  # type: ignore[union-attr]


def scaled(images: Tensor, mean: Any, std: Any) -> Tensor:
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


WAYS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "none": ({"preprocess": "none"}, lambda x: x),
    "imagenet": ({"preprocess": "imagenet"}, lambda x: scaled(x, IMAGENET_MEAN, IMAGENET_STD)),
    "own numbers": (
        {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7]},
        lambda x: scaled(x, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7)),
    ),
    "0..255": ({"mean": [0, 0, 0], "std": [1 / 255] * 3}, lambda x: x * 255),
    "bgr": ({"preprocess": "none", "channels": "bgr"}, lambda x: x.flip(1)),
    "bgr of the data": (
        {"channels": "bgr"},
        lambda x: scaled(x, (0.3, 0.15, 0.07), (0.37, 0.19, 0.09)).flip(1),
    ),
    "bgr, numbers in its order": (
        {"channels": "bgr", "mean": [0.3, 0.2, 0.1], "std": [1.0, 0.5, 0.5]},
        lambda x: scaled(x.flip(1), (0.3, 0.2, 0.1), (1.0, 0.5, 0.5)),
    ),
    "larger": (
        {"preprocess": "none", "image_size": 16},
        lambda x: F.interpolate(x, size=(16, 16), mode="bilinear", antialias=True),
    ),
    "smaller": (
        {"preprocess": "none", "image_size": 6},
        lambda x: F.interpolate(x, size=(6, 6), mode="bilinear", antialias=True),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_shown_what_it_wants_in_its_validation_its_views_and_live(
    way: str, run: Make, colours: DataSet, plain: TappedNet, tmp_path: Path
) -> None:
    keys, wanted = WAYS[way]
    config = run(**keys)
    teacher = prepare(config, colours, cache_dir=tmp_path)
    with torch.no_grad():
        expected = plain(wanted(pixels(colours)))
        shown = next(batches_of(colours.validation, colours, config.data, CPU, augment=False).plain(32))
        torch.testing.assert_close(teacher.model(shown.images), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(teacher(shown.images, frozenset()).logits, expected, rtol=1e-3, atol=1e-3)
    assert teacher.accuracy == (expected.argmax(1) == shown.labels).float().mean().item()
    again = prepare(config, colours, cache_dir=tmp_path)
    assert again.cached
    assert torch.equal(again.model(shown.images), teacher.model(shown.images))
    # A view is what the teacher says of the training images, as float16.
    config = run(**keys) if way == "none" else config
    whole = replace(config, data=replace(config.data, crop=0, flip=False))
    source = knowledge_of(whole, colours, teacher, precision.resolve("float32", CPU))
    assert isinstance(source, Stored)
    batches = batches_of(colours.train, colours, whole.data, CPU, augment=True)
    stored = source.get(0, batches)["logits"].rows(torch.arange(64))[0]
    plain_train = torch.from_numpy(colours.train.images).permute(0, 3, 1, 2).float() / 255  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(stored, plain(wanted(plain_train)), rtol=5e-3, atol=5e-3)


def test_one_that_wants_nothing_of_its_own_is_not_wrapped_and_has_the_key_it_always_had(
    run: Make, colours: DataSet
) -> None:
    bare, said = prepare(run(), colours), prepare(run(preprocess="own", channels="rgb", image_size=8), colours)
    assert not isinstance(bare.model, OwnInputs)
    assert not isinstance(said.model, OwnInputs), "the size of the data is no size of its own"
    assert len({prepare(run(**keys), colours).key for keys, _ in WAYS.values()} | {bare.key}) == len(WAYS) + 1


def test_its_size_counts_for_its_cost_and_its_maps(run: Make, colours: DataSet) -> None:
    large, small = run(image_size=16).teacher.spec(), run().teacher.spec()
    assert size_of(large, **colours.image_shape).flops > 3 * size_of(small, **colours.image_shape).flops
    assert [2 * side for side, _ in grids_of(small, **colours.image_shape)] == [
        side for side, _ in grids_of(large, **colours.image_shape)
    ]


ALONE = {"adversarial": {"ce": {}, "squeeze": {}}, "kdgan": {"ce": {}}}


@pytest.mark.parametrize("term", [name for name in TERMS if name != "ce"])
def test_every_term_learns_from_a_teacher_of_another_size_and_scale(
    term: str, run: Make, colours: DataSet, tmp_path: Path
) -> None:
    config = run(terms={"ce": {}, **ALONE.get(term, {}), term: {}}, preprocess="none", image_size=16)
    quick = replace(config, teacher=replace(config.teacher, attention=replace(config.teacher.attention, mode="random")))
    result = fit(quick, data=colours)
    assert term in result.history[-1].terms


@pytest.mark.parametrize(
    "mode", [{"robust": {"teacher_view": "attacked", "steps": 1}}, {"data_free": {"steps_per_epoch": 2}}]
)
def test_attacked_and_generated_images_are_shown_to_it_as_it_wants_them(
    mode: dict[str, Any], make_tree: Make, file: Path, colours: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = make_tree(terms={"kd": {}}, train={"epochs": 1, "batch_size": 32}, **mode)
    tree["teacher"] |= {"checkpoint": str(file), "expected_accuracy": 0, "preprocess": "none"}
    config, seen, real = from_tree(tree), list[Tensor](), OwnInputs.seen
    teacher = prepare(config, colours)
    monkeypatch.setattr(OwnInputs, "seen", lambda self, images: seen.append(real(self, images)) or seen[-1])
    fit(config, data=colours, teacher=teacher)
    assert len(seen) >= 2
    if "robust" in mode:
        assert all(images.min() > -1e-5 and images.max() < 1 + 1e-5 for images in seen), "plain 0..1 pixels"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"preprocess": "wild"}, r"teacher\.preprocess: must be 'own', 'none' or 'imagenet'"),
        ({"mean": [0.5, 0.5, 0.5]}, "mean and std go together"),
        ({"mean": [0.5, 0.5], "std": [1, 1, 1]}, r"mean has 2 number\(s\) and std 3"),
        ({"mean": [123.7, 116.3, 103.5], "std": [0.2, 0.2, 0.2]}, r"mean is on the 0\.\.1 scale \(got 123\.7\)"),
        ({"mean": [0.5], "std": [0]}, r"std is on the 0\.\.1 scale"),
        ({"mean": [0.5], "std": [0.5], "preprocess": "none"}, "leave one of them out"),
        ({"classes": [True, "b"]}, "put such a name in quotes"),
        ({"classes": []}, "no names of classes"),
        ({"checkpoint": None, "preprocess": "none"}, "preprocess is for a teacher that was trained elsewhere"),
        ({"checkpoint": None, "expected_accuracy": 0.9}, "expected_accuracy is for a teacher that was trained"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_told(keys: dict[str, Any], message: str, make_config: Make) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(terms={"kd": {}}, teacher={"checkpoint": "x", **keys})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}, r"teacher\.mean has 3 number.*1 channel"),
        ({"preprocess": "imagenet"}, r"teacher\.preprocess: imagenet is for images of 3 channels, but these have 1"),
        ({"channels": "bgr"}, r"teacher\.channels: bgr is for images of 3 channels, but these have 1"),
    ],
    ids=str,
)
def test_what_does_not_suit_the_images_is_told(keys: dict[str, Any], message: str, run: Make, digits: DataSet) -> None:
    with pytest.raises(UserError, match=message):
        prepare(run(**keys), digits)
