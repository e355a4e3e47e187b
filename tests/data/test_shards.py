"""Parquet files are one set, whole: no part of one, no two uploads at once, whatever their names look like."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hksd import data
from hksd.data import shards
from hksd.data.settings import DataConfig
from hksd.data.sources import find_source
from hksd.errors import DataError


def config(root: Path, **knobs: object) -> DataConfig:
    return DataConfig(**{"name": "folder", "root": str(root), "validation": 0.25, **knobs})


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(
    file: Path, labels: Sequence[int | None] = (0, 1, 0, 1), names: Sequence[str] = (), label: str = "label"
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": [encoded(i) for i in range(len(labels))], label: pa.array(labels, pa.int64())})
    if names:
        features = {label: {"_type": "ClassLabel", "names": list(names)}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file)


def touch(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def found(root: Path) -> list[str]:
    """Files of the training set, which need not be parquet to be found."""
    return [str(Path(state.name).relative_to(root)) for state in find_source(config(root)).state()]


def fault(root: Path, *parts: str) -> str:
    with pytest.raises(DataError) as caught:
        find_source(config(root))
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    return str(caught.value)


A, B, C = "a09b74b3ef9c3b56", "5e1d0c2b7a9f4c33", "1f2e3d4c5b6a7988"


@pytest.mark.parametrize(
    "names",
    [
        ["train.parquet"],
        ["data/train.parquet"],
        ["train-0.parquet", "train-1.parquet"],
        ["train-1.parquet", "train-2.parquet"],
        [f"train-{i}.parquet" for i in range(12)],
        ["train-a.parquet", "train-b.parquet"],
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["train-00001-of-00002.parquet", "train-00002-of-00002.parquet"],
        [f"data/train-00000-of-00002-{A}.parquet", f"data/train-00001-of-00002-{B}.parquet"],
        ["train/0000.parquet"],
        ["train/0000.parquet", "train/0001.parquet"],
        ["data/train/0000.parquet", "data/train/0001.parquet"],
        ["train/images.parquet", "train/more images.parquet"],
        ["train/part-00000-of-00002.parquet", "train/part-00001-of-00002.parquet"],
        ["default/train/0000.parquet"],
        ["plain_text/train-00000-of-00001.parquet"],
    ],
)
def test_every_spelling_of_a_whole_set_is_read(names: list[str], tmp_path: Path) -> None:
    beside = ["notes.parquet", ".train-9.parquet", "train_x.csv", "@eaDir/train.parquet"]
    assert found(touch(tmp_path, [*names, *beside])) == sorted(names)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train-00000-of-00002.parquet"], ["one of 2", "no number 1", "complete the download"]),
        (["train-00002-of-00003.parquet"], ["no number 0, 1"]),
        ([f"data/train-00000-of-00002-{A}.parquet"], ["one of 2", "no number 1"]),
        (["default/train/0000.parquet", "default/train/0002.parquet"], ["0002.parquet", "no number 1"]),
        (["train/0001.parquet"], ["no number 0"]),
        (["train-0.parquet", "train-3.parquet"], ["train-3.parquet", "no number 1, 2"]),
        (["train-5.parquet"], ["no number 0, 1, 2, 3, 4"]),
        (["train/part-00000-of-00002.parquet"], ["no number 1"]),
        (["train-00000-of-90000.parquet"], ["one of 90000"]),
        (["default/partial-train/0000.parquet"], ["only a part of train", "5 GB"]),
        (["partial-train/0000.parquet"], ["only a part of train"]),
    ],
)
def test_a_part_of_a_set_is_refused(names: list[str], said: list[str], tmp_path: Path) -> None:
    assert len(fault(touch(tmp_path, names), *said)) < 600


OF_TWO = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([*OF_TWO, "train-00000-of-00001.parquet"], ["train-00000-of-00001.parquet lies beside train-00000-of-00002"]),
        ([f"train-00000-of-00001-{A}.parquet", f"train-00000-of-00001-{B}.parquet"], ["there 2 times", A, B]),
        (
            [
                f"train-00000-of-00002-{A}.parquet",
                f"train-00001-of-00002-{B}.parquet",
                f"train-00001-of-00002-{C}.parquet",
            ],
            ["there 2 times", B, C],
        ),
        ([*OF_TWO, f"train-00000-of-00002-{A}.parquet"], ["lies beside", A]),
        ([OF_TWO[0], f"train-00001-of-00002-{A}.parquet"], ["lies beside", A]),
        ([*OF_TWO, "train.parquet"], ["train.parquet", "lies beside", OF_TWO[0]]),
        (["train.parquet", "train-0.parquet"], ["train.parquet", "train-0.parquet"]),
        (["train-0.parquet", "train-00.parquet"], ["there 2 times"]),
        (["train-0.parquet", "train-old-0.parquet"], ["lies beside"]),
        ([*OF_TWO, "train-more.parquet"], ["train-more.parquet"]),
        (["train.parquet", "train/0000.parquet"], ["train.parquet lies beside train/0000.parquet"]),
        (["train.parquet", "data/train-00000-of-00001.parquet"], ["data/train-00000-of-00001.parquet"]),
        (["train/0000.parquet", "train/train-00000-of-00001.parquet"], ["lies beside"]),
    ],
)
def test_two_uploads_at_once_are_refused(names: list[str], said: list[str], tmp_path: Path) -> None:
    fault(
        touch(tmp_path, names), "two uploads" if "times" not in said[0] else "one part", "keep the files of one", *said
    )


@given(st.integers(2, 7), st.data(), st.booleans())
def test_a_set_that_lacks_any_of_its_shards_is_refused(
    tmp_path_factory: pytest.TempPathFactory, count: int, draw: st.DataObject, printed: bool
) -> None:
    root = tmp_path_factory.mktemp("set")
    names = [f"train-{i:05}-of-{count:05}{f'-{i:016x}' if printed else ''}.parquet" for i in range(count)]
    kept = draw.draw(st.sets(st.sampled_from(names), min_size=1))
    touch(root, sorted(kept))
    if len(kept) == count:
        assert found(root) == names
    else:
        fault(root, "complete the download")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["Train.parquet"], ["no parquet file", "called train (Train.parquet)"]),
        (["data/training-00000-of-00001.parquet"], ["called train (training-00000-of-00001.parquet)"]),
        (["cifar-train.parquet", "cifar-test.parquet"], ["called train (cifar-test.parquet, cifar-train.parquet)"]),
        (["0000.parquet"], ["rename those of the training set"]),
        (["data/plain/train.parquet"], ["set data.root: {root}/data/plain"]),
        (["train/data-00000-of-00001.arrow"], ["save_to_disk", "to_parquet"]),
    ],
)
def test_files_that_are_called_otherwise_or_lie_deeper_are_seen(
    names: list[str], said: list[str], tmp_path: Path
) -> None:
    fault(touch(tmp_path, names), *(part.format(root=tmp_path) for part in said))


def test_a_shard_whose_suffix_is_in_capital_letters_belongs_to_the_set(tmp_path: Path) -> None:
    names = ["train-0.parquet", "train-1.PARQUET"]
    assert found(touch(tmp_path, names)) == names


def test_training_sets_that_are_not_read_are_told(tmp_path: Path) -> None:
    touch(tmp_path, ["data/train.parquet", "default/train/0000.parquet"])
    line = find_source(config(tmp_path)).line()
    assert "not read: default/train/0000.parquet" in line
    assert str(tmp_path / "data") in line
    assert find_source(config(touch(tmp_path / "alone", ["data/train.parquet", "default/x"]))).line() == ""


def test_a_test_file_of_another_name_is_seen(tmp_path: Path) -> None:
    for name in ("train", "dev-00000-of-00001"):
        write(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match="rename dev to test"):
        data.check_test(config(tmp_path))


def test_what_a_file_says_twice_or_too_large_is_named(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"

    def refused(*parts: str) -> None:
        with pytest.raises(DataError) as caught:
            data.load(config(tmp_path))
        assert all(part in str(caught.value) for part in (str(file), *parts)), str(caught.value)

    write(file, names=["cat", "cat"])
    refused("'cat' stands there twice")
    images = pa.array([encoded(i) for i in range(4)])
    pq.write_table(pa.Table.from_arrays([images, images, pa.array([0, 1] * 2)], ["image", "image", "label"]), file)
    refused("2 columns are called image")
    pq.write_table(pa.table({"image": images, "label": pa.array([0, 1, 2**63 + 5, 1], pa.uint64())}), file)
    refused("row 2", f"label {2**63 + 5} is no number of a class")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n")
    refused("git lfs pull")


def test_several_configurations_are_a_choice_for_the_user(tmp_path: Path) -> None:
    touch(tmp_path, ["fine/train-00000-of-00001.parquet", "coarse/train/0000.parquet"])
    fault(tmp_path, "2 configurations (coarse, fine)", f"for example {tmp_path / 'coarse'}")


def test_the_folder_of_the_set_itself_names_the_one_around_it(tmp_path: Path) -> None:
    fault(touch(tmp_path, ["train/0000.parquet"]) / "train", f"set data.root: {tmp_path}")


def test_class_folders_are_read_where_parquet_files_lie_in_them_or_in_a_folder_beside(tmp_path: Path) -> None:
    touch(tmp_path, ["train/cat/0.png", "train/dog/0.png", "train/0000.parquet", "backup/train.parquet"])
    assert "train/cat/0.png" in found(tmp_path)


def test_files_of_the_hub_are_read_with_their_test_set(tmp_path: Path) -> None:
    for part, labels in (("train/0000", [0, 1, 0, 1]), ("train/0001", [1, 0, 1, 0]), ("test/0000", [1, 0])):
        write(tmp_path / "default" / f"{part}.parquet", labels, ["cat", "dog"])
    loaded = data.load(config(tmp_path))
    assert len(loaded.train) + len(loaded.validation) == 8
    assert data.load_test(config(tmp_path)).labels.tolist() == [1, 0]


@pytest.mark.parametrize("names", [["test-00000-of-00002.parquet"], ["test.parquet", "test-0.parquet"]])
def test_a_test_set_is_whole_too(names: list[str], tmp_path: Path) -> None:
    write(touch(tmp_path, names) / "train.parquet")
    assert len(data.load(config(tmp_path)).train) == 2
    with pytest.raises(DataError, match=r"complete the download|two uploads"):
        data.load_test(config(tmp_path))


@pytest.mark.parametrize(("labels", "label"), [([-1, -1], "label"), ([None, None], "label"), ([0, 1], "other")])
def test_a_test_set_without_labels_leaves_the_test_to_a_labelled_one(
    labels: list[int | None], label: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "train.parquet")
    write(tmp_path / "test.parquet", labels, label=label)
    with pytest.raises(DataError, match=r"no label|negative|no column of labels"):
        data.load_test(config(tmp_path))
    write(tmp_path / "validation.parquet", [1, 0, 1])
    assert data.load_test(config(tmp_path)).labels.tolist() == [1, 0, 1]
    (record,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert "test has no labels" in record.getMessage()
    assert "validation is the test split" in record.getMessage()


@pytest.mark.parametrize("named", [True, False])
def test_given_classes_order_the_named_and_name_the_numbered(named: bool, tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / f"{part}.parquet", [0, 0, 1, 1], ["cat", "dog"] if named else [])
    given = config(tmp_path, classes=("dog", "cat"), validation=0.5)
    loaded = data.load(given)
    assert loaded.classes == ("dog", "cat")
    order = [1, 1, 0, 0] if named else [0, 0, 1, 1]
    assert [order[i] for i in loaded.train.index] == loaded.train.labels.tolist()
    assert data.load_test(given).labels.tolist() == order
    with pytest.raises(DataError, match="cat, dog, emu"):
        data.load(config(tmp_path, classes=("cat", "dog", "emu")))
    if not named:
        assert data.load(config(tmp_path, classes=("1", "0"))).classes == ("1", "0")
        assert data.load_test(config(tmp_path, classes=("1", "0"))).labels.tolist() == [1, 1, 0, 0]


def test_class_names_in_two_unicode_forms_are_the_same(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", names=["caf\u00e9", "the"])
    write(tmp_path / "test.parquet", [0, 1], names=["cafe\u0301", "the"])
    assert data.load_test(config(tmp_path)).labels.tolist() == [0, 1]
    assert data.load(config(tmp_path)).classes == ("caf\u00e9", "the")


def test_what_is_not_a_folder_holds_no_shards(tmp_path: Path) -> None:
    assert shards.shards(tmp_path / "nowhere", "train") == ()
    assert shards.configurations(tmp_path / "nowhere") == []
