"""Nonsense in a configuration, on the command line and in the files of a search is refused in words."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hksd import bounds
from hksd.config.run import from_tree
from hksd.config.run import load as load_run
from hksd.errors import ConfigError, UserError
from hksd.files import expanded
from hksd.models import user
from hksd.models.wrapped import NetworkError
from hksd.scalars import DIGITS
from hksd.yaml import FILE_BYTES, apply_overrides, parse_yaml, read_yaml, to_yaml
from hksd.yaml_reader import LEVELS, NODES
from hksd_search.report.report import table_csv
from hksd_search.space import space as spaces
from hksd_search.study.reading import FACTS_FILE, open_search
from hksd_search.study.records import Record

SPACE = """\
data: {name: digits}
teacher: {model: resnet20}
student: {model: resnet8, width: {uniform: [0.5, 1]}}
terms: {ce: {}, kd: {}}
train: {epochs: 2}
search: {trials: 2}
"""
RUN: dict[str, Any] = {
    "data": {"name": "digits"},
    "teacher": {"model": "resnet20"},
    "student": {"model": "resnet8"},
    "terms": {"ce": {}, "kd": {}},
    "train": {"epochs": 2},
}


def bomb(first: str, step: str, times: int = 10) -> str:
    lines = [f"a0: &a0 {first}"]
    for number in range(1, 20):
        below = ",".join(step.format(k=k, n=number - 1) for k in range(times))
        lines.append(f"a{number}: &a{number} " + (f"{{{below}}}" if ":" in step else f"[{below}]"))
    return "\n".join(lines) + "\n"


# What stands below a good space, what the message says, and the key and the line that it names (of the first 6 lines).
TEXTS = {
    "a bomb of lists": (bomb("[x,x]", "*a{n}"), f"more than {NODES:,} values", "a", None),
    "a bomb of sections": (bomb("{x: 1}", "k{k}: *a{n}"), f"more than {NODES:,} values", "a", None),
    "many values": ("x: [" + "1, " * NODES + "]\n", f"more than {NODES:,} values", "x", 7),
    "thousands of lists": ("x: " + "[" * 2500 + "]" * 2500 + "\n", f"more than {LEVELS} levels", "x", 7),
    "thousands of sections": ("x: " + "{a: " * 2500 + "1" + "}" * 2500 + "\n", f"more than {LEVELS} levels", "x", 7),
    "thousands of dashes": ("x:\n" + "- " * 5000 + "\n", f"more than {LEVELS} levels", "x", 8),
    "a long number": (f"seed: {'9' * 5000}\n", "5,000 digits", "seed", 7),
    "a long hexadecimal number": (f"seed: 0x{'9' * 5000}\n", "digits", "seed", 7),
    "no whole number": ("seed: !!int abc\n", "no value of the tag !!int", "seed", 7),
    "no number": ("seed: !!float abc\n", "no value of the tag !!float", "seed", 7),
    "no truth": ("seed: !!bool abc\n", "no value of the tag !!bool", "seed", 7),
    "no null": ("seed: !!null abc\n", "no value of the tag !!null", "seed", 7),
    "a date": ("seed: !!timestamp x\n", "!!timestamp", "seed", 7),
    "bytes": ("seed: !!binary x\n", "!!binary", "seed", 7),
    "a set": ("seed: !!set {a, b}\n", "!!set", "seed", 7),
    "an ordered map": ("seed: !!omap [a: 1]\n", "!!omap", "seed", 7),
    "code": ("seed: !!python/object/apply:os.getcwd []\n", "!!python", "seed", 7),
    "a merge": ("x: &x {a: 1}\ny: {<<: *x}\n", "merge keys", "y", 8),
    "a list as key": ("? [a]\n: b\n", "a key must be a text", "", 7),
    "a section as key": ("{a: b}: c\n", "a key must be a text", "", 7),
    "a number as key": ("1: x\n", "a key must be a text (got 1)", "1", 7),
    "nothing as key": ("null: x\n", "a key must be a text (got nothing)", "null", 7),
    "a truth as key": ("true: x\n", "a key must be a text (got true)", "true", 7),
    "a long key": ("k" * 500 + ": 1\n", "a key of 500 characters", "", 7),
    "a NUL": ('x: "\\0"\n', "U+0000", "x", 7),
    "half a character": ('x: "\\uD800"\n', "U+D800", "x", 7),
    "a control character": ("x: \x07\n", "U+0007", "", 7),
    "two documents": ("---\nx: 1\n", "a second document begins", "", 7),
    "itself": ("x: &x [*x]\n", "contains itself", "x", 7),
    "binary digits": ("seed: 0b1\n", "must be a whole number (got '0b1')", "seed", 7),
    "underscores": ("seed: 1_000\n", "must be a whole number (got '1_000')", "seed", 7),
    "base sixty": ("seed: 1:30\n", "must be a whole number (got '1:30')", "seed", 7),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_nonsense_is_refused_at_once_with_key_and_line(name: str) -> None:
    added, message, key, line = TEXTS[name]
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        spaces.loads(SPACE + added, "tried", "tried.yaml")
    assert time.process_time() - start < 5
    fault = next(problem for problem in caught.value.problems if message in str(problem))
    assert key in str(fault).partition(":")[0]
    assert fault.line is not None
    assert line in (None, fault.line)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("064", 64),
        ("0o17", 15),
        ("0x1F", 31),
        ("+7", 7),
        ("!!str 5", "5"),
        ("!!int '5'", 5),
        ("!!float 5", 5.0),
        ("! 5", "5"),
        ("0o8", "0o8"),
        ("-0x1", "-0x1"),
        ("2024-01-01", "2024-01-01"),
        ("yes", "yes"),
        ("off", "off"),
        ("=", "="),
        ("~", None),
        ("TRUE", True),
        ("-.INF", -math.inf),
        (".5", 0.5),
    ],
)
def test_scalars_are_those_of_the_core_schema_of_yaml_1_2(text: str, value: Any) -> None:
    found = parse_yaml(f"a: {text}\n", "a.yaml").tree["a"]
    assert (found, type(found)) == (value, type(value))


PLAIN = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12) | st.sampled_from(
    [
        "064",
        "0o7",
        "0x",
        "1:30",
        "1_0",
        "1e3",
        ".inf",
        ".NaN",
        "~",
        "",
        " ",
        "null",
        "True",
        "<<",
        "=",
        "- x",
        "a: b",
        "9" * 200,
    ]
)
LIMIT = 10**DIGITS - 1
VALUES = st.none() | st.booleans() | st.integers(-(10 ** (DIGITS - 2)), LIMIT) | st.floats(allow_nan=False) | PLAIN


@given(
    st.dictionaries(
        PLAIN.filter(lambda key: len(key) < 200),
        st.recursive(
            VALUES, lambda below: st.lists(below, max_size=3) | st.dictionaries(PLAIN, below, max_size=3), max_leaves=8
        ),
        max_size=3,
    )
)
def test_any_tree_that_is_written_is_read_back_the_same(tree: dict[str, Any]) -> None:
    assert repr(parse_yaml(to_yaml(tree), "a.yaml").tree) == repr(tree)


def test_aliases_within_bounds_are_values_of_their_own() -> None:
    tree = parse_yaml("a: &x {b: [1]}\nc: *x\nd: [*x, *x]\n", "a.yaml").tree
    assert tree == {"a": {"b": [1]}, "c": {"b": [1]}, "d": [{"b": [1]}] * 2}
    assert tree["a"] is not tree["c"]
    with pytest.raises(ConfigError, match="no anchor '&x'"):
        parse_yaml("a: *x\nb: &x 1\n", "a.yaml")


NUMBERS = [
    ("train.epochs", True, "must be a whole number (got true)"),
    ("train.epochs", "6", "must be a whole number (got '6')"),
    ("train.epochs", 10**30, "must be at most"),
    ("train.epochs", math.inf, "must be a whole number"),
    ("train.batch_size", 2**70, "must be at most"),
    ("train.lr", "0.1", "must be a number (got '0.1')"),
    ("train.lr", True, "must be a number (got true)"),
    ("train.lr", 1e30, "must be at most"),
    ("train.nesterov", "yes", "must be true or false (got 'yes')"),
    ("train.nesterov", 1, "must be true or false (got 1)"),
    ("train.milestones", [0.5] * 5000, "is too long"),
    ("train.threads", 10**6, "must be at most"),
    ("student.width", 1e-9, "must be at least 0.01"),
    ("student.width", 1e9, "must be at most"),
    ("student.taps", ["a" * 5000], "is too long"),
    ("data.image_size", 10**6, "must be at most"),
    ("data.image_size", 4000, "at most 1024 for digits"),
    ("data.root", "a" * 5000, "is too long"),
    ("terms.kd.weight", True, "must be a number (got true)"),
    ("terms.kd", None, "must be a section of keys (got nothing); write {} for its defaults"),
    ("terms.kd.temperature", 1e-9, "must be at least"),
    ("terms.kd.warmup_epochs", 1e30, "must be at most"),
]
PLAUSIBLE = [
    ("train.epochs", 10_000),
    ("train.epochs", 1e3),
    ("train.lr", 1),
    ("train.batch_size", 65_536),
    ("train.lr", 100.0),
    ("train.threads", 256),
    ("student.width", 10),
    ("student.width", 0.1),
    ("data.image_size", 64),
    ("terms.kd.weight", 1e5),
    ("terms.kd.temperature", 100),
]


def changed(path: str, value: Any) -> dict[str, Any]:
    section, *keys = path.split(".")
    below = value
    for key in reversed(keys):
        below = {key: below}
    here = RUN.get(section, {})
    if len(keys) == 2:
        below = {**here, keys[0]: {**here[keys[0]], keys[1]: value}}
        return {**RUN, section: below}
    return {**RUN, section: {**here, **below}}


@pytest.mark.parametrize(("path", "value", "message"), NUMBERS)
def test_a_value_that_nobody_means_is_refused_with_its_key(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_tree(changed(path, value))
    assert message in str(caught.value)
    assert path.rpartition(".")[2] in str(caught.value)


@pytest.mark.parametrize(("path", "value"), PLAUSIBLE)
def test_what_is_large_but_plausible_is_taken(path: str, value: Any) -> None:
    from_tree(changed(path, value))


SEARCHES = [
    ("search.trials=1e30", "search.trials", "at most"),
    ("search.trials=true", "search.trials", "whole number (got true)"),
    ("search.concurrent=1000000000", "search.concurrent", "at most"),
    ("search.resources.cpu=1000000000", "search.resources.cpu", "at most"),
    ("search.resources.gpu=1e9", "search.resources.gpu", "0.0001 to 1000"),
    ("search.resources.gpu=1e-300", "search.resources.gpu", "0.0001 to 1000"),
    ("search.resources.memory_gb=1e-300", "search.resources.memory_gb", "at least 0.1"),
    ("search.epoch_timeout=1e-300", "search.epoch_timeout", "at least 1"),
    ("train.clip_norm=1e-300", "train.clip_norm", "at least 1e-06"),
    ("robust={step_share: 1e-300}", "robust.step_share", "at least 1e-06"),
    ("train.lr={uniform: [0.1, 1], step: 1e-300}", "train.lr.step", "more than 1,000,000 values"),
    ("train.lr={uniform: [0.1, 1], step: 5}", "train.lr.step", "nothing but the low end: at most 0.9"),
    ("train.batch_size={int: [16, 64], step: 64}", "train.batch_size.step", "at most 48"),
    ("train.lr={choice: [1, 1.0]}", "train.lr.choice[1]", "stands twice"),
    ("search.minimize=[params, params]", "search.minimize", "params stands twice"),
    ("search.scheduler={pbt: {quantile: 1e-320}}", "search.scheduler.pbt.quantile", "at least"),
    ("train.epochs=1:30", "train.epochs", "whole number (got '1:30')"),
    ("train.lr={uniform: [0, 1e30]}", "train.lr.uniform[1]", "number"),
    ("train.lr={uniform: [1, 1e13]}", "train.lr.uniform[1]", "at most"),
    ("train.lr={log_uniform: ['1e-4', 1]}", "train.lr.log_uniform[0]", "must be a number (got '1e-4')"),
    ("student.width={choice: [0.5, 1e-9]}", "student.width.choice[1]", "at least 0.01"),
    (f"train.lr={{choice: {list(range(1, 2000))}}}", "train.lr.choice", "1,999 values"),
    ("data={name: folder, root: ~nouser/x}", "data.root", "no user of that name"),
    ("data={name: folder, root: " + "a" * 300 + "}", "data.root", "too long"),
    ("teacher.checkpoint=~nouser/x.pt", "teacher.checkpoint", "no user of that name"),
]


@pytest.mark.parametrize(("override", "key", "message"), SEARCHES)
def test_an_override_is_checked_like_the_file_and_blamed_by_key_and_option(
    tmp_path: Path, override: str, key: str, message: str
) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    with pytest.raises(ConfigError) as caught:
        spaces.load(str(tmp_path / "space.yaml"), [override])
    told = [str(problem) for problem in caught.value.problems]
    assert any(one.startswith(f"{key} (--set): ") and message in one for one in told), told


@pytest.mark.parametrize(
    "override",
    [
        "seed=!!int x",
        "seed=0x" + "9" * 500,
        "seed=[" + "[" * 3000,
        "seed=*a",
        "seed=? [a]",
        "seed={1: 2}",
        "seed=\x07",
        "s" * 999 + "=1",
        ".".join("a" * 99) + "=1",
    ],
)
def test_an_override_that_is_no_yaml_is_refused_in_words(override: str) -> None:
    with pytest.raises(UserError, match="--set ") as caught:
        apply_overrides({}, [override])
    assert len(str(caught.value)) < 600


def test_what_stands_in_the_file_keeps_its_line_beside_overrides(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(to_yaml({**RUN, "train": {"epochs": True, "lr": 0.1}}))
    with pytest.raises(ConfigError) as caught:
        load_run(tmp_path / "run.yaml", ["train.lr=x"])
    assert [(p.path, p.line is None, p.option) for p in caught.value.problems] == [
        (("train", "epochs"), False, None),
        (("train", "lr"), True, "--set"),
    ]


def test_what_is_no_plain_file_of_a_sane_size_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "large.yaml").write_text("#" * (FILE_BYTES + 1))
    (tmp_path / "wide.yaml").write_bytes(SPACE.encode("utf-16"))
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    said = {
        "pipe": "not a plain file",
        "large": "more than",
        "wide": "line 1 is no text in UTF-8",
        "latin": "line 2 is no",
    }
    for name, message in said.items():
        with pytest.raises(UserError, match=message):
            read_yaml(tmp_path / f"{name}.yaml")
    for name in ("/dev/zero", str(tmp_path / "pipe.yaml"), "x" * 400, "a\0b.yaml", "", "~nouser/x.yaml", str(tmp_path)):
        with pytest.raises(UserError):
            spaces.load(name)
    (tmp_path / "marked.yaml").write_bytes(b"\xef\xbb\xbf" + SPACE.encode())
    spaces.load(str(tmp_path / "marked.yaml"))


def test_a_home_is_put_in_full_and_what_cannot_be_a_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded("~/x", "data.root") == Path("/somewhere/x")
    for path in ("", " ", "~nouser/x", "a" * 256, "a/" * 2500, "\0", "é" * 200):
        with pytest.raises(UserError, match=r"^data\.root: "):
            expanded(path, "data.root")


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "class Stop(KeyboardInterrupt): ...\nraise Stop",
        "raise BaseException('x')",
    ],
)
def test_a_module_of_the_users_that_ends_the_program_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    name = f"ends_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    below = "\n".join(f"    {line}" for line in code.splitlines())
    (tmp_path / f"{name}_later.py").write_text(f"def net():\n{below}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NetworkError, match="cannot be imported"):
        user.find_factory(f"{name}:net")
    with pytest.raises(NetworkError, match="failed"):
        user.build(f"{name}_later:net", in_channels=1, classes=2)


def test_ctrl_c_in_a_users_module_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "interrupted_module.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        user.find_factory("interrupted_module:net")


@pytest.mark.parametrize(
    "content",
    [b"[]", b"null", b"5", b'{"teacher": ', b'{"teacher": 5}', b'{"teacher": {"model": 1}}', b'{"minimize": "params"}',
     b'{"minimize": ["size"]}', b'{"max_drop": "x"}', b'{"data": []}', b"\xff\xfe", b""],
)  # fmt: skip
def test_facts_of_a_search_that_are_not_what_they_should_be_are_told_with_their_file(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / FACTS_FILE).write_bytes(content)
    with pytest.raises(UserError, match=f"{FACTS_FILE}: damaged: "):
        open_search(tmp_path, "first")


@pytest.mark.parametrize("name", ["", "x" * 300, "a\0b", "absent"])
def test_a_name_that_no_search_has_is_an_error_of_the_users(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError):
        open_search(tmp_path, name)


def test_no_cell_of_the_table_is_a_formula_and_numbers_stay_numbers() -> None:
    reasons = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "fine"]
    records = [Record(n, "failed", None, {"x": -0.5}, {}, 0, -0.25, 0.0, reason) for n, reason in enumerate(reasons)]
    rows = list(csv.DictReader(io.StringIO(table_csv(records), newline="")))
    assert [row["reason"] for row in rows] == [*(f"'{reason}" for reason in reasons[:-1]), "fine"]
    assert {(row["x"], row["val_accuracy"]) for row in rows} == {("-0.5", "-0.25")}


CASES = Path(__file__).parents[2] / "shared" / "cases" / "yaml"


@pytest.mark.parametrize(
    "file", sorted(CASES.glob("*.yaml")) or [None], ids=lambda file: file.stem if file else "absent"
)
def test_the_collected_files_are_refused(file: Path | None) -> None:
    if file is None:
        pytest.skip("the collection is not here")
    if file.stem == "modelexit":
        pytest.skip("see the test of modules that end the program")
    with pytest.raises(ConfigError) as caught:
        spaces.load(str(file))
    assert all(problem.line for problem in caught.value.problems)


def test_every_bound_is_finite_and_json_can_say_it() -> None:
    found = {name: value for name, value in vars(bounds).items() if name.isupper()}
    assert all(0 < value < math.inf for value in found.values())
    assert json.loads(json.dumps(found)) == found
