"""Kept images are what decoding gives, for exactly the files and settings they were made of, whole or not at all."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import signal
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hksd import data
from hksd.config.run import RunConfig, dump_yaml
from hksd.data import store
from hksd.data.raw import states_of
from hksd.data.settings import DataConfig
from hksd.data.sources import find_source
from hksd.errors import DataError
from hksd.fit import fit
from hksd_search.cli import app
from hksd_search.session import RESERVED

Child = Callable[..., subprocess.Popen[str]]
SIZE, EACH = 6, 8


def write_image(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of eight training images and two test images, in folders."""
    for part, each in (("train", EACH), ("test", 2)):
        for number, name in enumerate(("cat", "dog")):
            for i in range(each):
                write_image(tmp_path / "images" / part / name / f"{i}.png", 1000 * (part == "test") + 100 * number + i)
    return tmp_path / "images"


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "runs" / store.FOLDER


@pytest.fixture
def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A call after which nothing may be decoded."""

    def refuse(*_: Any) -> None:
        raise AssertionError("decoded again")

    return lambda: monkeypatch.setattr(data, "_read", refuse)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[DataConfig]:
    """The configurations of all sets that were decoded."""
    real, found = data._read, []

    def note(source: Any, config: DataConfig) -> data.DataSet:
        found.append(config)
        return real(source, config)

    monkeypatch.setattr(data, "_read", note)
    return found


def settings(root: Path, **knobs: Any) -> DataConfig:
    return DataConfig(**{"name": "folder", "root": str(root), "validation": 0.25, **knobs})


def same(one: data.DataSet, two: data.DataSet) -> bool:
    def plain(found: data.DataSet) -> tuple[Any, ...]:
        return found.name, found.classes, found.mean, found.std, found.fingerprint

    pairs = [(getattr(one, part), getattr(two, part)) for part in ("train", "validation")]
    return plain(one) == plain(two) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) and getattr(a, name).dtype == getattr(b, name).dtype
        for a, b in pairs
        for name in ("images", "labels", "index")
    )


def the_file(kept: Path) -> Path:
    (found,) = kept.glob(f"*/{store.IMAGES}")
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


# --- what is opened


@pytest.mark.parametrize("form", ["folder", "gray"])
def test_opened_images_are_those_that_were_decoded(form: str, root: Path, kept: Path, reads: list[Any]) -> None:
    if form == "gray":
        for file in root.rglob("*.png"):
            Image.open(file).convert("L").save(file)
    config = settings(root, image_size=7)
    decoded, first, second = data.load(config), data.load(config, kept), data.load(config, kept)
    assert same(decoded, first)
    assert same(decoded, second)
    assert len(reads) == 2  # the one without a store, and the first with it


def test_opened_images_are_read_only_views_of_the_file(root: Path, kept: Path) -> None:
    for _ in range(2):  # whoever made the file holds no copy either
        found = data.load(settings(root), kept)
        for split in (found.train, found.validation):
            assert isinstance(split, data.Split)
            for array in (split.images, split.labels, split.index):
                assert not array.flags.writeable
                assert not array.flags.owndata
                assert array.ctypes.data % array.itemsize == 0


def test_opened_images_travel_between_processes(root: Path, kept: Path) -> None:
    found = data.load(settings(root), kept)
    assert same(pickle.loads(pickle.dumps(found, protocol=5)), found)


def test_no_test_image_is_in_the_file(root: Path, kept: Path) -> None:
    data.load(settings(root), kept)
    content = the_file(kept).read_bytes()
    train, test = (
        [np.asarray(Image.open(file)).tobytes() for file in sorted((root / part).rglob("*.png"))]
        for part in ("train", "test")
    )
    assert all(pixels in content for pixels in train)
    assert not any(pixels in content for pixels in test)


def test_streamed_images_are_not_kept(root: Path, kept: Path) -> None:
    assert isinstance(data.load(settings(root, streaming=True), kept).train, data.StreamSplit)
    assert not kept.exists()


# --- the key


def test_every_setting_that_decides_pixels_has_a_file_of_its_own(root: Path, kept: Path, reads: list[Any]) -> None:
    base = settings(root)
    knobs: list[dict[str, Any]] = [{"limit": 8}, {"image_size": 9}, {"validation": 0.5}, {"seed": 1}]
    for number, change in enumerate([{}, *knobs], 1):
        config = dataclasses.replace(base, **change)
        assert same(data.load(config, kept), data.load(config))
        assert len(list(kept.glob("*/images"))) == number
    before = len(reads)
    for free in ({"threads": 9}, {"crop": 0}, {"flip": False}, {"download": True}):
        data.load(dataclasses.replace(base, **free), kept)
    assert len(reads) == before


def test_the_noise_of_distorted_images_is_in_the_key(root: Path) -> None:
    state = list(find_source(settings(root)).state())
    keys = [store.key_of(settings(root, name="tcifar10", noise=noise), state) for noise in (0.5, 1.0)]
    assert keys[0] != keys[1]


def change_pixels(root: Path) -> None:
    write_image(root / "train/cat/0.png", 77)


def touch(root: Path) -> None:
    file = root / "train/cat/0.png"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


def rename(root: Path) -> None:
    (root / "train/cat/0.png").rename(root / "train/cat/zero.png")


def add(root: Path) -> None:
    write_image(root / "train/dog/deep/er.PNG", 5)


def remove(root: Path) -> None:
    (root / "train/dog/3.png").unlink()


@pytest.mark.parametrize("change", [change_pixels, touch, rename, add, remove])
def test_a_changed_training_file_is_decoded_again(
    change: Callable[[Path], None], root: Path, kept: Path, reads: list[Any]
) -> None:
    data.load(settings(root), kept)
    change(root)
    assert same(data.load(settings(root), kept), data.load(settings(root)))
    assert len(reads) == 3


def test_a_changed_test_file_changes_nothing(root: Path, kept: Path, reads: list[Any]) -> None:
    data.load(settings(root), kept)
    write_image(root / "test/cat/9.png", 5)
    data.load(settings(root), kept)
    assert len(reads) == 1


def test_files_of_equal_names_sizes_and_times_in_another_folder_are_not_taken_for_these(
    root: Path, kept: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    for file in sorted((root / "train").rglob("*.png")):
        copy = other / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
        for each in (file, copy):
            os.utime(each, ns=(0, 0))
    (other / "train/cat/0.png").write_bytes((root / "train/cat/0.png").read_bytes()[::-1])
    os.utime(other / "train/cat/0.png", ns=(0, 0))
    data.load(settings(root), kept)
    with pytest.raises(DataError):
        data.load(settings(other), kept)


def test_a_new_class_without_images_is_still_told(root: Path, kept: Path) -> None:
    data.load(settings(root), kept)
    (root / "train" / "bird").mkdir()
    with pytest.raises(DataError, match="no images in this class folder"):
        data.load(settings(root), kept)


def test_another_format_is_another_file(root: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data.load(settings(root), kept)
    monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
    data.load(settings(root), kept)
    assert len(list(kept.glob("*/images"))) == 2


def test_files_that_change_while_they_are_read_are_not_kept(
    root: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = data._read

    def read(source: Any, config: DataConfig) -> data.DataSet:
        found = real(source, config)
        change_pixels(root)
        return found

    monkeypatch.setattr(data, "_read", read)
    assert len(data.load(settings(root), kept).train) == 12
    assert not list(kept.glob("*/images"))


@pytest.mark.parametrize(
    ("name", "read", "passed_over"),
    [
        ("cifar10", ["data/train-0.parquet", "data/train-1.parquet"], ["data/test.parquet", "data/train.csv"]),
        ("cifar10", ["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/batches.meta"], ["other"]),
        ("svhn", ["train_32x32.mat", "test_32x32.mat"], ["notes.txt"]),
        ("fashion_mnist", ["FashionMNIST/raw/train-labels-idx1-ubyte.gz"], ["FashionMNIST/other"]),
        ("folder", ["train/cat/a.PNG", "train/cat/deep/b.jpg"], ["train/cat/notes.txt", "train/c.png", "test/d/e.png"]),
    ],
)
def test_every_layout_tells_the_files_that_it_reads(
    name: str, read: list[str], passed_over: list[str], tmp_path: Path
) -> None:
    for number, file in enumerate([*read, *passed_over], 1):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(bytes(number))
        os.utime(tmp_path / file, ns=(0, 10**18 + number))
    states = find_source(settings(tmp_path, name=name)).state()
    expected = {(str(tmp_path / file), number, 10**18 + number) for number, file in enumerate(read, 1)}
    assert {tuple(state) for state in states if not state.name.endswith("/")} == expected


def test_what_comes_from_no_file_is_not_kept(kept: Path) -> None:
    assert len(data.load(DataConfig(name="digits"), kept).train) == 1294
    assert not kept.exists()


def test_a_file_that_cannot_be_looked_at_is_left_to_its_reader(tmp_path: Path) -> None:
    (state,) = states_of([tmp_path / "nowhere.parquet"])
    assert state.size == -1


# --- damage


def cut(content: bytes) -> bytes:
    return content[:-100]


def flip_a_pixel(content: bytes) -> bytes:
    return content[:-700] + bytes([content[-700] ^ 1]) + content[-699:]


def flip_a_head(content: bytes) -> bytes:
    return content.replace(b'"cat"', b'"cut"')


def older(content: bytes) -> bytes:
    return b"hksd images 0\n" + content[len(store.MAGIC) :]


@pytest.mark.parametrize("damage", [cut, flip_a_pixel, flip_a_head, older, lambda _: b"", lambda _: b"x" * 5000])
def test_a_damaged_file_is_made_again_with_one_warning(
    damage: Callable[[bytes], bytes], root: Path, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = data.load(settings(root), kept)
    file = the_file(kept)
    content = file.read_bytes()
    assert damage(content) != content
    file.with_name("damaged").write_bytes(damage(content))  # the old one stays mapped
    file.with_name("damaged").replace(file)
    assert same(data.load(settings(root), kept), before)
    assert str(file) in warnings(caplog)
    assert "decoded again" in warnings(caplog)
    assert len(caplog.records) == 1
    assert the_file(kept).read_bytes() == content


def test_the_checksum_is_read_once_for_each_state_of_a_file(
    root: Path, kept: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.load(settings(root), kept)
    file = the_file(kept)
    with file.open("r+b") as opened:  # behind the back of its time, as no program does
        status = os.fstat(opened.fileno())
        opened.seek(-700, os.SEEK_END)
        opened.write(b"?")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    data.load(settings(root), kept)
    assert not warnings(caplog)
    monkeypatch.setattr(store, "_verified", set())  # what another process knows
    data.load(settings(root), kept)
    assert "truncated or damaged" in warnings(caplog)


# --- several processes, killed processes, folders that cannot be written

LOAD = """
import os, signal, sys, time
from pathlib import Path
from hksd import data
from hksd.data.settings import DataConfig
real = data._read
def read(source, config):
    print("decoded", flush=True)
    return real(source, config)
data._read = read
def load():
    return data.load(DataConfig(name="folder", root=sys.argv[1], validation=0.25), Path(sys.argv[2]))
"""


def test_of_processes_that_start_together_one_decodes(child: Child, root: Path, kept: Path) -> None:
    meet = """
def slowly(source, config):
    found = read(source, config)
    while len(list(ready.parent.glob("ready-*"))) < 3:  # so that nobody comes when it is done
        time.sleep(0.01)
    time.sleep(0.2)
    return found
data._read, ready = slowly, Path(sys.argv[1]).with_name(f"ready-{os.getpid()}")
ready.touch()
print(load().fingerprint)
"""
    processes = [child(LOAD + meet, root, kept) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    words = [word for output, _ in outputs for word in output.split()]
    assert words.count("decoded") == 1
    assert len(set(words)) == 2


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(
    call: str, child: Child, root: Path, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    owner = "os" if call == "fsync" else "Path"
    process = child(
        LOAD + f"{owner}.{call} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nload()",
        root,
        kept,
    )
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len(list(kept.glob("*/.images.*.tmp"))) == 1
    assert not list(kept.glob("*/images"))
    assert same(data.load(settings(root), kept), data.load(settings(root)))
    assert sorted(path.name for path in the_file(kept).parent.iterdir()) == [".lock", "images"]
    assert not warnings(caplog)


def test_a_full_disk_leaves_the_images_in_memory_with_a_warning(
    root: Path,
    kept: Path,
    full_disk: Callable[[int], AbstractContextManager[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with full_disk(2000):
        assert same(data.load(settings(root), kept), data.load(settings(root)))
    assert "cannot be kept" in warnings(caplog)
    assert not [file for file in kept.rglob("*") if file.is_file() and file.name != ".lock"]


def test_a_folder_that_cannot_be_made_leaves_the_images_in_memory_with_a_warning(
    root: Path, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept.parent.mkdir()
    kept.write_text("a file in its place")
    assert same(data.load(settings(root), kept), data.load(settings(root)))
    assert str(kept) in warnings(caplog)
    assert "they stay in memory" in warnings(caplog)


def test_kept_images_open_where_nothing_can_be_written(
    root: Path, kept: Path, forbid_decoding: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    data.load(settings(root), kept)
    forbid_decoding()

    def refuse(*_: Any) -> None:
        raise AssertionError("locked")

    monkeypatch.setattr(store, "made_once", refuse)
    assert len(data.load(settings(root), kept).train) == 12


def test_faults_of_the_data_are_told_and_nothing_is_kept(root: Path, kept: Path) -> None:
    (root / "train/cat/0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png"):
        data.load(settings(root), kept)
    assert not kept.parent.exists()


# --- in use


def test_a_run_on_kept_images_ends_like_one_on_images_in_memory(
    make_config: Callable[..., RunConfig], root: Path, tmp_path: Path, forbid_decoding: Callable[[], None]
) -> None:
    images = {"name": "folder", "root": str(root), "validation": 0.25}
    config = make_config(train={"epochs": 1}, terms={"ce": {}}, data=images)
    in_memory = fit(config, data=data.load(config.data))
    first = fit(config, cache_dir=tmp_path / "teachers")
    forbid_decoding()
    second = fit(config, cache_dir=tmp_path / "teachers")
    assert (tmp_path / store.FOLDER).is_dir()
    for other in (first, second):
        weights = zip(in_memory.student.state_dict().values(), other.student.state_dict().values(), strict=True)
        assert all(torch.equal(one, two) for one, two in weights)
        assert other.data_fingerprint == in_memory.data_fingerprint


def test_the_commands_decode_once(
    make_config: Callable[..., RunConfig], root: Path, tmp_path: Path, reads: list[Any]
) -> None:
    images = {"name": "folder", "root": str(root), "validation": 0.25}
    config = make_config(train={"epochs": 1}, terms={"ce": {}, "kd": {}}, data=images)
    (tmp_path / "run.yaml").write_text(dump_yaml(config))
    runs = ["--runs", str(tmp_path / "runs")]
    for words in (
        ["teacher", str(tmp_path / "run.yaml")],
        ["train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out")],
        ["evaluate", str(tmp_path / "out")],
    ):
        result = CliRunner().invoke(app, [*words, *runs])
        assert result.exit_code == 0, result.output
    assert len(reads) == 1


def test_no_search_can_have_the_name_of_the_store() -> None:
    assert store.FOLDER in RESERVED
