"""YAML with line numbers, overrides, and errors that say everything at once."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from hksd.config.run import RunConfig
from hksd.errors import (
    ConfigError,
    DataError,
    NonFiniteLossError,
    Problem,
    RunError,
    UserError,
    key_path,
    nearest,
    unknown,
)
from hksd.schema import Section, allowed_keys, check, knobs
from hksd.terms import TERMS
from hksd.yaml import apply_overrides, parse_yaml, read_yaml


def faults(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "run.yaml")
    return caught.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-2e+1", -20.0),
        (".5e1", 5.0),
        ("1.e2", 100.0),
        ("0.5", 0.5),
        ("7", 7),
    ],
)
def test_numbers_are_read_as_numbers_with_and_without_a_dot(text: str, value: float) -> None:
    tree = parse_yaml(f"a: {text}\nb: [{text}]\n", "run.yaml").tree
    assert tree == {"a": value, "b": [value]}
    assert not isinstance(tree["a"], str)


def test_every_key_and_list_item_knows_its_line() -> None:
    document = parse_yaml("a: 1\nb:\n  c:\n    - x\n    - y\n", "run.yaml")
    assert dict(document.lines) == {("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "c", 0): 4, ("b", "c", 1): 5}


def test_an_error_below_the_last_known_key_is_given_the_line_of_the_nearest_key_above() -> None:
    document = parse_yaml("a: 1\nb:\n  c: 2\n", "run.yaml")
    error = document.error([Problem(("b", "missing"), "is required"), Problem(("new",), "is required")])
    assert {problem.path: problem.line for problem in error.problems} == {("b", "missing"): 2, ("new",): None}


def test_faults_of_a_file_are_told_in_its_order() -> None:
    document = parse_yaml("a: 1\nb: 2\nc: 3\nd: 4\n", "run.yaml")
    error = document.error([Problem((key,), "is wrong") for key in ("c", "a", "d", "b")])
    assert [problem.line for problem in error.problems] == [1, 2, 3, 4]


def test_a_key_that_stands_twice_is_an_error_with_the_line_of_the_second_at_any_depth() -> None:
    error = faults("train:\n  epochs: 1\n  lr: 0.1\n  epochs: 2\ndata: 1\ndata: 2\n")
    assert {(problem.path, problem.line) for problem in error.problems} == {(("train", "epochs"), 4), (("data",), 6)}
    assert "run.yaml" in str(error)
    assert "train.epochs (line 4): this key stands twice" in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "a: b: c",
        "a: [1, 2",
        "a: 'x",
        'a: "x',
        "\ta: 1",
        "a: *nowhere",
        "a: !!python/object/apply:os.getcwd []",
        "a: !unknown 1",
        "? [1]\n: 2\n",
        "a: \x00",
        "a: 1\n---\nb: 2\n",
    ],
)
def test_what_is_not_yaml_is_an_error_that_says_so(text: str) -> None:
    assert "not valid YAML" in str(faults(text))


@pytest.mark.parametrize("value", ["2024-13-45", "2024-02-30 99:99:99"])
def test_a_date_that_does_not_exist_is_a_text_or_an_error_of_the_file(value: str) -> None:
    try:
        assert parse_yaml(f"a: {value}", "run.yaml").tree == {"a": value}
    except ConfigError as error:
        assert "run.yaml" in str(error)


@pytest.mark.parametrize("text", ["a: &x [*x]\n", "a: &x {b: *x}\n", "&x a: *x\nb: &y [[*y]]\n"])
def test_a_document_that_contains_itself_is_an_error_of_the_file(text: str) -> None:
    assert "run.yaml" in str(faults(text))


@pytest.mark.parametrize(
    ("text", "given"),
    [("", "nothing"), ("# only a remark\n", "nothing"), ("- a\n", "['a']"), ("5", "5"), ("just a text", "just a text")],
)
def test_an_empty_file_and_one_without_a_mapping_are_errors(text: str, given: str) -> None:
    message = str(faults(text))
    assert "expected a mapping" in message
    assert given in message


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\xff\n")
    for name in ("absent.yaml", "latin.yaml", "."):
        with pytest.raises(UserError, match="cannot be read") as caught:
            read_yaml(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=12,
    )
)
def test_reading_any_text_gives_a_mapping_or_an_error_of_ours(value: object) -> None:
    try:
        document = parse_yaml(f"a: {value}\nb: {value!r}\n", "run.yaml")
    except ConfigError:
        return
    assert isinstance(document.tree, dict)


def test_overrides_set_values_read_as_yaml_and_leave_the_tree_alone() -> None:
    tree = {"train": {"epochs": 1, "milestones": [0.5]}, "seed": 0}
    result = apply_overrides(
        tree,
        [
            "train.epochs=5",
            "train.lr=1e-2",
            "terms.kd.temperature=2",
            "seed=",
            "train.milestones=[0.1, 0.2]",
            "a.b=x=y",
        ],
    )
    assert result == {
        "train": {"epochs": 5, "milestones": [0.1, 0.2], "lr": 0.01},
        "terms": {"kd": {"temperature": 2}},
        "seed": None,
        "a": {"b": "x=y"},
    }
    assert tree == {"train": {"epochs": 1, "milestones": [0.5]}, "seed": 0}


def test_a_later_override_wins() -> None:
    assert apply_overrides({}, ["a=1", "a=2"]) == {"a": 2}


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("train.epochs", "KEY.PATH=VALUE"),
        ("=5", "KEY.PATH=VALUE"),
        ("a..b=5", "KEY.PATH=VALUE"),
        ("a.=5", "KEY.PATH=VALUE"),
        ("seed.x=5", "'seed' is a value"),
        ("seed=[1", "not valid YAML"),
        ("seed=a: b: c", "not valid YAML"),
    ],
)
def test_an_override_that_makes_no_sense_is_an_error_that_repeats_it(override: str, word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        apply_overrides({"seed": 1}, [override])
    assert override in str(caught.value)


@dataclass(frozen=True, kw_only=True)
class _Inner(Section):
    size: Annotated[int, Field(ge=1, le=9, description="a size")]
    kind: Annotated[Literal["round", "square"], Field(description="a form")] = "round"


@dataclass(frozen=True, kw_only=True)
class _Outer(Section):
    inner: Annotated[_Inner, Field(description="a section")]
    share: Annotated[float, Field(gt=0, lt=1, description="a share")] = 0.5
    name: str = "x"


@pytest.mark.parametrize(
    ("tree", "path", "words"),
    [
        ({"inner": {"size": 1, "sise": 2}}, "inner.sise", ["unknown key", "'size'", "allowed: size, kind"]),
        ({"inner": {"size": 1}, "shaer": 2}, "shaer", ["unknown key", "'share'", "inner, share, name"]),
        ({"inner": {"size": 0}}, "inner.size", ["at least 1", "got 0"]),
        ({"inner": {"size": 10}}, "inner.size", ["at most 9", "got 10"]),
        ({"inner": {"size": "many"}}, "inner.size", ["a whole number", "got 'many'"]),
        ({"inner": {"size": 1.5}}, "inner.size", ["a whole number", "got 1.5"]),
        (
            {"inner": {"size": 1, "kind": "sqare"}},
            "inner.kind",
            ["'round' or 'square'", "did you mean 'square'", "'sqare'"],
        ),
        ({"inner": {}}, "inner.size", ["required"]),
        ({}, "inner", ["required"]),
        ({"inner": 5}, "inner", ["a section of keys", "got 5"]),
        ({"inner": {"size": 1}, "share": 0}, "share", ["greater than 0", "got 0"]),
        ({"inner": {"size": 1}, "share": 1}, "share", ["less than 1", "got 1"]),
        ({"inner": {"size": 1}, "share": None}, "share", ["a number", "got nothing"]),
        ({"inner": {"size": 1}, "name": 5}, "name", ["a text", "got 5"]),
    ],
)
def test_a_fault_is_told_with_its_path_what_is_allowed_and_what_was_given(
    tree: dict, path: str, words: list[str]
) -> None:
    value, problems = check(_Outer, tree)
    assert value is None
    assert [key_path(problem.path) for problem in problems] == [path]
    for word in words:
        assert word in problems[0].message


def test_all_faults_are_found_in_one_go() -> None:
    _, problems = check(_Outer, {"inner": {"size": 0, "kind": "x", "y": 1}, "share": 2, "name": 5, "z": 1})
    assert {key_path(problem.path) for problem in problems} == {
        "inner.size",
        "inner.kind",
        "inner.y",
        "share",
        "name",
        "z",
    }


@pytest.mark.parametrize("key", ["int", "float", "str", "none", "function-after", "list", "dict"])
def test_an_unknown_key_named_like_a_type_is_told_like_any_other(key: str) -> None:
    for tree, path in (({"inner": {"size": 1}, key: 1}, key), ({"inner": {"size": 1, key: 1}}, f"inner.{key}")):
        _, problems = check(_Outer, tree)
        assert [key_path(problem.path) for problem in problems] == [path]


def test_a_long_wrong_value_is_shortened() -> None:
    _, problems = check(_Outer, {"inner": {"size": "x" * 500}})
    assert len(str(problems[0])) < 150


def test_allowed_keys_follow_optional_sections_and_the_registry_of_terms() -> None:
    assert allowed_keys(RunConfig, ("teacher", "attention")) == ["mode", "epochs", "lr", "batch_size"]
    assert allowed_keys(RunConfig, ("terms",)) == list(TERMS)
    assert "temperature" in allowed_keys(RunConfig, ("terms", "kd"))


@pytest.mark.parametrize("section", [entry.config for entry in TERMS.values()], ids=list(TERMS))
def test_every_knob_of_a_term_is_described(section: type[Section]) -> None:
    found = knobs(section)
    assert [knob.name for knob in found] == [field.name for field in fields(section)]  # type: ignore[arg-type]
    assert all(knob.description and knob.type for knob in found)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), ""),
        (("a",), "a"),
        (("a", "b"), "a.b"),
        (("a", "b", 1, "c"), "a.b[1].c"),
        ((0, "a"), "[0].a"),
    ],
)
def test_a_key_path_is_written_as_people_write_it(path: tuple[str | int, ...], text: str) -> None:
    assert key_path(path) == text


def test_the_nearest_name_is_offered_only_when_one_is_near() -> None:
    assert nearest("resnet9", ["resnet8", "vgg"]) == "; did you mean 'resnet8'?"
    assert nearest("zzz", ["resnet8", "vgg"]) == ""
    assert (
        unknown("model", "vgc", ["resnet8", "vgg"]) == "unknown model 'vgc'; did you mean 'vgg'? (known: resnet8, vgg)"
    )


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("run.yaml", [Problem(("a", 1), "is wrong", 3), Problem((), "is odd")]),
        NonFiniteLossError(3, 7, {"ce": math.inf, "kd": 1.5}),
        UserError("a"),
        RunError("b"),
        DataError("c"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_the_border_of_a_process(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_user_errors_are_value_errors_and_run_errors_are_not_user_errors() -> None:
    assert issubclass(ConfigError, UserError)
    assert issubclass(DataError, UserError)
    assert issubclass(UserError, ValueError)
    assert issubclass(NonFiniteLossError, RunError)
    assert not issubclass(RunError, UserError)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("student.model: is none", "run.yaml: student.model (line 2): is none"),
        ("student.width has no place", "run.yaml: student.width (--set): has no place"),
        ("student.taps: 'a' and\nmore", "run.yaml: student.taps (line 2): 'a' and\nmore"),
        ("seed: wrong", "run.yaml: seed (line 3): wrong"),
        ("a folder: wrong", "a folder: wrong"),
        ("runs/x.pt: wrong", "runs/x.pt: wrong"),
        ("teacher.pt: no such file", "teacher.pt: no such file"),
        ("the seed is wrong", "the seed is wrong"),
    ],
)
def test_an_error_that_begins_with_a_key_of_the_file_is_placed_and_others_stay(text: str, told: str) -> None:
    document = parse_yaml("\nstudent: {model: a, width: 1}\nseed: 1\n", "run.yaml").changed(["student.width=2"])
    with pytest.raises(UserError) as caught, document.placing():
        raise UserError(text)
    assert str(caught.value) == told
    with pytest.raises(RunError), document.placing():
        raise RunError("seed: none of the user's")
