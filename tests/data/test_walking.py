"""Which files of class folders are the images, what is said of the others, and how classes get their numbers."""

from __future__ import annotations

import json
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from hksd import data
from hksd.config.run import config_hash, dump_yaml
from hksd.data import classes, store
from hksd.data.settings import DataConfig
from hksd.data.sources import find_source
from hksd.errors import ConfigError, UserError
from hksd.files import expanded
from hksd.schema import build
from hksd_search.cli import app

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def image(file: Path, seed: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)).save(file)
    return file


def tree(root: Path, names: Iterable[str] = ("cat", "dog"), each: int = 4, part: str = "train") -> Path:
    for number, name in enumerate(names):
        for i in range(each):
            image(root / part / name / f"{i}.png", 100 * number + i)
    return root


def config(root: Path, **knobs: Any) -> DataConfig:
    return build(DataConfig, {"name": "folder", "root": str(root), "validation": 0.25, **knobs})


def size(loaded: data.DataSet) -> int:
    return len(loaded.train) + len(loaded.validation)


def labels_of(loaded: data.DataSet) -> list[int]:
    """Labels in the order of the source."""
    index, labels = (
        np.concatenate([getattr(part, name) for part in (loaded.train, loaded.validation)])
        for name in ("index", "labels")
    )
    return labels[index.argsort()].tolist()


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """told(): the warnings since the last call."""

    def take() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        caplog.clear()
        assert all("\n" not in text for text in found)
        return found

    return take


def fault(call: Callable[[], object], *parts: object) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert all(str(part) in str(caught.value) for part in parts), str(caught.value)
    return str(caught.value)


# --- what is passed over


def write(*names: str) -> Callable[[Path], None]:
    def make(train: Path) -> None:
        for name in names:
            (train / name).parent.mkdir(parents=True, exist_ok=True)
            (train / name).write_bytes(b"x")

    return make


def thumbnails(train: Path) -> None:
    for file in list(train.glob("*/*.png")):
        image(file.parent / "@eaDir" / file.name / "SYNOPHOTO_THUMB_M.jpg")
    image(train / "@eaDir" / "cat.jpg")


def dead_links(train: Path) -> None:
    (train / "cat" / "gone.png").symlink_to("/nowhere/gone.png")
    (train / "cat" / "self.png").symlink_to("self.png")


@pytest.mark.parametrize(
    ("add", "said"),
    [
        (write("cat/a.heic", "cat/b.HEIC"), "2 of 6 files in 'cat' are .heic, and such files are not read"),
        (write("cat/a.heic", "dog/a.heic", "dog/b.heic"), "3 of 11 files in 2 classes are .heic (most in 'dog': 2 of"),
        (write("cat/a.heic", "cat/b.txt", "cat/c.txt"), "2 of 7 files in 'cat' are .txt, 1 of 7 files in 'cat' are"),
        (write("cat/picture", "cat/a.b c"), "2 of 6 files in 'cat' are without suffix"),
        (write(*(f"cat/a.k{i}" for i in range(9))), "5 of other kinds"),
        (thumbnails, "files and folders of systems: 3 (3 @eaDir)"),
        (write("__MACOSX/cat/._0.png", "cat/._0.png"), "files and folders of systems: 2 (1 ._*, 1 __MACOSX)"),
        (write("cat/Thumbs.db", "dog/desktop.ini", ".DS_Store"), "systems: 3 ("),
        (write("lost+found/x", "$Recycle.Bin/x", "System Volume Information/x", "cat/#recycle/x.png"), "systems: 4 ("),
        (write(".ipynb_checkpoints/0.png", "cat/.thumbnails/0.png", "cat/.AppleDouble/0.png"), "systems: 3 ("),
        (write(".trash/0.png", "cat/.0.png"), "hidden: 2 (as .trash)"),
        (dead_links, "links that lead nowhere: 2 (as cat/gone.png)"),
        (lambda train: os.mkfifo(train / "cat" / "pipe.png"), "pipes and devices: 1 (as cat/pipe.png)"),
        (write("0.png", "labels.csv"), "beside the class folders: 2 (as 0.png)"),
    ],
)
def test_what_is_no_image_is_passed_over_and_told_with_numbers(
    add: Callable[[Path], None], said: str, tmp_path: Path, told: Callable[[], list[str]]
) -> None:
    before = data.load(config(tree(tmp_path))).fingerprint
    assert told() == []
    add(tmp_path / "train")
    assert data.load(config(tmp_path)).fingerprint == before
    (line,) = told()
    assert line.startswith(f"{tmp_path / 'train'}: passed over: ")
    assert said in line


def test_several_reasons_stand_in_one_line_and_strange_names_do_not_break_it(
    tmp_path: Path, told: Callable[[], list[str]]
) -> None:
    tree(tmp_path)
    for add in (thumbnails, dead_links, write("cat/a.heic", "two\nlines.txt", "cat/icon\r", "cat/.\x1b[31mred")):
        add(tmp_path / "train")
    data.load(config(tmp_path))
    (line,) = told()
    assert all(part in line for part in (".heic", "@eaDir", "nowhere", "two\\nlines.txt", "\\x1b"))
    assert line.isprintable()


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".gif", ".jfif", ".jpe", ".ppm", ".pgm", ".dib"])
def test_what_pillow_reads_is_read(suffix: str, tmp_path: Path, told: Callable[[], list[str]]) -> None:
    for number, name in enumerate(("cat", "dog")):
        for i in range(4):
            image(tmp_path / "train" / name / f"{i}{suffix}", 9 * number + i)
    assert size(data.load(config(tmp_path, image_size=4))) == 8
    assert told() == []


def test_the_line_is_told_by_every_command_also_on_kept_images_and_the_test_set_has_its_own(
    tmp_path: Path, told: Callable[[], list[str]]
) -> None:
    tree(tree(tmp_path), part="test")
    write("cat/a.heic")(tmp_path / "train")
    write("cat/a.heif")(tmp_path / "test")
    for _ in range(2):
        data.load(config(tmp_path), tmp_path / store.FOLDER)
        assert [".heic" in line for line in told()] == [True]
    assert len(list((tmp_path / store.FOLDER).glob("*/images"))) == 1
    data.load(config(tmp_path, streaming=True))
    assert [".heic" in line for line in told()] == [True]
    data.load_test(config(tmp_path))
    assert [".heif" in line for line in told()] == [True]


def test_what_is_passed_over_does_not_touch_the_key_of_kept_images_and_what_is_read_does(tmp_path: Path) -> None:
    def key() -> str | None:
        return store.key_of(config(tmp_path), find_source(config(tmp_path)).state())

    before = key() if tree(tmp_path) else None
    for add in (thumbnails, dead_links, write("cat/a.heic")):
        add(tmp_path / "train")
    assert key() == before
    image(tmp_path / "train" / "cat" / "new.tif")
    assert key() != before


def test_a_walk_serves_line_states_and_images_and_later_states_are_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hksd.data import folders

    walks, real = [], folders.walk
    monkeypatch.setattr(folders, "walk", lambda folder: walks.append(folder) or real(folder))
    source = find_source(config(tree(tmp_path)))
    source.line()
    before = list(source.state())
    source.train()
    assert len(walks) == 1
    image(tmp_path / "train" / "cat" / "late.png")
    assert len(list(source.state())) == len(before) + 1


def test_tiny_imagenets_boxes_are_no_surprise_and_thumbnails_in_its_images_are_no_images(
    tmp_path: Path, told: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(data.sources.CLASSES, "tiny_imagenet", 2)
    for name in ("n01", "n02"):
        for i in range(4):
            image(tmp_path / "train" / name / "images" / f"{name}_{i}.JPEG", i)
        write(f"{name}/{name}_boxes.txt")(tmp_path / "train")
    for i in range(2):
        image(tmp_path / "val" / "images" / f"val_{i}.JPEG")
    image(tmp_path / "val" / "images" / "@eaDir" / "val_0.JPEG" / "thumb.jpg")
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01\t0\nval_1.JPEG\tn02\t0\n")
    data.load(config(tmp_path, name="tiny_imagenet"))
    assert told() == []
    assert data.load_test(config(tmp_path, name="tiny_imagenet")).labels.tolist() == [0, 1]
    (line,) = told()
    assert "1 @eaDir" in line


# --- what is refused


def test_images_that_nobody_can_decode_are_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path)
    for name in ("cat/a.png", "cat/b.png", "dog/c.png"):
        (tmp_path / "train" / name).touch()
    first = tmp_path / "train" / "cat" / "a.png"
    for one in (config(tmp_path), config(tmp_path, streaming=True)):
        fault(lambda one=one: data.load(one), first, "0 bytes", "2 more", "complete the copy")
    for file in (tmp_path / "train").rglob("[abc].png"):
        image(file).chmod(0o200)
    monkeypatch.setattr(os, "access", lambda file, how: Path(file).stat().st_mode & 0o444 != 0)  # as for other users
    fault(lambda: data.load(config(tmp_path)), first, "may not be read", "2 more", "check its permissions")


def test_a_class_that_is_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tree(tmp_path) / "train" / "emu").symlink_to(tmp_path / "unmounted")
    fault(
        lambda: data.load(config(tmp_path)), tmp_path / "train" / "emu", "leads nowhere", "its class would be missing"
    )


def test_a_class_name_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tree(tmp_path) / "train" / os.fsdecode(b"caf\xe9")).mkdir()
    fault(lambda: data.load(config(tmp_path)), "b'caf\\xe9' is no UTF-8", "rename it")


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "tab\t"])
def test_a_class_name_that_breaks_a_line_or_commands_a_terminal_is_refused(name: str, tmp_path: Path) -> None:
    fault(lambda: data.load(config(tree(tmp_path, ["cat", name]))), repr(name), "control character; rename it")


def test_a_class_without_images_says_what_lies_in_it(tmp_path: Path) -> None:
    write("emu/a.heic", "emu/b.heic", "emu/Thumbs.db")(tree(tmp_path) / "train")
    fault(lambda: data.load(config(tmp_path)), tmp_path / "train" / "emu", "2 of 3 files in 'emu' are .heic", "systems")


@pytest.mark.parametrize(
    ("files", "cure"),
    [
        (["Train/cat/0.png"], "rename Train to train"),
        (["train/0.png", "train/1.png"], "train holds 2 image(s) and no class folders"),
        (["cat/0.png", "dog/0.png"], "move them into"),
        (["cat/train/0.png", "dog/train/0.png", "cat/test/0.png"], "move cat/train to train/cat"),
    ],
)
def test_a_data_set_that_lies_a_little_elsewhere_is_seen(files: list[str], cure: str, tmp_path: Path) -> None:
    for file in files:
        image(tmp_path / file)
    fault(lambda: data.load(config(tmp_path)), "no data set recognised", cure)


# --- names in two forms of Unicode


def test_names_of_two_unicode_forms_are_one_class_within_a_set_and_between_sets(
    tmp_path: Path, told: Callable[[], list[str]]
) -> None:
    tree(tmp_path, [COMPOSED, "the"], 4)
    tree(tmp_path, [DECOMPOSED], 6)
    tree(tmp_path, [DECOMPOSED, "the"], 3, "test")
    loaded = data.load(config(tmp_path))
    assert loaded.classes == (COMPOSED, "the")
    assert labels_of(loaded) == [0] * 10 + [1] * 4
    (line,) = told()
    assert f"differ in their Unicode form alone are one class: '{COMPOSED}' (4 file names in both)" in line
    assert data.load_test(config(tmp_path)).labels.tolist() == [0] * 3 + [1] * 3
    assert data.load(config(tmp_path, classes=["the", DECOMPOSED])).classes == ("the", COMPOSED)


def test_names_that_differ_in_case_are_two_classes_and_that_is_said(
    tmp_path: Path, told: Callable[[], list[str]]
) -> None:
    tree(tmp_path, ["Cat", "cat", "dog"])
    assert data.load(config(tmp_path)).classes == ("Cat", "cat", "dog")
    assert "'Cat' and 'cat'" in told()[0]


def linked(root: Path) -> None:
    tree(root, ["dog"])
    (root / "train" / "cat").symlink_to("dog")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: tree(root, ["dog", "dog "]), "alone are classes of their own: 'dog' and 'dog '"),
        (lambda root: tree(root, ["0", "00", "1"]), "alone are classes of their own: '0' and '00'"),
        (lambda root: tree(root, ["fish", "\ufb01sh"]), "alone are classes of their own: 'fish' and '\ufb01sh'"),
        (linked, "links make one folder several classes, so that its images have several labels: 'cat' and 'dog'"),
        (lambda root: tree(root, ["animal/cat", "animal/dog", "rose"]), "1 of 2 class folders are no classes of their"),
        (lambda root: tree(root, ["0", "1", "2", "10", "-1"]), "'-1' is no whole number, so the classes are numbered"),
        (lambda root: tree(root, ["0", "1", "2", "10", "other"]), "('10' is number 2); data.classes gives"),
    ],
)
def test_what_may_be_taken_for_one_class_or_two_or_another_number_is_said(
    make: Callable[[Path], object], said: str, tmp_path: Path, told: Callable[[], list[str]]
) -> None:
    make(tmp_path)
    data.load(config(tmp_path))
    (line,) = told()
    assert said in line


@pytest.mark.parametrize(
    "names", [["cat/images", "dog/images"], ["0", "1", "2", "x"], ["1", "x", "y"], ["00", "01", "10"], ["a b", "ab"]]
)
def test_of_usual_folders_nothing_is_said(names: list[str], tmp_path: Path, told: Callable[[], list[str]]) -> None:
    data.load(config(tree(tmp_path, names)))
    assert told() == []


# --- the order of the classes


@given(st.permutations(range(12)), st.integers(1, 3))
def test_whole_numbers_stand_by_value(numbers: list[int], digits: int) -> None:
    assert classes.in_order(f"{n:0{digits}}" for n in numbers) == tuple(f"{n:0{digits}}" for n in range(12))


@pytest.mark.parametrize(
    "names", [["class1", "class10", "class2"], ["1", "10", "2", "x"], ["-1", "1", "10", "2"], ["1.0", "10.0", "2.0"]]
)
def test_other_names_stand_as_texts_as_in_torchvisions_image_folder(names: list[str]) -> None:
    assert classes.in_order(reversed(names)) == tuple(names)


def test_numbered_folders_have_their_number_as_label_whatever_lies_beside_them(tmp_path: Path) -> None:
    tree(tree(tmp_path, map(str, range(12)), 2), ["10", "2"], 1, "test")
    thumbnails(tmp_path / "train")
    loaded = data.load(config(tmp_path, validation=0.5))
    assert loaded.classes == tuple(map(str, range(12)))
    assert labels_of(loaded) == [label for label in range(12) for _ in range(2)]
    assert data.load_test(config(tmp_path)).labels.tolist() == [2, 10]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (None, ["dog", "cat", "ant"]),
        ("names.txt", "\ufeffdog\r\ncat\n\nant\n"),
        ("names.json", json.dumps(["dog", "cat", "ant"])),
        ("number_of.json", json.dumps({"ant": 2, "cat": 1, "dog": 0})),
        ("id2label.JSON", json.dumps({"2": "ant", "0": "dog", "1": "cat"})),
    ],
)
def test_given_classes_number_the_folders_in_their_order(file: str | None, content: Any, tmp_path: Path) -> None:
    tree(tree(tmp_path / "images", ["ant", "cat", "dog"]), ["cat", "dog"], 1, "test")
    if file:
        (tmp_path / file).write_text(content, encoding="utf-8")
    given = config(tmp_path / "images", classes=str(tmp_path / file) if file else content)
    plain, loaded = data.load(config(tmp_path / "images")), data.load(given)
    assert loaded.classes == ("dog", "cat", "ant")
    assert labels_of(loaded) == [2 - label for label in labels_of(plain)]
    assert loaded.fingerprint != plain.fingerprint
    assert data.load_test(given).labels.tolist() == [1, 0]


def test_kept_images_follow_the_file_of_the_classes(tmp_path: Path) -> None:
    tree(tmp_path / "images")
    file, kept = tmp_path / "names.txt", tmp_path / "data"
    for order in (["cat", "dog"], ["dog", "cat"]):
        file.write_text("\n".join(order))
        os.utime(file, ns=(0, len(list(kept.glob("*")))))  # of one size; the clock may not have moved
        for _ in range(2):
            assert data.load(config(tmp_path / "images", classes=str(file)), kept).classes == tuple(order)


def test_official_sets_take_an_order_too() -> None:
    names = list("9876543210")
    plain, loaded = (data.load(build(DataConfig, {"name": "digits", **more})) for more in ({}, {"classes": names}))
    assert loaded.classes == tuple(names)
    assert labels_of(loaded) == [9 - label for label in labels_of(plain)]
    fault(
        lambda: data.load(build(DataConfig, {"name": "digits", "classes": names[1:]})), "not named: 9", "data.classes"
    )


def test_other_classes_are_an_error_with_both_lists_and_the_nearest_name(tmp_path: Path) -> None:
    tree(tmp_path, ["cat", "dog"])
    fault(
        lambda: data.load(config(tmp_path, classes=["cat", "dgo", "emu"])),
        *("no such class in the data: dgo, emu; did you mean 'dog'?", "not named: dog", "data.classes: cat, dgo, emu"),
        *("the data: cat, dog", "name every class"),
    )
    many = [f"c{i:02}" for i in range(40)]
    message = fault(lambda: data.load(config(tree(tmp_path / "many", many, 2), classes=[*many, "x"])), "41 in all")
    assert len(message) < 500


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("a.txt", "cat\ndog\ncat\n", "'cat' stands there twice"),
        ("a.txt", "\n", "no names"),
        ("a.txt", b"\xff\xfe\x00", "cannot be read"),
        ("a.json", "{", "cannot be read"),
        ("a.json", "[1, 2]", "no list of texts"),
        ("a.json", '{"cat": 0, "dog": 2}', "not 0 to C-1"),
        ("a.json", '{"cat": [0], "dog": 1}', "cannot be read"),
        ("a.json", '{"a": "cat"}', "cannot be read"),
        ("missing.txt", None, "No such file"),
    ],
)
def test_a_file_of_classes_that_is_none_is_named(
    file: str, content: str | bytes | None, said: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / file).write_bytes(content.encode() if isinstance(content, str) else content)
    fault(lambda: data.load(config(tree(tmp_path), classes=str(tmp_path / file))), tmp_path / file, said)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["cat", "cat"], "'cat' stands there twice"),
        ([COMPOSED, DECOMPOSED], "stands there twice"),
        ([], "no names"),
        (["cat", "do\ng"], "'do\\ng' holds a control character"),
        (["cat", True], "got true"),
        (["cat", 1.5], "got 1.5"),
        ("", "must be a list"),
        (3, "must be a list"),
    ],
)
def test_classes_that_cannot_be_are_refused_with_the_configuration(given: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(Path("x"), classes=given)
    assert said in str(caught.value)
    assert "classes" in str(caught.value)


def test_numbers_are_names_and_the_hash_of_a_run_is_that_without_them(make_config: Callable[..., Any]) -> None:
    assert config(Path("x"), classes=[0, 1]).classes == ("0", "1")
    one, two = (make_config(data={"name": "digits", **more}) for more in ({}, {"classes": list("9876543210")}))
    assert config_hash(one) == config_hash(two)


# --- test images without labels


@pytest.mark.parametrize("heap", ["", "unknown/", "images/"])
def test_test_images_without_labels_leave_the_test_to_labelled_validation_images(
    heap: str, tmp_path: Path, told: Callable[[], list[str]]
) -> None:
    tree(tree(tmp_path), each=3, part="val")
    for i in range(2):
        image(tmp_path / "test" / f"{heap}{i}.png")
    assert data.load_test(config(tmp_path)).labels.tolist() == [0] * 3 + [1] * 3
    (line,) = told()
    assert "test has no labels" in line
    assert "val is the test split" in line
    data.check_test(config(tmp_path))  # before a work that ends with the test split, the same is told
    assert told() == [line]


def test_a_test_folder_that_leads_to_the_training_images_is_said(tmp_path: Path, told: Callable[[], list[str]]) -> None:
    (tree(tmp_path) / "test").symlink_to("train")
    data.check_test(config(tmp_path))
    assert "leads to the training images" in told()[0]


def test_test_images_without_labels_alone_are_refused(tmp_path: Path) -> None:
    tree(tmp_path)
    for i in range(2):
        image(tmp_path / "test" / f"{i}.png")
    fault(lambda: data.check_test(config(tmp_path)), tmp_path / "test", "2 image(s) and no class folders", "val/CLASS/")


@pytest.mark.parametrize("name", ["Test", "VAL", "testing", "dev", "eval"])
def test_a_test_folder_of_another_name_is_seen(name: str, tmp_path: Path) -> None:
    tree(tree(tmp_path), part=name)
    fault(lambda: data.check_test(config(tmp_path)), "no test split", f"rename {name} to test")


def test_a_test_class_that_is_misspelt_is_answered_with_the_nearest(tmp_path: Path) -> None:
    tree(tree(tmp_path), ["cat", "dgo"], part="test")
    fault(lambda: data.load_test(config(tmp_path)), "'dgo' is not in the training set; did you mean 'dog'?")


# --- home folders


def test_home_folders_are_found_and_that_of_nobody_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree(tmp_path)))
    assert expanded("~/x", "data.root") == tmp_path / "x"
    assert expanded("a/~b", "data.root") == Path("a/~b")
    assert size(data.load(config(Path("~")))) == 8
    fault(lambda: expanded("~no-such-user/x", "data.root"), "data.root", "~no-such-user/x", "no user of that name")
    fault(lambda: data.load(config(Path("~no-such-user/x"))), "data.root", "no user of that name")


# --- the command


def test_a_command_says_it_in_one_line(tmp_path: Path, make_config: Callable[..., Any]) -> None:
    write(*(f"cat/{i}.heic" for i in range(30)))(
        tree(tmp_path / "a folder with a rather long name for its path") / "train"
    )
    images = {"name": "folder", "root": str(tmp_path / "a folder with a rather long name for its path")}
    settings = make_config(train={"epochs": 1}, terms={"ce": {}}, data={**images, "validation": 0.25})
    (tmp_path / "run.yaml").write_text(dump_yaml(settings))
    done = CliRunner().invoke(app, ["train", str(tmp_path / "run.yaml"), "--json", "--runs", str(tmp_path / "runs")])
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stderr.splitlines() if "passed over" in line]
    assert "30 of 34 files in 'cat' are .heic, and such files are not read" in line
