"""The data sets of the field in the files of their authors: read as they are, damage told with its name and cure."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from hksd import data
from hksd.data.distort import LEVELS, distorted
from hksd.data.settings import DataConfig
from hksd.errors import DataError
from hksd.torchvision_guard import import_datasets
from hksd_search.commands.methods import DATASETS


def settings(name: str, root: Path, **knobs) -> DataConfig:
    return DataConfig(**{"name": name, "root": str(root), "validation": 0.25, **knobs})


def fault(config: DataConfig, *parts: object, test: bool = False) -> str:
    with pytest.raises(DataError) as caught:
        (data.load_test if test else data.load)(config)
    message = str(caught.value)
    for part in parts:
        assert str(part) in message
    return message


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def by_index(split: data.AnySplit) -> np.ndarray:
    return split.images[np.argsort(split.index)]


def together(loaded: data.DataSet) -> np.ndarray:
    """All training images in the order of the source."""
    index = np.concatenate([loaded.train.index, loaded.validation.index])
    return np.concatenate([loaded.train.images, loaded.validation.images])[np.argsort(index)]


LABELS = np.arange(40) % 10


def write_svhn(root: Path, monkeypatch) -> Path:
    kind, split_list = import_datasets().SVHN, {}
    root.mkdir(exist_ok=True)
    for number, part in enumerate(("train", "test")):
        file = root / f"{part}_32x32.mat"
        # As published: images last, the digit 0 has label 10.
        images = pixels(number, 40, 32, 32, 3).transpose(1, 2, 3, 0)
        savemat(file, {"X": images, "y": np.where(LABELS == 0, 10, LABELS)[:, None].astype(np.uint8)})
        split_list[part] = [(root / "nowhere").as_uri(), file.name, md5(file)]
    monkeypatch.setattr(kind, "split_list", split_list)
    return root


def write_stl10(root: Path, monkeypatch) -> Path:
    kind, lists = import_datasets().STL10, {}
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for number, part in enumerate(("train", "test")):
        x, y = folder / f"{part}_X.bin", folder / f"{part}_y.bin"
        # As published: channels first, columns before rows, labels from 1.
        x.write_bytes(pixels(number, 40, 96, 96, 3).transpose(0, 3, 2, 1).tobytes())
        y.write_bytes((LABELS + 1).astype(np.uint8).tobytes())
        lists[part] = [[x.name, md5(x)], [y.name, md5(y)]]
    (folder / "class_names.txt").write_text("".join(f"class{i}\n" for i in range(10)))
    # The unlabelled images are listed by torchvision and lie nowhere.
    monkeypatch.setattr(kind, "train_list", [*lists["train"], ["unlabeled_X.bin", "0" * 32]])
    monkeypatch.setattr(kind, "test_list", lists["test"])
    monkeypatch.setattr(kind, "url", (root / "nowhere.tar.gz").as_uri())
    return folder


def write_fashion(root: Path, monkeypatch, packed: bool = True) -> Path:
    kind, resources = import_datasets().FashionMNIST, []
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for number, part in enumerate(("train", "t10k")):
        for name, array in (("images-idx3", pixels(number, 40, 28, 28)), ("labels-idx1", LABELS.astype(np.uint8))):
            head = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
            file = folder / f"{part}-{name}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(head + array.tobytes()) if packed else head + array.tobytes())
            resources.append((f"{part}-{name}-ubyte.gz", md5(file)))
    monkeypatch.setattr(kind, "resources", resources)
    monkeypatch.setattr(kind, "mirrors", [(root / "nowhere").as_uri() + "/"])
    return folder


def test_svhn_has_the_pixels_and_labels_of_its_files(tmp_path, monkeypatch):
    config = settings("svhn", write_svhn(tmp_path, monkeypatch))
    loaded, test = data.load(config), data.load_test(config)
    assert loaded.classes == tuple("0123456789")
    assert (together(loaded) == pixels(0, 40, 32, 32, 3)).all()
    assert (test.images == pixels(1, 40, 32, 32, 3)).all()
    assert (test.labels == LABELS).all()
    assert (config.crop, config.flip) == (4, False)


def test_stl10_has_the_labelled_pixels_of_its_files_and_needs_no_others(tmp_path, monkeypatch):
    folder = write_stl10(tmp_path, monkeypatch)
    for root in (tmp_path, folder):
        config = settings("stl10", root)
        loaded, test = data.load(config), data.load_test(config)
        assert loaded.classes[:2] == ("class0", "class1")
        assert (together(loaded) == pixels(0, 40, 96, 96, 3)).all()
        assert (test.images == pixels(1, 40, 96, 96, 3)).all()
        assert (test.labels == LABELS).all()
    assert (config.crop, config.flip) == (12, True)


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_has_the_pixels_of_its_files_packed_or_not(tmp_path, monkeypatch, packed):
    folder = write_fashion(tmp_path, monkeypatch, packed)
    before = sorted(folder.iterdir())
    for root in (tmp_path, folder, folder.parent):
        config = settings("fashion_mnist", root)
        loaded, test = data.load(config), data.load_test(config)
        assert loaded.classes[0] == "T-shirt/top"
        assert (together(loaded)[..., 0] == pixels(0, 40, 28, 28)).all()
        assert (test.images[..., 0] == pixels(1, 40, 28, 28)).all()
        assert (test.labels == LABELS).all()
    assert sorted(folder.iterdir()) == before


WRITERS = {"svhn": write_svhn, "stl10": write_stl10, "fashion_mnist": write_fashion}
VICTIMS = {"svhn": "train_32x32.mat", "stl10": "train_X.bin", "fashion_mnist": "train-labels-idx1-ubyte.gz"}


@pytest.mark.parametrize("damage", ["broken", "missing"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_or_missing_file_is_named_with_its_cure(tmp_path, monkeypatch, name, damage):
    folder = WRITERS[name](tmp_path, monkeypatch)
    victim = folder / VICTIMS[name]
    victim.write_bytes(b"broken") if damage == "broken" else victim.unlink()
    fault(settings(name, tmp_path), folder, victim.name, "incomplete or damaged", "set data.download: true")
    fault(settings(name, tmp_path, download=True), victim.name if name != "svhn" else folder, "check the network")


@pytest.mark.parametrize("name", ["svhn", "fashion_mnist"])
def test_training_never_opens_the_test_files(tmp_path, monkeypatch, name):
    folder = WRITERS[name](tmp_path, monkeypatch)
    for file in folder.iterdir():
        if not file.name.startswith("train"):
            file.write_bytes(b"broken")
    assert len(data.load(settings(name, tmp_path)).train) == 30
    fault(settings(name, tmp_path), "incomplete or damaged", test=True)


@pytest.mark.parametrize("keep", [2, 100])
def test_an_unpacked_fashion_file_of_another_length_is_named(tmp_path, monkeypatch, keep):
    folder = write_fashion(tmp_path, monkeypatch, packed=False)
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:keep])
    fault(settings("fashion_mnist", tmp_path), folder, file.name, "delete the folder and set data.download: true")


@pytest.mark.parametrize("name", WRITERS)
def test_a_root_without_the_files_tells_what_was_looked_for(tmp_path, name):
    (tmp_path / "other").mkdir()
    fault(settings(name, tmp_path), tmp_path, "torchvision's f", "parquet", "train/CLASS", "data.download: true")


def test_files_of_another_data_set_are_recognised(tmp_path, monkeypatch):
    write_stl10(tmp_path, monkeypatch)
    fault(settings("svhn", tmp_path), "set data.name: stl10")


def test_class_folders_of_a_known_data_set_are_read_and_counted(tmp_path):
    for label in range(10):
        (tmp_path / "train" / str(label)).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(pixels(i, 32, 32, 3)).save(tmp_path / "train" / str(label) / f"{i}.png")
    assert data.load(settings("svhn", tmp_path)).train.images.shape == (30, 32, 32, 3)
    assert data.load(settings("svhn", tmp_path, streaming=True)).image_size == 32
    Image.fromarray(pixels(0, 32, 32, 3)).save(tmp_path / "train" / "a.png")
    (tmp_path / "train" / "9").rename(tmp_path / "nine")
    fault(settings("stl10", tmp_path), "9 classes, but stl10 has 10", "data.name: folder")


# TCIFAR


@pytest.fixture
def cifar(tmp_path) -> Path:
    for part in ("train", "test"):
        for label in range(10):
            folder = tmp_path / part / f"c{label}"
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(pixels(10 * label + i, 32, 32, 3)).save(folder / f"{i}.png")
    return tmp_path


def test_tcifar_is_cifar_with_artefacts_on_training_validation_and_test_images(cifar):
    clean, noisy = (data.load(settings(name, cifar)) for name in ("cifar10", "tcifar10"))
    assert (clean.train.index == noisy.train.index).all()
    assert clean.fingerprint != noisy.fingerprint
    assert noisy.name == "tcifar10"
    pairs = [(clean.train, noisy.train), (clean.validation, noisy.validation)]
    pairs.append((data.load_test(settings("cifar10", cifar)), data.load_test(settings("tcifar10", cifar))))
    for one, two in pairs:
        assert all((a != b).mean() > 0.9 for a, b in zip(one.images, two.images, strict=True))


def test_artefacts_are_functions_of_seed_set_and_image_alone(cifar):
    base, small = (data.load(settings("tcifar10", cifar, **knobs)) for knobs in ({}, {"limit": 20, "validation": 0.5}))
    assert data.load(settings("tcifar10", cifar)).fingerprint == base.fingerprint
    all_of = dict(
        zip(
            np.concatenate([base.train.index, base.validation.index]).tolist(),
            [*base.train.images, *base.validation.images],
            strict=True,
        )
    )
    assert all(
        (all_of[i] == image).all() for i, image in zip(small.train.index.tolist(), small.train.images, strict=True)
    )
    # Training and test images are equal here, so only the artefacts can differ.
    assert not (data.load_test(settings("tcifar10", cifar)).images == together(base)).all((1, 2, 3)).any()
    gray = np.full((3, 32, 32, 3), 128, np.uint8)
    same = distorted(gray, np.array([5, 5, 6]), 0.5, 0, test=False)
    assert (same[0] == same[1]).all()
    assert (same[0] != same[2]).mean() > 0.9
    assert (distorted(gray, np.array([5, 5, 6]), 0.5, 1, test=False) != same).mean() > 0.9


def test_sigma_is_told_in_deviations_of_the_pixels_and_clipped_to_8_bits():
    gray = np.full((20, 32, 32, 3), 128, np.uint8)
    noise = distorted(gray, np.arange(20), 0.5, 0, test=False).astype(float) - 128
    assert noise.std() == pytest.approx(LEVELS / 2, rel=0.01)
    assert noise.mean() == pytest.approx(0, abs=0.5)
    assert (distorted(gray, np.arange(20), 0.0, 0, test=False) == gray).all()
    strong = distorted(gray, np.arange(20), 10.0, 0, test=False)
    assert ((strong == 0).mean(), (strong == 255).mean()) == (pytest.approx(0.42, abs=0.02),) * 2


def test_noise_counts_for_tcifar_alone(make_config):
    def dead(name: str) -> bool:
        return "noise" in DataConfig(name=name, root="x").dead_knobs()

    assert not dead("tcifar10")
    assert not dead("tcifar100")
    assert dead("cifar10")


# Class folders: nested ones, ImageNet, Tiny-ImageNet


def save(file: Path, seed: int = 0, size: int = 8) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, size, size, 3)).save(file, "JPEG")


def write_tiny(root: Path, monkeypatch, classes=("n01", "n02", "n03")) -> Path:
    monkeypatch.setitem(data.sources.CLASSES, "tiny_imagenet", len(classes))
    lines = []
    for number, name in enumerate(classes):
        for i in range(4):
            save(root / "train" / name / "images" / f"{name}_{i}.JPEG", 10 * number + i, 64)
        (root / "train" / name / f"{name}_boxes.txt").write_text("x")
        save(root / "val" / "images" / f"val_{number}.JPEG", 50 + number, 64)
        lines.append(f"val_{number}.JPEG\t{classes[-1 - number]}\t0\t0\t9\t9\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    save(root / "test" / "images" / "test_0.JPEG", 0, 64)
    return root


def test_tiny_imagenet_is_read_as_its_archive_unpacks(tmp_path, monkeypatch):
    root = write_tiny(tmp_path / "tiny-imagenet-200", monkeypatch)
    for place in (root, tmp_path):
        config = settings("tiny_imagenet", place)
        loaded, test = data.load(config), data.load_test(config)
        assert loaded.classes == ("n01", "n02", "n03")
        assert (loaded.image_size, loaded.channels, len(loaded.train)) == (64, 3, 9)
        assert test.labels.tolist() == [2, 1, 0]
        assert test.files.name(1) == "val_1.JPEG"
    held = data.load_test(settings("tiny_imagenet", root, streaming=False))
    assert held.images.shape == (3, 64, 64, 3)
    assert held.labels.tolist() == [2, 1, 0]


def test_faults_of_the_validation_labels_of_tiny_imagenet_are_named(tmp_path, monkeypatch):
    root = write_tiny(tmp_path, monkeypatch)
    config, annotations = settings("tiny_imagenet", root), root / "val" / "val_annotations.txt"
    whole = annotations.read_text()
    for text, parts in (
        (whole.replace("n01", "n99"), (f"{annotations}, line 3", "'n99' is not in the training set", "complete")),
        (whole.replace("\t", " "), (f"{annotations}, line 1", "no class in it", "unpack")),
        (whole + "val_9.JPEG\tn01\n", (root / "val" / "images" / "val_9.JPEG", "not there", "unpack")),
        ("".join(whole.splitlines(True)[1:]), (root / "val" / "images" / "val_0.JPEG", "no label", "remove it")),
    ):
        annotations.write_text(text)
        data.load(config)
        fault(config, *parts, test=True)
    annotations.unlink()
    fault(config, annotations, "not there", "unpack the archive again", test=True)


def test_imagenet_is_read_from_class_folders_and_tested_on_val(tmp_path, monkeypatch):
    monkeypatch.setitem(data.sources.CLASSES, "imagenet", 2)
    for name in ("n01", "n02"):
        for i in range(4):
            save(tmp_path / "train" / name / f"{name}_{i}.JPEG", i, 30)
        save(tmp_path / "val" / name / "a.JPEG", 0, 40)
    save(tmp_path / "test" / "a.JPEG")
    config = settings("imagenet", tmp_path)
    assert len(data.load(config).train) == 6
    assert data.load_test(config).labels.tolist() == [0, 1]
    (tmp_path / "val" / "n02").rename(tmp_path / "val" / "n03")
    fault(config, tmp_path / "val" / "n03", "'n03' is not in the training set", test=True)
    (tmp_path / "val").rename(tmp_path / "old")
    fault(config, "looked for the folders val", "val/CLASS/", test=True)
    save(tmp_path / "val" / "ILSVRC2012_val_1.JPEG")
    fault(config, tmp_path / "val", "sort its images into class folders", test=True)


@pytest.mark.parametrize("name", ["imagenet", "tiny_imagenet"])
def test_a_part_of_an_imagenet_is_sent_to_the_name_folder(tmp_path, name):
    for label in ("n01", "n02"):
        save(tmp_path / "train" / label / "a.JPEG")
    fault(settings(name, tmp_path), "2 classes, but", "data.name: folder")


def test_a_root_one_folder_off_is_corrected(tmp_path):
    for label in ("n01", "n02"):
        save(tmp_path / "set" / "train" / label / "a.JPEG")
    for root in (tmp_path, tmp_path / "set" / "train"):
        for name in ("folder", "imagenet"):
            fault(settings(name, root), f"set data.root: {tmp_path / 'set'}")


def test_nested_folders_and_capital_suffixes_are_read_and_hidden_files_are_not(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "train" / name / "z.JPG", 1)
        save(tmp_path / "train" / name / "deep" / "er" / "y.Png", 2)
        (tmp_path / "train" / name / ".hidden").mkdir()
        (tmp_path / "train" / name / ".hidden" / "x.png").write_bytes(b"broken")
        (tmp_path / "train" / name / "._z.jpg").write_bytes(b"broken")
    loaded = data.load(settings("folder", tmp_path, validation=0.5))
    assert sorted([*loaded.train.index, *loaded.validation.index]) == [0, 1, 2, 3]
    streamed = data.load(settings("folder", tmp_path, validation=0.5, streaming=True))
    names = {split.files.name(row) for split in (streamed.train, streamed.validation) for row in range(2)}
    assert names == {"a/deep/er/y.Png", "a/z.JPG", "b/deep/er/y.Png", "b/z.JPG"}


def test_a_link_to_a_folder_around_it_is_named_and_other_links_are_followed(tmp_path):
    save(tmp_path / "elsewhere" / "a.jpg")
    save(tmp_path / "elsewhere" / "b.jpg")
    save(tmp_path / "train" / "x" / "a.jpg")
    save(tmp_path / "train" / "x" / "b.jpg")
    (tmp_path / "train" / "y").symlink_to(tmp_path / "elsewhere")
    assert len(data.load(settings("folder", tmp_path, validation=0.5)).train) == 2
    loop = tmp_path / "train" / "x" / "loop"
    loop.symlink_to(tmp_path / "train" / "x")
    fault(settings("folder", tmp_path), loop, "leads to a folder around it", "remove it")


def test_the_catalogue_names_every_data_set():
    assert list(DATASETS) == list(get_args(get_type_hints(DataConfig)["name"]))
