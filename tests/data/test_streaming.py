"""Streamed images: the same pixels, whatever the threads; bounded memory; no thread left behind; told damage."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hksd import data
from hksd.config.run import config_hash, dump_yaml, from_tree
from hksd.data import crops, stream
from hksd.data.augment import Batch, Batches, batches_of
from hksd.data.files import Files
from hksd.data.raw import Form
from hksd.data.settings import DataConfig
from hksd.deploy.export import export
from hksd.errors import DataError
from hksd.fit import fit
from hksd_search.cli import app

CPU = torch.device("cpu")


def write_folders(
    root: Path, part="train", classes=("cat", "dog"), each=12, size=(16, 16), kind="png", mode="RGB"
) -> Path:
    """Class folders of random images, half of them in a folder below, with suffixes in small and capital letters."""
    for number, name in enumerate(classes):
        folder = root / part / name
        (folder / "more").mkdir(parents=True)
        for i in range(each):
            seed = [number, i, len(part)]
            shape = (size[1], size[0], *((3,) if mode == "RGB" else ()))
            pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
            suffix = kind.upper() if i % 3 == 0 else kind
            Image.fromarray(pixels).save((folder / "more" if i % 2 else folder) / f"{i:03}.{suffix}")
    return root


def settings(root: Path, **knobs) -> DataConfig:
    return DataConfig(**{"name": "folder", "root": str(root), "validation": 0.25, "streaming": True, **knobs})


def training(config: DataConfig, epoch=0, batch_size=5, order_seed=0, loaded=None) -> list[Batch]:
    loaded = loaded or data.load(config)
    return list(batches_of(loaded.train, loaded, config, CPU, augment=True).augmented(epoch, batch_size, order_seed))


def same(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and (a.index is b.index is None or torch.equal(a.index, b.index))
        for a, b in zip(one, two, strict=True)
    )


def decoders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("hksd-images")]


def fault(config: DataConfig, *parts: object) -> None:
    with pytest.raises(DataError) as caught:
        data.load(config)
    assert all(str(part) in str(caught.value) for part in parts), str(caught.value)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    return write_folders(write_folders(folder), "test", each=4)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """JPEG files that are not square."""
    folder = tmp_path_factory.mktemp("photos")
    return write_folders(write_folders(folder, size=(60, 40), kind="jpeg"), "test", size=(40, 60), kind="jpeg", each=3)


# The same pixels


@pytest.mark.parametrize("knobs", [{}, {"image_size": 9}, {"crop": 0, "flip": False}, {"limit": 18, "seed": 3}])
def test_streamed_and_held_images_are_the_same_to_the_bit(root, knobs):
    streamed, held = (data.load(settings(root, streaming=kind, **knobs)) for kind in (True, False))
    assert (streamed.mean, streamed.std, streamed.classes) == (held.mean, held.std, held.classes)
    assert streamed.image_shape == held.image_shape
    for name in ("train", "validation"):
        one, two = getattr(streamed, name), getattr(held, name)
        assert (one.index == two.index).all()
        assert (one.labels == two.labels).all()
        plain = [
            list(batches_of(part, loaded, settings(root, **knobs), CPU, augment=False).plain(5))
            for part, loaded in ((one, streamed), (two, held))
        ]
        assert same(*plain)
    for epoch in (0, 1):
        batches = [training(settings(root, **knobs), epoch, loaded=loaded) for loaded in (streamed, held)]
        assert same(*batches)
        assert sorted(torch.cat([b.index for b in batches[0]]).tolist()) == list(range(len(held.train)))


def test_the_streamed_test_split_has_the_pixels_of_the_held_one(root):
    streamed, held = (data.load_test(settings(root, streaming=kind)) for kind in (True, False))
    loaded = data.load(settings(root))
    one, two = (Batches(part, loaded, crop=0, flip=False, seed=0, device=CPU) for part in (streamed, held))
    assert same(list(one.plain(3)), list(two.plain(3)))


def test_gray_folders_stay_gray(tmp_path):
    loaded = data.load(settings(write_folders(tmp_path, mode="L")))
    assert loaded.channels == len(loaded.mean) == 1
    assert training(settings(tmp_path))[0].images.shape == (5, 1, 16, 16)


@pytest.mark.parametrize("crop_scale", [0.0, 0.1])
def test_batches_do_not_depend_on_the_number_of_threads(photos, crop_scale, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK", 2)
    runs = [
        training(settings(photos, image_size=24, crop_scale=crop_scale, threads=threads), 3, batch_size=8)
        for threads in (1, 2, 7)
    ]
    assert same(runs[0], runs[1])
    assert same(runs[0], runs[2])


def test_views_are_functions_of_seed_epoch_and_image_and_not_of_order_or_batch(photos):
    def by_index(**knobs) -> torch.Tensor:
        call = {key: knobs.pop(key) for key in ("epoch", "batch_size", "order_seed") if key in knobs}
        found = training(settings(photos, image_size=24, crop_scale=0.1, **knobs), **call)
        images, rows = torch.cat([b.images for b in found]), torch.cat([b.index for b in found])
        return images[rows.argsort()]

    base = by_index()
    assert torch.equal(by_index(order_seed=7, batch_size=3), base)
    for other in (by_index(epoch=1), by_index(flip=False)):
        assert not torch.equal(other, base)


def test_the_order_is_that_of_images_in_memory(root, photos):
    held = data.load(settings(root, streaming=False))
    one = training(settings(root, streaming=False), 2, order_seed=5, loaded=held)
    two = training(settings(root), 2, order_seed=5)
    assert [b.index.tolist() for b in one] == [b.index.tolist() for b in two]


def test_a_last_image_alone_joins_the_batch_before_it(root):
    assert [len(batch.labels) for batch in training(settings(root), batch_size=17)] == [18]


# What is taken of a picture


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (64, 64), (7, 3)])
def test_random_parts_keep_their_share_and_ratio_and_lie_inside(width, height):
    shares, places = [], set()
    for bits in range(400):
        left, upper, right, lower = crops.draw_box(width, height, 0.08, bits)
        wide, tall = right - left, lower - upper
        assert 0 <= left < right <= width
        assert 0 <= upper < lower <= height
        if width > 50:
            assert 0.08 * 0.97 < wide * tall / (width * height) <= 1
            assert 0.75 * 0.95 < wide / tall < 4 / 3 * 1.05
        shares.append(wide * tall / (width * height))
        places.add((left, upper))
    if width > 50:
        assert min(shares) < 0.12
        assert max(shares) > 0.85
        assert len(places) > 200


def test_a_picture_too_long_for_any_part_gives_its_largest_centre():
    assert crops.draw_box(1000, 10, 1.0, 0) == (493, 0, 506, 10)
    assert crops.draw_box(10, 1000, 1.0, 0) == (0, 493, 10, 506)


def test_a_random_part_is_that_part_of_the_picture_resized():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    box = crops.draw_box(60, 40, 0.3, 11)
    found = crops.random_part("x", Image.fromarray(pixels), Form(8, 3, True, ""), 0.3, 11)
    wanted = Image.fromarray(pixels).crop(box).resize((8, 8), Image.Resampling.BILINEAR)
    # Pixels at the edge may see one neighbour outside the part.
    assert np.abs(found.astype(int) - np.asarray(wanted).astype(int))[1:-1, 1:-1].max() <= 1


def test_evaluation_takes_the_centre_of_the_resized_picture():
    ramp = np.broadcast_to(np.arange(320, dtype=np.float64)[None, :, None] / 320 * 255, (256, 320, 3)).astype(np.uint8)
    found = crops.centre("x", Image.fromarray(ramp), Form(224, 3, True, ""))
    assert (found == ramp[16:240, 48:272]).all()
    assert crops.centre("x", Image.fromarray(ramp), Form(10, 3, True, "")).shape == (10, 10, 3)


def test_a_jpeg_decoded_at_a_part_of_its_size_looks_like_the_whole(tmp_path):
    y, x = np.mgrid[0:400, 0:600]
    pixels = np.stack([x / 600, y / 400, (x + y) / 1000], -1) * 255
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")
    form = Form(32, 3, True, "")
    for cut in (lambda p: crops.centre("x", p, form), lambda p: crops.random_part("x", p, form, 0.5, 3)):
        small, whole = (cut(Image.open(tmp_path / f"a.{kind}")).astype(int) for kind in ("jpg", "png"))
        assert np.abs(small - whole).max() <= 4


# Facts of the data set


def test_nothing_is_decoded_to_load_an_imagenet(tmp_path, monkeypatch):
    monkeypatch.setitem(data.sources.CLASSES, "imagenet", 2)
    write_folders(tmp_path, kind="jpeg")
    for file in (tmp_path / "train").rglob("*.jp*g"):
        file.write_bytes(b"not an image")
    loaded = data.load(settings(tmp_path, name="imagenet"))
    assert (loaded.image_size, loaded.channels) == (224, 3)
    assert loaded.mean == (0.485, 0.456, 0.406)
    assert loaded.std == (0.229, 0.224, 0.225)


def test_the_fingerprint_tells_names_sizes_labels_split_and_form_apart(tmp_path):
    def prints(root: Path, **knobs) -> str:
        return data.load(settings(root, **knobs)).fingerprint

    roots = [write_folders(tmp_path / name) for name in ("a", "same", "renamed", "longer", "moved")]
    file = Path("train") / "cat" / "000.PNG"
    (roots[2] / file).rename(roots[2] / file.with_name("999.PNG"))
    with (roots[3] / file).open("ab") as longer:
        longer.write(b"x")
    (roots[4] / file).rename(roots[4] / "train" / "dog" / "zzz.PNG")
    first = prints(roots[0])
    assert prints(roots[1]) == first
    others = [*(prints(root) for root in roots[2:]), prints(roots[0], seed=1), prints(roots[0], validation=0.5)]
    others += [prints(roots[0], image_size=8), prints(roots[0], image_size=16, crop_scale=0.5)]
    others += [prints(roots[0], streaming=False)]
    assert len({first, *others}) == 1 + len(others)


def test_mean_and_std_are_those_of_a_sample_of_the_seed(root, monkeypatch):
    whole = data.load(settings(root))
    monkeypatch.setattr(data, "SAMPLE", 4)
    one, again, other = (data.load(settings(root, seed=seed)) for seed in (0, 0, 1))
    assert one.mean == again.mean != other.mean
    assert one.mean != whole.mean
    assert one.mean == pytest.approx(whole.mean, abs=0.1)


def test_a_streamed_data_set_pickles_small_and_whole(root):
    loaded = data.load(settings(root))
    packed = pickle.dumps(loaded)
    assert len(packed) < 5000
    assert same(training(settings(root)), training(settings(root), loaded=pickle.loads(packed)))


def test_names_of_files_survive_their_packing():
    names = ["a/b.png", "", "ü/ö.JPEG", "x" * 300, "\udcff.png"]
    files = Files.of("/images", [(name, number) for number, name in enumerate(names)])
    assert [files.name(row) for row in range(len(files))] == names
    assert files.path(2) == "/images/ü/ö.JPEG"
    some = files.select(np.array([3, 0]))
    assert [some.name(row) for row in range(2)] == [names[3], names[0]]
    assert some.sizes.tolist() == [3, 0]


# Memory and threads


def test_no_more_images_are_decoded_than_the_prefetch_and_they_wait_for_the_consumer(root, monkeypatch):
    monkeypatch.setattr(stream, "CHUNK", 1)
    loaded, opened = data.load(settings(root)), []
    monkeypatch.setattr(stream, "open_file", lambda file: opened.append(file) or Image.open(file))
    batches = batches_of(loaded.train, loaded, settings(root, threads=3), CPU, augment=True).augmented(0, 2, 0)
    for handed_out in (1, 2, 3):
        next(batches)
        time.sleep(0.05)
        assert len(opened) <= 2 * (handed_out + stream.PREFETCH)
    batches.close()
    time.sleep(0.05)
    assert len(opened) < len(loaded.train)


def test_threads_together_hold_no_more_pixels_than_one_picture_may_have(root, monkeypatch):
    held, most, lock = 0, 0, threading.Lock()

    def cut(name, picture, row):
        nonlocal held, most
        with lock:
            held += picture.width * picture.height
            most = max(most, held)
        time.sleep(0.002)
        with lock:
            held -= picture.width * picture.height
        return np.zeros((16, 16, 3), np.uint8)

    split = data.load(settings(root)).train  # pictures of 256 pixels
    monkeypatch.setattr(stream, "CHUNK", 1)
    for room, expected in ((600, 512), (256, 256), (100, 256)):  # a larger one than all room has it alone
        most = 0
        monkeypatch.setattr(stream, "ROOM", stream.Room(room))
        assert len(list(stream.frames(split, np.split(np.arange(16), 4), cut, 6))) == 4
        assert most == expected


HUNGRY = """
import re, sys
from pathlib import Path
import numpy as np
from hksd.data import stream
from hksd.data.files import Files
from hksd.data.raw import Form, whole

def peak():
    # Not that of getrusage, which begins with what the parent had.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

rows, form = np.arange(12), Form(8, 3, True, "")
split = stream.StreamSplit(Files.of(sys.argv[1], [("0.png", 1)] * 12), rows, rows, form, False)
stream.CHUNK, stream.ROOM = 1, stream.Room(2 * 3000**2)
cut = lambda name, picture, row: whole(name, picture, form)
list(stream.frames(split, [rows[:1]], cut, 1))
before = peak()
list(stream.frames(split, [rows], cut, 12))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_memory_that_is_let_go_of_goes_back_to_the_system(tmp_path):
    Image.new("RGB", (3000, 3000)).save(tmp_path / "0.png")  # 36 MB decoded
    done = subprocess.run(
        [sys.executable, "-c", HUNGRY, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) < 3 * 36  # two at a time, one of them counted already


def test_a_large_picture_is_not_overtaken_by_small_ones_for_ever():
    room, order = stream.Room(10), []

    def take(pixels):
        with room.of(pixels):
            order.append(pixels)

    with room.of(6):
        threads = [threading.Thread(target=take, args=(pixels,)) for pixels in (8, 1)]
        for thread in threads:
            thread.start()
            time.sleep(0.05)
        assert order == []
    for thread in threads:
        thread.join()
    assert order == [8, 1]


def test_threads_end_with_the_epoch(root):
    training(settings(root, threads=3))
    assert not decoders()


@pytest.mark.parametrize("stop", [StopIteration, KeyboardInterrupt])
def test_an_abandoned_epoch_leaves_no_thread_behind(root, stop):
    loaded = data.load(settings(root))
    batches = batches_of(loaded.train, loaded, settings(root, threads=3), CPU, augment=True)

    def leave() -> None:
        for _ in batches.augmented(0, 2, 0):
            assert decoders()
            if stop is KeyboardInterrupt:
                raise KeyboardInterrupt
            break

    if stop is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            leave()
    else:
        leave()
    assert not decoders()
    next(batches.plain(2))
    assert not decoders()


@pytest.mark.parametrize("damage", ["vanished", "cut", "another size", "floats"])
def test_a_file_that_goes_bad_in_the_middle_of_an_epoch_is_named_and_ends_the_threads(tmp_path, damage):
    write_folders(tmp_path, each=12)
    config = settings(tmp_path, threads=3)
    loaded = data.load(config)
    order = torch.cat([batch.index for batch in training(config, batch_size=2, loaded=loaded)])
    victim = Path(loaded.train.files.path(int(order[9])))
    batches = batches_of(loaded.train, loaded, config, CPU, augment=True).augmented(0, 2, 0)
    if damage == "vanished":
        victim.unlink()
    elif damage == "cut":
        victim.write_bytes(victim.read_bytes()[:200])
    elif damage == "floats":
        Image.fromarray(np.zeros((16, 16), np.float32)).save(victim, "TIFF")
    else:
        Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(victim)
    seen = 0
    with pytest.raises(DataError) as caught:
        for _ in batches:
            seen += 1
    assert str(victim) in str(caught.value)
    assert seen == 4  # the batches before it came
    assert not decoders()


# Wrong settings


def test_what_cannot_be_streamed_is_told_with_its_cure(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [b"x"] * 4, "label": [0, 0, 1, 1]}), tmp_path / "train.parquet")
    fault(settings(tmp_path), tmp_path, "data.streaming reads images in class folders", "set data.streaming: false")


def test_class_folders_are_streamed_where_parquet_lies_beside_them(tmp_path):
    (write_folders(tmp_path) / "train.parquet").write_bytes(b"")
    assert len(data.load(settings(tmp_path)).train) == 18


def test_crop_scale_without_a_size_or_in_memory_is_told(root):
    fault(settings(root, crop_scale=0.5), "set data.image_size")
    fault(settings(root, crop_scale=0.5, streaming=False), "set data.streaming: true", "data.crop_scale: 0")


def test_images_of_several_sizes_need_image_size(tmp_path):
    root = write_folders(tmp_path)
    odd = root / "train" / "dog" / "zzz.png"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(odd)
    fault(settings(root), odd, "9 x 9", "set data.image_size")
    assert data.load(settings(root, image_size=16)).image_size == 16


def test_customs_of_the_data_sets_become_explicit():
    large, tiny, plain = (DataConfig(name=name, root="x") for name in ("imagenet", "tiny_imagenet", "folder"))
    assert (large.streaming, large.image_size, large.crop_scale) == (True, 224, 0.08)
    assert (tiny.streaming, tiny.image_size, tiny.crop_scale) == (True, 64, 0.08)
    assert (plain.streaming, plain.image_size, plain.crop_scale) == (False, None, 0.0)
    assert DataConfig(name="imagenet", root="x", streaming=False).crop_scale == 0.0
    assert DataConfig(name="tcifar10", root="x", streaming=True).streaming is False


def test_threads_are_not_part_of_the_hash_and_crop_scale_is(make_config):
    def run(**knobs) -> str:
        return config_hash(make_config(data={"name": "imagenet", "root": "x", **knobs}))

    assert run(threads=1) == run(threads=9) == run(crop=0)
    assert len({run(), run(crop_scale=0.2), run(crop_scale=0), run(streaming=False)}) == 4


# A whole run


def test_a_run_on_streamed_images_ends_and_is_evaluated_on_the_streamed_test_split(photos, tmp_path, make_tree):
    tree = make_tree(
        data={"name": "folder", "root": str(photos), "streaming": True, "image_size": 16, "crop_scale": 0.3},
        terms={"ce": {}, "kd": {}, "squeeze": {}},
        train={"epochs": 1, "batch_size": 8},
        teacher={"epochs": 1},
    )
    config = from_tree(tree)
    result = fit(config, out_dir=tmp_path / "out", cache_dir=tmp_path / "teachers")
    again = fit(
        dataclasses.replace(config, data=dataclasses.replace(config.data, threads=1)), cache_dir=tmp_path / "other"
    )
    state, other = result.student.state_dict(), again.student.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert not decoders()
    facts = export(config, result.student, data.load(config.data), tmp_path / "export", metadata={}).facts
    assert facts["val_accuracy"] == result.val_accuracy
    (tmp_path / "out" / "best.yaml").write_text(dump_yaml(config))
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "out"), "--split", "test", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["count"] == 6
