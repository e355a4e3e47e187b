"""Every layout is read from real files, and everything wrong with them is told with its name and its cure."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import pickle
import subprocess
import sys
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hksd import data
from hksd.data.settings import DataConfig
from hksd.data.sources import find_source
from hksd.errors import DataError
from hksd.torchvision_guard import import_datasets

SIZE = 6


def folder_config(root: Path, **settings) -> DataConfig:
    return DataConfig(**{"name": "folder", "root": str(root), "validation": 0.25, **settings})


def pixels(seed: int, shape: tuple[int, ...] = (SIZE, SIZE, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(array: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def write_folders(root: Path, part="train", classes=("cat", "dog"), each=4, shape=(SIZE, SIZE, 3)) -> Path:
    for number, name in enumerate(classes):
        (root / part / name).mkdir(parents=True)
        for i in range(each):
            (root / part / name / f"{i}.png").write_bytes(encode(pixels(100 * number + i, shape)))
    return root


def write_parquet(path: Path, labels, *, images=None, names=None, image="img", label="label", binary=False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [encode(pixels(i), "WEBP") for i in range(len(labels))] if images is None else images
    column = images if binary else [{"bytes": value, "path": None} for value in images]
    kind = pa.binary() if binary else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(column, kind), label: pa.array(labels)})
    if names:
        features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(names)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    # Small row groups, so that picking rows has to cross them.
    pq.write_table(table, path, row_group_size=3)
    return path


def fault(config: DataConfig, *parts: object, test: bool = False) -> str:
    """The message of the error that loading raises; it must contain all of `parts`."""
    with pytest.raises(DataError) as caught:
        (data.load_test if test else data.load)(config)
    message = str(caught.value)
    for part in parts:
        assert str(part) in message
    return message


def all_images(split: data.Split) -> dict[int, np.ndarray]:
    return dict(zip(split.index.tolist(), split.images, strict=True))


# Digits


def test_digits_are_8_by_8_gray_and_scaled_to_255():
    digits = data.load(DataConfig(name="digits"))
    assert digits.classes == tuple("0123456789")
    assert digits.train.images.shape[1:] == (8, 8, 1)
    assert set(np.unique(digits.train.images)) == {round(v * 255 / 16) for v in range(17)}


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_train_validation_and_test_are_disjoint_and_complete(seed):
    config = DataConfig(name="digits", seed=seed)
    digits, test = data.load(config), data.load_test(config)
    parts = [set(split.index.tolist()) for split in (digits.train, digits.validation, test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    assert len(test) == round(0.2 * 1797)
    assert set(test.labels) == set(range(10))


def test_a_seed_draws_its_own_test_digits_and_the_limit_does_not_change_them():
    first = data.load_test(DataConfig(name="digits", seed=0))
    assert (first.index == data.load_test(DataConfig(name="digits", seed=0, limit=100)).index).all()
    assert set(first.index) != set(data.load_test(DataConfig(name="digits", seed=1)).index)


# Statistics and fingerprint


def test_mean_and_std_are_those_of_the_training_split(tmp_path):
    loaded = data.load(folder_config(write_folders(tmp_path, each=8)))
    scaled = loaded.train.images.astype(np.float64) / 255
    assert loaded.mean == pytest.approx(scaled.mean((0, 1, 2)), rel=1e-12)
    assert loaded.std == pytest.approx(scaled.std((0, 1, 2)), rel=1e-12)


def test_images_of_one_colour_get_a_std_above_zero(tmp_path):
    plain = encode(np.full((SIZE, SIZE, 3), 7, np.uint8))
    write_parquet(tmp_path / "train.parquet", [0, 0, 1, 1], images=[plain] * 4)
    loaded = data.load(folder_config(tmp_path))
    assert loaded.mean == pytest.approx((7 / 255,) * 3)
    assert loaded.std == (1e-6,) * 3


def test_the_fingerprint_tells_pixels_split_and_class_names_apart(tmp_path):
    labels = [0, 1] * 4
    images = [encode(pixels(i)) for i in range(8)]
    write_parquet(tmp_path / "a" / "train.parquet", labels, images=images)
    write_parquet(tmp_path / "named" / "train.parquet", labels, images=images, names=["cat", "dog"])
    write_parquet(tmp_path / "pixel" / "train.parquet", labels, images=[*images[:7], encode(pixels(99))])
    write_parquet(tmp_path / "label" / "train.parquet", [1, 0] * 4, images=images)
    prints = [data.load(folder_config(tmp_path / name)).fingerprint for name in ("a", "named", "pixel", "label")]
    prints.append(data.load(folder_config(tmp_path / "a", seed=3)).fingerprint)
    prints.append(data.load(folder_config(tmp_path / "a", validation=0.5)).fingerprint)
    assert len(set(prints)) == len(prints)
    assert all(len(bytes.fromhex(text)) == 8 for text in prints)
    assert data.load(folder_config(tmp_path / "a")).fingerprint == prints[0]


# Class folders


def test_class_folders_are_read_in_order_of_their_names(tmp_path):
    root = write_folders(tmp_path, classes=("dog", "cat"))
    loaded = data.load(folder_config(root))
    assert loaded.classes == ("cat", "dog")
    images = all_images(loaded.train) | all_images(loaded.validation)
    for index in range(8):
        file = root / "train" / ("cat", "dog")[index // 4] / f"{index % 4}.png"
        assert (images[index] == np.asarray(Image.open(file))).all()
    assert loaded.train.labels.tolist() == [index // 4 for index in loaded.train.index]


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".webp", ".bmp"])
def test_every_image_format_is_read_and_other_files_are_passed_over(tmp_path, suffix):
    kind = {".JPG": "JPEG", ".jpeg": "JPEG"}.get(suffix, suffix[1:].upper())
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "notes.txt").write_text("no image")
        for i in range(2):
            (tmp_path / "train" / name / f"{i}{suffix}").write_bytes(encode(pixels(i), kind))
    (tmp_path / "train" / ".hidden").mkdir()
    loaded = data.load(folder_config(tmp_path))
    assert loaded.classes == ("a", "b")
    assert len(loaded.train) + len(loaded.validation) == 4
    close = np.abs(loaded.train.images[0].astype(int) - pixels(int(loaded.train.index[0]) % 2))
    assert kind == "JPEG" or close.max() == 0


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation"])
def test_the_test_folder_may_be_called_validation(tmp_path, name):
    write_folders(write_folders(tmp_path), name, each=3)
    test = data.load_test(folder_config(tmp_path))
    assert test.labels.tolist() == [0] * 3 + [1] * 3
    assert test.index.tolist() == list(range(6))


def test_a_test_folder_comes_before_a_validation_folder(tmp_path):
    for name, each in (("train", 4), ("val", 2), ("test", 3)):
        write_folders(tmp_path, name, each=each)
    assert len(data.load_test(folder_config(tmp_path))) == 6


def test_a_test_set_may_lack_classes_and_keeps_the_labels_of_training(tmp_path):
    write_folders(write_folders(tmp_path), "test", classes=("dog",))
    assert set(data.load_test(folder_config(tmp_path)).labels) == {1}


def test_loading_never_opens_the_test_set(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "test" / "cat").mkdir(parents=True)
    (tmp_path / "test" / "cat" / "0.png").write_bytes(b"broken")
    assert len(data.load(folder_config(tmp_path)).train) == 6
    fault(folder_config(tmp_path), tmp_path / "test" / "cat" / "0.png", test=True)


def test_images_that_the_limit_drops_are_not_decoded(tmp_path):
    root = write_folders(tmp_path, each=6)
    config = folder_config(root, limit=4)
    loaded = data.load(config)
    kept = {*loaded.train.index.tolist(), *loaded.validation.index.tolist()}
    for index in set(range(12)) - kept:
        (root / "train" / ("cat", "dog")[index // 6] / f"{index % 6}.png").write_bytes(b"broken")
    assert data.load(config).fingerprint == loaded.fingerprint


def test_gray_images_keep_one_channel_and_one_coloured_image_makes_three(tmp_path):
    root = write_folders(tmp_path, each=4, shape=(SIZE, SIZE))
    gray = data.load(folder_config(root))
    assert gray.train.images.shape == (6, SIZE, SIZE, 1)
    assert len(gray.mean) == len(gray.std) == 1
    (root / "train" / "dog" / "3.png").write_bytes(encode(pixels(0)))
    mixed = data.load(folder_config(root))
    assert mixed.train.images.shape == (6, SIZE, SIZE, 3)
    assert all_images(mixed.train)[0].tolist() == np.repeat(all_images(gray.train)[0], 3, axis=2).tolist()


@pytest.mark.parametrize(("train", "test"), [((SIZE, SIZE), (SIZE, SIZE, 3)), ((SIZE, SIZE, 3), (SIZE, SIZE))])
def test_test_images_get_the_channels_of_the_training_images(tmp_path, train, test):
    write_folders(write_folders(tmp_path, shape=train), "test", shape=test)
    channels = data.load(folder_config(tmp_path)).train.images.shape[3]
    assert channels == (1 if len(train) == 2 else 3)
    assert data.load_test(folder_config(tmp_path)).images.shape == (8, SIZE, SIZE, channels)


def test_black_and_white_images_count_as_gray(tmp_path):
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(pixels(i, (SIZE, SIZE))).convert("1").save(tmp_path / "train" / name / f"{i}.png")
    loaded = data.load(folder_config(tmp_path))
    assert loaded.train.images.shape[3] == 1
    assert set(np.unique(loaded.train.images)) == {0, 255}


def test_image_size_resizes_images_of_any_shape(tmp_path):
    root = write_folders(tmp_path)
    (root / "train" / "dog" / "0.png").write_bytes(encode(pixels(0, (5, 9, 3))))
    write_folders(root, "test", shape=(7, 7, 3))
    config = folder_config(root, image_size=4)
    assert data.load(config).train.images.shape == (6, 4, 4, 3)
    assert data.load_test(config).images.shape == (8, 4, 4, 3)


# Parquet


@pytest.mark.parametrize("place", [".", "data"])
@pytest.mark.parametrize("binary", [False, True])
def test_parquet_rows_keep_image_label_and_position_across_shards(tmp_path, place, binary):
    labels = [i % 3 for i in range(20)]
    encoded = [encode(pixels(i), ("PNG", "WEBP")[i % 2]) for i in range(20)]
    for shard, rows in enumerate((slice(0, 7), slice(7, 20))):
        write_parquet(
            tmp_path / place / f"train-{shard:05}-of-00002.parquet",
            labels[rows],
            images=encoded[rows],
            names=["x", "y", "z"],
            image=("img", "image")[binary],
            binary=binary,
        )
    loaded = data.load(folder_config(tmp_path))
    assert loaded.classes == ("x", "y", "z")
    images = all_images(loaded.train) | all_images(loaded.validation)
    assert sorted(images) == list(range(20))
    assert all((images[i] == pixels(i)).all() for i in range(20))
    assert loaded.train.labels.tolist() == [labels[i] for i in loaded.train.index]


def test_parquet_without_class_names_numbers_them(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 1, 0, 1])
    write_parquet(tmp_path / "test.parquet", [1, 1])
    assert data.load(folder_config(tmp_path)).classes == ("0", "1")
    assert data.load_test(folder_config(tmp_path)).labels.tolist() == [1, 1]


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": {"features": {"label": {"names": null}}}}'])
def test_metadata_of_another_form_is_passed_over(tmp_path, metadata):
    path = write_parquet(tmp_path / "train.parquet", [0, 1, 0, 1])
    pq.write_table(pq.read_table(path).replace_schema_metadata({b"huggingface": metadata}), path)
    assert data.load(folder_config(tmp_path)).classes == ("0", "1")


def test_cifar100_takes_the_fine_labels(tmp_path):
    labels = [i % 100 for i in range(200)]
    path = write_parquet(tmp_path / "train.parquet", labels, label="fine_label")
    table = pq.read_table(path)
    pq.write_table(table.append_column("label", pa.array([0] * 200)), path)
    assert len(data.load(folder_config(tmp_path, name="cifar100", validation=0.5)).classes) == 100


# Torchvision's files


def cifar_fixture(root: Path, monkeypatch, count: int = 4) -> Path:
    """Tiny files in the layout of CIFAR-10; torchvision is told their checksums."""
    kind = import_datasets().CIFAR10
    folder = root / kind.base_folder
    folder.mkdir(parents=True)

    def write(name: str, content: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(seed: int) -> dict:
        return {"data": pixels(seed, (10 * count, 3072)), "labels": [i % 10 for i in range(10 * count)]}

    monkeypatch.setattr(kind, "train_list", [write("data_batch_1", batch(1)), write("data_batch_2", batch(2))])
    monkeypatch.setattr(kind, "test_list", [write("test_batch", batch(3))])
    meta, checksum = write("batches.meta", {"label_names": [f"class{i}" for i in range(10)]})
    monkeypatch.setattr(kind, "meta", {"filename": meta, "key": "label_names", "md5": checksum})
    return folder


@pytest.mark.parametrize("inside", [False, True])
def test_torchvision_files_are_read_from_root_or_from_their_own_folder(tmp_path, monkeypatch, inside):
    folder = cifar_fixture(tmp_path, monkeypatch)
    config = folder_config(folder if inside else tmp_path, name="cifar10")
    loaded, test = data.load(config), data.load_test(config)
    assert loaded.classes[:2] == ("class0", "class1")
    assert len(loaded.train) + len(loaded.validation) == 80
    first = pixels(1, (40, 3072)).reshape(40, 3, 32, 32).transpose(0, 2, 3, 1)[int(loaded.train.index[0])]
    assert (loaded.train.images[0] == first).all()
    assert (test.images == pixels(3, (40, 3072)).reshape(40, 3, 32, 32).transpose(0, 2, 3, 1)).all()


def test_download_fetches_the_files_into_a_root_that_does_not_exist_yet(tmp_path, monkeypatch):
    kind = import_datasets().CIFAR10
    folder = cifar_fixture(tmp_path / "served", monkeypatch)
    archive = tmp_path / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    config = folder_config(tmp_path / "new" / "root", name="cifar10", download=True)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setattr(kind, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert len(data.load(config).train) == 60
        server.shutdown()
    # Damage is mended from the archive that lies there now, with no server left.
    (tmp_path / "new" / "root" / folder.name / "data_batch_1").write_bytes(b"broken")
    assert len(data.load(config).train) == 60


def test_a_failed_download_names_root_and_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(import_datasets().CIFAR10, "url", (tmp_path / "nowhere.tar.gz").as_uri())
    fault(
        folder_config(tmp_path / "root", name="cifar10", download=True),
        tmp_path / "root",
        "could not fetch cifar10",
        "check the network",
    )
    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir()
    fault(
        folder_config(tmp_path / "root", name="cifar10", download=True),
        folder,
        "data_batch_1",
        "fetching it again failed",
        "check the network",
    )


def test_a_wrong_checksum_names_folder_file_and_cure(tmp_path, monkeypatch):
    folder = cifar_fixture(tmp_path, monkeypatch)
    (folder / "data_batch_2").write_bytes(b"broken")
    message = fault(folder_config(tmp_path, name="cifar10"), folder, "data_batch_2", "set data.download: true")
    assert "data_batch_1" not in message


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_torchvision_files_name_folder_and_cure(tmp_path, name):
    folder = tmp_path / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    folder.mkdir()
    fault(folder_config(tmp_path, name=name), folder, "missing", "set data.download: true")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300)


def test_the_guard_helps_after_a_failed_import_and_twice():
    done = run_python(
        "try:\n    import torchvision\nexcept RuntimeError:\n    pass\n"
        "from hksd.torchvision_guard import import_datasets\n"
        "assert import_datasets() is import_datasets()\n"
        "import torchvision.transforms, torchvision.models\n"
        "import_datasets().CIFAR10\n"
    )
    assert done.returncode == 0, done.stderr


def test_the_guard_passes_other_failures_on():
    done = run_python(
        "import importlib, pytest\n"
        "from hksd import torchvision_guard\n"
        "def fail(name):\n    raise RuntimeError('other CUDA versions')\n"
        "importlib.import_module = fail\n"
        "with pytest.raises(RuntimeError, match='other CUDA'):\n    torchvision_guard.import_datasets()\n"
    )
    assert done.returncode == 0, done.stderr


def test_the_guard_leaves_a_torchvision_that_imports_alone(tmp_path):
    (tmp_path / "torchvision").mkdir()
    for name in ("__init__.py", "datasets.py"):
        (tmp_path / "torchvision" / name).write_text("")
    done = run_python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from hksd.torchvision_guard import import_datasets\n"
        f"assert import_datasets().__file__.startswith({str(tmp_path)!r})\n"
        "assert 'torch' not in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_no_heavy_library():
    done = run_python(
        "import sys, hksd.data; "
        "print([m for m in ('torch', 'torchvision', 'PIL', 'pyarrow', 'sklearn') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


# Errors: each names the file or folder, and the cure


def test_a_missing_root_is_named(tmp_path):
    fault(folder_config(tmp_path / "nowhere"), tmp_path / "nowhere", "does not exist", "correct the path")
    fault(folder_config(tmp_path / "nowhere", name="cifar10"), tmp_path / "nowhere", "data.download: true")


def test_a_root_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    fault(folder_config(tmp_path / "file"), tmp_path / "file", "is a file", "give the folder")


def test_an_unrecognised_root_lists_what_was_expected(tmp_path):
    message = fault(folder_config(tmp_path), tmp_path, "train-*.parquet", "train/CLASS/")
    assert "torchvision" not in message
    fault(folder_config(tmp_path, name="cifar100"), tmp_path, "cifar-100-python", "train-*.parquet", "download: true")


def test_torchvision_files_under_another_name_propose_that_name(tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    fault(folder_config(tmp_path), tmp_path, "set data.name: cifar100")
    fault(folder_config(tmp_path / "cifar-100-python"), tmp_path, "set data.name: cifar100")


def test_a_missing_test_split_says_where_it_was_looked_for(tmp_path):
    folders, parquet = write_folders(tmp_path / "folders"), tmp_path / "parquet"
    write_parquet(parquet / "data" / "train.parquet", [0, 1, 0, 1])
    for root in (folders, parquet):
        data.load(folder_config(root))
    fault(folder_config(folders), folders, "no test split", "test, val, valid, validation", "test/CLASS/", test=True)
    fault(folder_config(parquet), parquet / "data", "no test split", "test-*.parquet", "put the test images", test=True)


@pytest.mark.parametrize(("column", "looked"), [("image", "img or image"), ("label", "label")])
def test_a_missing_column_lists_the_columns_there_are(tmp_path, column, looked):
    path = write_parquet(tmp_path / "train.parquet", [0, 1, 0, 1], **{column: "other"})
    fault(folder_config(tmp_path), path, f"no column of {column}s", f"looked for {looked}", "other", "rename it")


def test_columns_of_another_type_are_named(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), path)
    fault(folder_config(tmp_path), path, "column 'image' holds string", "expected binary")
    pq.write_table(pa.table({"image": [b"x"], "label": ["cat"]}), path)
    fault(folder_config(tmp_path), path, "column 'label' holds string", "whole numbers")


@pytest.mark.parametrize("keep", [0, 100, -50])
def test_a_truncated_parquet_file_is_named(tmp_path, keep):
    path = write_parquet(tmp_path / "train.parquet", [0, 1, 0, 1])
    path.write_bytes(path.read_bytes()[:keep])
    fault(folder_config(tmp_path), path, "truncated", "fetch it again")


def test_damage_inside_a_parquet_file_is_named(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", [0, 1] * 10)
    content = bytearray(path.read_bytes())
    # The footer stays whole, so the damage shows only when pages are read.
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    path.write_bytes(content)
    fault(folder_config(tmp_path), path)


def test_a_missing_shard_is_noticed(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [0, 1, 0, 1])
    fault(folder_config(tmp_path), tmp_path, "train-00000-of-00002.parquet", "complete the download")


def test_shards_of_different_data_sets_are_refused(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [0, 1], names=["a", "b"])
    odd = write_parquet(tmp_path / "train-1.parquet", [0, 1], names=["a", "c"])
    fault(folder_config(tmp_path), odd, "differ", "keep only files of one data set")


def test_a_parquet_file_without_rows_is_named(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", np.array([], np.int64), images=[])
    fault(folder_config(tmp_path), path, "no rows", "add images")


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"no image",
        encode(pixels(0))[:60],
        encode(pixels(0), "JPEG")[:-80],
        encode(pixels(0), "WEBP")[:-20],
        encode(pixels(0), "BMP")[:-20],
    ],
)
def test_an_undecodable_image_is_named_by_file_or_row(tmp_path, broken):
    root = write_folders(tmp_path / "folders")
    file = root / "train" / "dog" / "2.png"
    file.write_bytes(broken)
    fault(folder_config(root), file, "replace or remove it")
    images = [encode(pixels(i)) for i in range(8)]
    images[5] = broken
    path = write_parquet(tmp_path / "parquet" / "train.parquet", [0, 1] * 4, images=images)
    fault(folder_config(path.parent), f"{path}, row 5", "replace or remove it")


def test_an_image_of_a_format_that_is_not_read_is_named(tmp_path):
    root = write_folders(tmp_path)
    file = root / "train" / "dog" / "2.png"
    file.write_bytes(encode(pixels(0), "TGA"))
    fault(folder_config(root), file, "no WEBP, PNG, JPEG, BMP, DIB, GIF, TIFF, JPEG2000, PPM, AVIF image")


def test_an_unreadable_image_is_named(tmp_path):
    root = write_folders(tmp_path)
    source = find_source(folder_config(root)).train()
    file = root / "train" / "cat" / "0.png"
    file.unlink()
    with pytest.raises(DataError, match="cannot be read") as caught:
        next(source.pictures(np.array([0])))
    assert str(file) in str(caught.value)


def test_a_row_without_image_bytes_is_named(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", [0, 1] * 2, images=[encode(pixels(0))] * 3 + [None])
    fault(folder_config(tmp_path), f"{path}, row 3", "store the image itself")


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_an_image_whose_numbers_do_not_say_what_is_white_is_named(tmp_path, kind):
    root = write_folders(tmp_path)
    file = root / "train" / "cat" / "1.png"
    Image.fromarray(np.zeros((SIZE, SIZE), kind)).save(file, "TIFF")
    fault(folder_config(root), file, "which number is black", "scale them to 8 or 16 bits")


def test_the_first_image_of_another_size_is_named(tmp_path):
    root = write_folders(tmp_path)
    odd = root / "train" / "cat" / "1.png"
    odd.write_bytes(encode(pixels(0, (9, 9, 3))))
    fault(folder_config(root, validation=0.1), odd, "9 x 9", root / "train" / "cat" / "0.png", "data.image_size: 6")


def test_an_odd_row_of_a_parquet_file_is_named(tmp_path):
    images = [encode(pixels(i, (9, 9, 3) if i == 6 else (SIZE, SIZE, 3))) for i in range(8)]
    path = write_parquet(tmp_path / "train.parquet", [0, 1] * 4, images=images)
    fault(folder_config(tmp_path), f"{path}, row 6", "9 x 9", "set data.image_size")


def test_a_test_image_of_another_size_is_named(tmp_path):
    write_folders(write_folders(tmp_path), "test", shape=(9, 9, 3))
    fault(folder_config(tmp_path), tmp_path / "test" / "cat" / "0.png", "set data.image_size", test=True)


def test_images_that_are_not_square_need_image_size(tmp_path):
    root = write_folders(tmp_path, shape=(5, 8, 3))
    fault(folder_config(root), root / "train" / "cat" / "0.png", "8 x 5", "must be square", "data.image_size: 8")
    assert data.load(folder_config(root, image_size=8)).train.images.shape == (6, 8, 8, 3)


@pytest.mark.parametrize(("name", "count"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_without_its_classes_proposes_the_name_folder(tmp_path, name, count):
    root = write_folders(tmp_path)
    fault(folder_config(root, name=name), root, f"2 classes, but {name} has {count}", "data.name: folder")
    fault(folder_config(root, name=name), root, "data.name: folder", test=True)


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_empty_class_folder_is_named(tmp_path, part):
    root = write_folders(write_folders(tmp_path), "test")
    for file in (root / part / "dog").iterdir():
        file.unlink()
    fault(
        folder_config(root),
        root / part / "dog",
        "no images in this class folder",
        "remove the folder",
        test=part == "test",
    )


def test_a_test_folder_without_classes_is_named(tmp_path):
    (write_folders(tmp_path) / "test").mkdir()
    fault(folder_config(tmp_path), tmp_path / "test", "no class folders", "expected test/CLASS/", test=True)


def test_a_test_class_that_training_lacks_is_named(tmp_path):
    root = write_folders(write_folders(tmp_path / "folders"), "test", classes=("cat", "emu"))
    fault(
        folder_config(root),
        root / "test" / "emu",
        "not in the training set",
        "cat, dog",
        "add training images",
        test=True,
    )
    for name, last in (("names", "emu"), ("order", "cat")):
        write_parquet(tmp_path / name / "train.parquet", [0, 1] * 2, names=["cat", "dog"])
        path = write_parquet(tmp_path / name / "test.parquet", [0, 1], names=["dog", last])
        fault(folder_config(path.parent), path, "class names differ", "the same class names", test=True)
    write_parquet(tmp_path / "numbers" / "train.parquet", [0, 1] * 2)
    path = write_parquet(tmp_path / "numbers" / "test.parquet", [0, 2])
    fault(folder_config(path.parent), f"{path}, row 1", "label 2", "2 classes", "correct the label", test=True)


def test_more_classes_than_fit_a_line_are_shortened(tmp_path):
    root = write_folders(tmp_path, classes=[f"c{i:02}" for i in range(12)], each=2)
    write_folders(root, "test", classes=("new",))
    fault(folder_config(root), "c09, ... 12 in all", test=True)


@pytest.mark.parametrize(
    ("labels", "names", "where", "what"),
    [
        ([0, 1, 0, -1], None, ", row 3", "negative"),
        ([0, None, 0, 1], None, ", row 1", "no label (null)"),
        ([0, 1, 2, 1], ["cat", "dog"], ", row 2", "label 2"),
    ],
)
def test_a_wrong_label_is_named_by_row(tmp_path, labels, names, where, what):
    path = write_parquet(tmp_path / "train.parquet", labels, names=names)
    message = fault(folder_config(tmp_path), f"{path}{where}", what)
    assert "remove the row" in message or "correct the label" in message


def test_a_gap_in_unnamed_labels_is_named(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 0, 1_000_000_000, 1_000_000_000])
    fault(folder_config(tmp_path), tmp_path, "no image has label 1", "without gaps")


def test_a_limit_above_the_training_set_is_refused(tmp_path):
    fault(folder_config(write_folders(tmp_path), limit=9), tmp_path, "data.limit is 9", "8 images", "lower data.limit")


def test_a_limit_too_small_for_the_classes_is_refused(tmp_path):
    fault(
        folder_config(write_folders(tmp_path), limit=3), tmp_path, "'dog' has 1 image", "raise data.limit", "at least 4"
    )


@pytest.mark.parametrize("limit", [None, 5])
def test_a_class_too_small_to_split_is_refused(tmp_path, limit):
    root = write_folders(tmp_path)
    (root / "train" / "emu").mkdir()
    (root / "train" / "emu" / "0.png").write_bytes(encode(pixels(0)))
    fault(folder_config(root, limit=limit), root, "class 'emu' has 1 image", "add images of that class")


def test_a_named_class_without_images_is_refused(tmp_path):
    write_parquet(tmp_path / "train.parquet", [0, 1] * 2, names=["cat", "dog", "emu"])
    fault(folder_config(tmp_path), tmp_path, "class 'emu' has 0 image", "remove the class")


def test_a_single_class_is_refused(tmp_path):
    fault(folder_config(write_folders(tmp_path, classes=("images",))), tmp_path, "only one class ('images')")
