"""A run as YAML: what is loaded is what was dumped, every fault is told at once, dead knobs do not count."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from hksd.class_names import name_fault
from hksd.config.changes import Values
from hksd.config.run import (
    DataConfig,
    RunConfig,
    Terms,
    canonical,
    config_hash,
    content_hash,
    dump,
    dump_yaml,
    from_document,
    from_tree,
    load,
)
from hksd.errors import ConfigError, UserError, key_path
from hksd.models import MODELS
from hksd.schema import Section
from hksd.terms import TERMS
from hksd.yaml import parse_yaml

Make = Callable[..., Any]
ALL_TERMS: dict[str, Any] = {name: {} for name in TERMS}


# --- random valid configurations, drawn from the schema itself, so that a new knob is covered the day it is added


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Plain values (as a YAML file would hold them) that a field of type `hint` accepts."""
    metadata = getattr(hint, "__metadata__", ())
    kind = get_args(hint)[0] if metadata else hint
    info = next((item for item in metadata if isinstance(item, FieldInfo)), None)
    bounds: dict[str, Any] = {}
    for item in [*metadata, *(info.metadata if info else ())]:
        bounds |= {
            key: getattr(item, key) for key in ("gt", "ge", "lt", "le", "pattern", "min_length") if hasattr(item, key)
        }
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if any(isinstance(item, AfterValidator) for item in metadata):
        return st.sampled_from(list(MODELS))
    if kind is Terms:
        return st.fixed_dictionaries({}, optional={n: section(e.config) for n, e in TERMS.items()})
    if kind is Values:
        return st.just({"train.lr": 0.5})
    if dataclasses.is_dataclass(kind):
        return section(kind)
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is tuple:
        return st.lists(values_of(get_args(kind)[0]), min_size=bounds.get("min_length", 0), max_size=4)
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(low if low is not None else -1000, high if high is not None else 1000)
    if kind is float:
        return st.floats(
            low, high, exclude_min="gt" in bounds, exclude_max="lt" in bounds, allow_nan=False, allow_infinity=False
        )
    if kind is str:
        return st.sampled_from(["auto", "cpu", "cuda:1"]) if "pattern" in bounds else _TEXTS
    if kind is type(None):
        return st.none()
    return st.one_of([_bounded(option, bounds) for option in get_args(kind)])


# Texts that YAML reads as something else unless they are quoted.
_ODD = [
    *["1e-3", "1e5", "-1E+7", "0E0", ".5e1", "12", "1.5", "1_000", "0x1f", "0o7", "1:30", ".inf", "2024-01-01", "+1"],
    *["off", "on", "yes", "no", "true", "True", "null", "~", "- a", "a: b", "#x", "=", "<<", " a ", "*x", "&x", "!x"],
    *["'", '"', "%", "@", "`", "|", ">", "?", "{}", "[1]", "a\nb", "\u00e9", "\u2028", "\U0001f600", "C:\\x", "a #b"],
]
_TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12) | st.sampled_from(_ODD)


def _bounded(option: Any, bounds: dict[str, Any]) -> st.SearchStrategy[Any]:
    if option is int:
        return st.integers(bounds.get("ge", 1), 1000)
    if option is float:
        high = bounds.get("lt", bounds.get("le", 1e300))
        low = bounds.get("ge", bounds.get("gt", 0))
        return st.floats(low, high, exclude_min="ge" not in bounds, exclude_max="lt" in bounds, allow_nan=False)
    return values_of(option)


def section(kind: type) -> st.SearchStrategy[dict[str, Any]]:
    hints = get_type_hints(kind, include_extras=True)
    required: dict[str, Any] = {}
    optional: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        given_always = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        (required if given_always else optional)[field.name] = values_of(hints[field.name])
    return st.fixed_dictionaries(required, optional=optional)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    tree = draw(section(RunConfig))
    tree["data"].setdefault("root", "somewhere")
    if tree["data"]["root"] is None:
        tree["data"]["root"] = "somewhere"
    if tree.get("teacher") is None:
        tree["teacher"] = {"model": "resnet20"}
    for part in (tree["data"], tree["teacher"]):
        names = part.get("classes")
        if names is not None and (not all(names) or name_fault(names)):
            part["classes"] = None
    for network in (tree["teacher"], tree["student"]):
        entry = MODELS[network["model"]]
        network.update({} if entry.width else {"width": 1.0})
        by_path = {"taps": list(dict.fromkeys(network.get("taps", []))), "classifier": network.get("classifier")}
        network.update(by_path if entry.by_path else {"taps": [], "classifier": None})
        if network.get("pretrained"):  # only of torchvision's networks, as they are
            network["pretrained"] = entry.by_path
            network.update({"checkpoint": None, "descriptor_dim": None, "width": 1.0} if entry.by_path else {})
    teacher = tree["teacher"]
    if teacher.get("attention", {}).get("mode") == "joint":
        teacher.update({"checkpoint": None, "pretrained": False})
    channels = draw(st.integers(1, 3))
    teacher |= {key: [draw(st.floats(0.01, 1)) for _ in range(channels)] for key in ("mean", "std") if key in teacher}
    if not {"mean", "std"} <= teacher.keys() or teacher.get("preprocess", "own") != "own":
        teacher |= {"mean": [], "std": []}
    if not teacher.get("checkpoint") and not teacher.get("pretrained"):
        for key in ("preprocess", "mean", "std", "channels", "image_size", "classes", "expected_accuracy"):
            teacher.pop(key, None)
    tree["terms"].setdefault("ce", {})["weight"] = draw(st.floats(0.1, 10))
    if tree["terms"].get("adversarial", {}).get("input") == "descriptor":
        tree["terms"].setdefault("squeeze", {})["weight"] = 1.0
    if tree.get("data_free") is not None:
        tree["terms"] = {"logits": {"weight": 1.0}}
    epochs = tree["train"]["epochs"]
    whens = draw(st.lists(st.integers(1, epochs - 1), max_size=3, unique=True)) if epochs > 1 else []
    values = st.dictionaries(st.sampled_from(["train.lr", "train.momentum"]), st.floats(0.01, 0.9), min_size=1)
    tree["changes"] = [{"epoch": when, "set": draw(values)} for when in sorted(whens)]
    return tree


def dataclasses_in(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Section]]:
    if isinstance(value, Terms):
        for name, term in value.items():
            yield from dataclasses_in(term, (*path, name))
    elif dataclasses.is_dataclass(value):
        yield path, value  # type: ignore[misc]
        for field in dataclasses.fields(value):
            yield from dataclasses_in(getattr(value, field.name), (*path, field.name))


def with_value(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    if len(path) == 1:
        return {**tree, path[0]: value}
    return {**tree, path[0]: with_value(tree[path[0]] or {}, path[1:], value)}


@given(trees())
def test_any_configuration_is_what_its_dump_and_its_yaml_build_and_the_dump_is_plain_and_complete(
    tree: dict[str, Any],
) -> None:
    config = from_tree(tree)
    dumped = dump(config)
    for again in (from_tree(dumped), from_document(parse_yaml(dump_yaml(config), "run.yaml"))):
        assert again == config
        assert hash(again) == hash(config)
        assert config_hash(again) == config_hash(config)
    assert pickle.loads(pickle.dumps(config)) == config
    assert yaml.load(yaml.dump(dumped, Dumper=yaml.CSafeDumper), yaml.CSafeLoader) == dumped
    assert set(dumped) == {field.name for field in dataclasses.fields(RunConfig)}


@pytest.mark.parametrize("text", _ODD)
def test_a_text_that_looks_like_something_else_stays_a_text(text: str, make_tree: Make) -> None:
    config = from_tree(make_tree(data={"root": text}))
    assert from_document(parse_yaml(dump_yaml(config), "run.yaml")) == config


@given(st.data())
def test_the_hash_ignores_every_dead_knob_and_sees_every_live_one(data: st.DataObject) -> None:
    config = from_tree(data.draw(trees()))
    path, owner = data.draw(st.sampled_from(list(dataclasses_in(config))))
    knob = data.draw(st.sampled_from([f.name for f in dataclasses.fields(owner)]))
    before = getattr(owner, knob)
    assume(not isinstance(before, (Section, Terms)))
    value = data.draw(values_of(get_type_hints(type(owner), include_extras=True)[knob]))
    try:
        changed = from_tree(with_value(dump(config), (*path, knob), value))
    except ConfigError:
        assume(False)
    after = dict(dataclasses_in(changed)).get(path)
    assume(after is not None and getattr(after, knob) != before)
    gone = path[:1] == ("terms",) and path[1] not in config.terms.active() and path[1] not in changed.terms.active()
    gone |= path[:1] == ("teacher",) and not any(t.teacher_needs for t in config.terms.active().values())
    squeezed = any("squeezed" in t.teacher_needs for t in config.terms.active().values())
    gone |= path[:2] == ("teacher", "attention") and not squeezed
    dead = gone or (knob in owner.dead_knobs() and knob in after.dead_knobs())
    # A change of several other fields at once (defaults that follow the name of the data set) is a live change.
    assert (config_hash(changed) == config_hash(config)) == dead


JUNK = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        10**30,
        1.5,
        math.nan,
        math.inf,
        "x",
        "",
        [],
        [1],
        {},
        {"choice": [1]},
        {1: 2},
        {None: 1},
        {"int": 1},
        {"none": {"str": 2}},
    ]
)


@given(st.data())
def test_any_junk_in_a_configuration_is_an_error_of_ours_or_a_configuration_with_a_hash(data: st.DataObject) -> None:
    tree = data.draw(trees())
    path: list[str] = []
    node: Any = tree
    while isinstance(node, dict) and node and (not path or data.draw(st.booleans())):
        path.append(data.draw(st.sampled_from([*node, "new"])))
        node = node.get(path[-1])
    tree = with_value(tree, tuple(path), data.draw(JUNK))
    try:
        config = from_tree(tree)
    except ConfigError as error:
        assert error.problems
        return
    config_hash(config)


def test_a_tree_that_is_no_mapping_is_an_error() -> None:
    for tree in (None, 5, "x", [], [1]):
        with pytest.raises(ConfigError):
            from_tree(tree)


# --- loading


def write(folder: Path, tree: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree, sort_keys=False))
    return path


def test_a_file_loads_to_what_its_tree_builds_and_overrides_change_it(tmp_path: Path, make_tree: Make) -> None:
    path = write(tmp_path, make_tree(terms=ALL_TERMS))
    assert load(path) == from_tree(make_tree(terms=ALL_TERMS))
    changed = load(path, ["train.epochs=7", "terms.kd.temperature=1e0", "student.width=5e-1"])
    assert (changed.train.epochs, changed.terms["kd"].temperature, changed.student.width) == (7, 1.0, 0.5)


def test_a_number_in_powers_of_ten_without_a_dot_is_a_number(tmp_path: Path, make_tree: Make) -> None:
    text = yaml.safe_dump(make_tree()).replace("lr: 0.05", "lr: 5e-2")
    assert "5e-2" in text
    assert load(write(tmp_path, text)).train.lr == 0.05


FAULTY = """\
data: {name: digit, valdation: 0.2}
teacher:
  model: resnte20
  epochs: 0
student:
  model: resnet8
  width: -1
terms:
  ce: {weight: lots}
  kdd: {weight: 1}
  squeeze:
    depth: 4
    compatibilty: dot
train:
  lr: null
  milestones: [0.5, 2]
sed: 1
"""


def test_every_fault_of_a_file_is_told_at_once_with_line_path_allowed_values_and_nearest_name(tmp_path: Path) -> None:
    path = write(tmp_path, FAULTY)
    with pytest.raises(ConfigError) as caught:
        load(path)
    found = {key_path(problem.path): (problem.line, problem.message) for problem in caught.value.problems}
    expected = {
        "data.name": (1, ["'digits', 'cifar10', 'cifar100', ", "'imagenet' or 'folder'", "did you mean 'digits'"]),
        "data.valdation": (1, ["unknown key", "did you mean 'validation'"]),
        "teacher.model": (3, ["unknown model 'resnte20'", "did you mean 'resnet20'", "resnet56"]),
        "teacher.epochs": (4, ["at least 1", "got 0"]),
        "student.width": (7, ["at least 0.01", "got -1"]),
        "terms.ce.weight": (9, ["must be a number", "'lots'"]),
        "terms.kdd": (10, ["did you mean 'kd'", ", ".join(TERMS)]),
        "terms.squeeze.depth": (12, ["at most 3", "got 4"]),
        "terms.squeeze.compatibilty": (13, ["did you mean 'compatibility'"]),
        "train.epochs": (14, ["required"]),
        "train.lr": (15, ["a number", "got nothing"]),
        "train.milestones[1]": (16, ["less than 1", "got 2"]),
        "sed": (17, ["did you mean 'seed'"]),
    }
    assert set(found) == set(expected)
    for where, (line, words) in expected.items():
        assert found[where][0] == line, where
        for word in words:
            assert word in found[where][1], where
    lines = str(caught.value).splitlines()
    assert len(lines) == len(expected)
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert any("teacher.epochs (line 4): must be at least 1" in line for line in lines)


def test_a_fault_that_an_override_brings_in_names_its_key(tmp_path: Path, make_tree: Make) -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs.*at least 1"):
        load(write(tmp_path, make_tree()), ["train.epochs=0"])
    with pytest.raises(UserError, match=r"train\.epochs: expected"):
        load(write(tmp_path, make_tree()), ["train.epochs"])


def test_a_search_space_is_not_a_run_and_the_error_says_what_to_do(tmp_path: Path, make_tree: Make) -> None:
    tree = {**make_tree(), "search": {"trials": 3}}
    with pytest.raises(ConfigError, match="hksd search") as caught:
        load(write(tmp_path, tree))
    assert caught.value.problems[0].line is not None


RANGES = [
    ("student", "model", {"choice": ["resnet8"]}),
    ("student", "width", {"choice": [0.5, 1.0]}),
    ("student", "descriptor_dim", {"choice": [8, None]}),
    ("train", "epochs", {"int": [1, 9]}),
    ("train", "lr", {"log_uniform": [0.01, 1]}),
    ("train", "nesterov", {"choice": [True, False]}),
    ("train", "schedule", {"choice": ["cosine", "multistep"]}),
    ("train", "milestones", {"choice": [[0.5], [0.6]]}),
    ("data", "flip", {"choice": [True, False]}),
    ("squeeze", "depth", {"choice": [1, 2]}),
    ("squeeze", "compatibility", {"choice": ["dot", "gap"]}),
    ("squeeze", "blocks", {"choice": [1, "all"]}),
    ("kd", "weight", {"log_uniform": [0.1, 10], "off": 0.3}),
    ("adversarial", "loss", {"choice": ["hinge"]}),
]


@pytest.mark.parametrize(("owner", "knob", "given"), RANGES, ids=[f"{owner}.{knob}" for owner, knob, _ in RANGES])
def test_a_range_in_a_run_is_told_to_belong_to_a_search(owner: str, knob: str, given: Any, make_tree: Make) -> None:
    path = ("terms", owner, knob) if owner in TERMS else (owner, knob)
    with pytest.raises(ConfigError, match="hksd search") as caught:
        from_tree(with_value(make_tree(terms=ALL_TERMS), path, given))
    assert [problem.path for problem in caught.value.problems] == [path]


def _numbers(kind: type, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all fields that hold a float."""
    for name, hint in get_type_hints(kind).items():
        options = (hint, *get_args(hint))
        if float in options and (origin := get_origin(hint)) is not Literal and origin is not tuple:
            yield (*path, name)
        for option in options:
            if dataclasses.is_dataclass(option):
                yield from _numbers(option, (*path, name))  # type: ignore[arg-type]
            elif option is Terms:
                for term, entry in TERMS.items():
                    yield from _numbers(entry.config, (*path, name, term))


@pytest.mark.parametrize("value", [math.inf, math.nan], ids=["inf", "nan"])
@pytest.mark.parametrize("path", list(_numbers(RunConfig)), ids=".".join)
def test_no_number_may_be_infinite_or_nan(path: tuple[str, ...], value: float, make_tree: Make) -> None:
    tree = from_tree(make_tree(terms=ALL_TERMS))
    with pytest.raises(ConfigError) as caught:
        from_tree(with_value(dump(tree), path, value))
    assert [problem.path for problem in caught.value.problems] == [path]


@pytest.mark.parametrize("path", [("seed",), ("data", "seed"), ("teacher", "seed")], ids=".".join)
def test_a_seed_that_no_generator_takes_is_told(path: tuple[str, ...], make_tree: Make) -> None:
    for value in (-1, 2**64, 2**70):
        with pytest.raises(ConfigError) as caught:
            from_tree(with_value(make_tree(), path, value))
        assert [problem.path for problem in caught.value.problems] == [path]


@pytest.mark.parametrize("term", [name for name, entry in TERMS.items() if entry.config.teacher_needs])
def test_a_term_that_needs_a_teacher_is_told_to_miss_it_unless_its_weight_is_0(term: str, make_tree: Make) -> None:
    with pytest.raises(ConfigError, match=f"teacher section is required: {term}"):
        from_tree(make_tree(terms={"ce": {}, term: {}}, teacher=None))
    from_tree(make_tree(terms={"ce": {}, term: {"weight": 0}}, teacher=None))


@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"squeeze": {}},
        {"ce": {"weight": 0}},
        {"ce": {"weight": 0}, "kd": {"weight": 0}, "squeeze": {}},
        {"adversarial": {"category_weight": 0}},
        {"adversarial": {"weight": 0}},
    ],
)
def test_a_run_in_which_nothing_tells_the_classes_is_an_error_with_a_cure(
    terms: dict[str, Any], make_tree: Make
) -> None:
    with pytest.raises(ConfigError, match=r"classes.*above 0"):
        from_tree(make_tree(terms=terms))


@pytest.mark.parametrize("terms", [{"ce": {}}, {"kd": {}}, {"logits": {}}, {"adversarial": {}}])
def test_one_signal_of_the_classes_is_enough(terms: dict[str, Any], make_tree: Make) -> None:
    assert list(from_tree(make_tree(terms=terms)).terms) == list(terms)


def test_data_other_than_digits_needs_a_root(make_tree: Make) -> None:
    with pytest.raises(ConfigError, match="root is required for cifar10"):
        from_tree(make_tree(data={"name": "cifar10"}))


def test_the_augmentation_that_a_data_set_brings_stands_in_its_configuration() -> None:
    assert (DataConfig(name="digits").crop, DataConfig(name="digits").flip) == (1, False)
    other = DataConfig(name="cifar10", root="x")
    assert (other.crop, other.flip) == (4, True)
    mine = DataConfig(name="cifar10", root="x", crop=0, flip=False)
    assert (mine.crop, mine.flip) == (0, False)


# --- frozen


def test_nothing_in_a_configuration_can_be_changed(make_config: Make) -> None:
    config = make_config(terms=ALL_TERMS)
    for _, owner in dataclasses_in(config):
        for field in dataclasses.fields(owner):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(owner, field.name, None)
        with pytest.raises((dataclasses.FrozenInstanceError, AttributeError, TypeError)):
            owner.new = 1  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        config.terms["ce"] = None
    with pytest.raises(TypeError):
        del config.terms["ce"]
    dump(config)["train"]["epochs"] = 99
    assert config.train.epochs == 2


def test_changing_the_tree_afterwards_does_not_change_the_configuration(make_tree: Make) -> None:
    tree = make_tree(train={"milestones": [0.5], "schedule": "multistep"})
    config = from_tree(tree)
    before = config_hash(config)
    tree["train"]["milestones"].append(0.7)
    tree["terms"]["kd"] = {}
    assert config_hash(config) == before


def test_terms_stand_in_the_order_of_the_registry_however_they_were_written(make_tree: Make) -> None:
    backwards = dict(reversed(ALL_TERMS.items()))
    config = from_tree(make_tree(terms=backwards))
    assert list(Terms(dict(reversed(list(config.terms.items()))))) == list(TERMS)
    assert list(config.terms) == list(TERMS)
    assert config == from_tree(make_tree(terms=ALL_TERMS))


# --- hash

SAME: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "a term of weight 0 is absent",
        {"terms": {"ce": {}}},
        {"terms": {"ce": {}, "kd": {"weight": 0, "temperature": 9}}},
    ),
    (
        "a teacher nobody asks",
        {"terms": {"ce": {}}},
        {"terms": {"ce": {}}, "teacher": {"model": "resnet56", "epochs": 99}},
    ),
    ("no teacher at all", {"terms": {"ce": {}}}, {"terms": {"ce": {}}, "teacher": None}),
    (
        "defaults written out",
        {"terms": {"ce": {}, "kd": {}}},
        {"terms": {"ce": {"weight": 1}, "kd": {"temperature": 4}}},
    ),
    ("1 and 1.0", {"student": {"width": 1}}, {"student": {"width": 1.0}}),
    ("root of the data", {"data": {"root": "here"}}, {"data": {"root": "there", "download": True}}),
    ("demand on the teacher", {"terms": ALL_TERMS}, {"terms": ALL_TERMS, "teacher": {"min_accuracy": 0.9}}),
    (
        "expectation of a loaded teacher",
        {"terms": ALL_TERMS, "teacher": {"checkpoint": "x"}},
        {"terms": ALL_TERMS, "teacher": {"checkpoint": "x", "expected_accuracy": 0.9}},
    ),
    (
        "training of a loaded teacher",
        {"terms": ALL_TERMS, "teacher": {"checkpoint": "x"}},
        {"terms": ALL_TERMS, "teacher": {"checkpoint": "x", "epochs": 77, "lr": 1, "batch_size": 1, "weight_decay": 0}},
    ),
    (
        "training of random estimators",
        {"terms": ALL_TERMS, "teacher": {"attention": {"mode": "random"}}},
        {"terms": ALL_TERMS, "teacher": {"attention": {"mode": "random", "epochs": 5, "lr": 1, "batch_size": 1}}},
    ),
    (
        "training of a published teacher",
        {"terms": ALL_TERMS, "teacher": {"model": "resnet18", "width": 1, "pretrained": True}},
        {"terms": ALL_TERMS, "teacher": {"model": "resnet18", "width": 1, "pretrained": True, "epochs": 7, "lr": 1}},
    ),
    ("steps of a cosine", {"train": {}}, {"train": {"milestones": [0.1], "gamma": 0.5}}),
    (
        "Nesterov of no momentum",
        {"train": {"momentum": 0, "nesterov": True}},
        {"train": {"momentum": 0, "nesterov": False}},
    ),
    (
        "attention knobs of gap",
        {"terms": {"ce": {}, "squeeze": {"compatibility": "gap"}}},
        {
            "terms": {
                "ce": {},
                "squeeze": {
                    "compatibility": "gap",
                    "attend": "fused",
                    "pool": "mean",
                    "attention_temperature": 3,
                    "share_query": False,
                },
            }
        },
    ),
    (
        "levels of depth 1",
        {"terms": {"ce": {}, "squeeze": {"depth": 1}}},
        {"terms": {"ce": {}, "squeeze": {"depth": 1, "levels": "all", "level_decay": 0.5}}},
    ),
    (
        "decay of the top level",
        {"terms": {"ce": {}, "squeeze": {"depth": 3}}},
        {"terms": {"ce": {}, "squeeze": {"depth": 3, "level_decay": 0.5}}},
    ),
    (
        "normalised cosine",
        {"terms": {"ce": {}, "squeeze": {"metric": "cosine"}}},
        {"terms": {"ce": {}, "squeeze": {"metric": "cosine", "normalize": False}}},
    ),
    (
        "confusion of a hinge",
        {"terms": {"adversarial": {"loss": "hinge"}}},
        {"terms": {"adversarial": {"loss": "hinge", "confusion": 0.7}}},
    ),
]
OTHER: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("seed", {}, {"seed": 1}),
    ("epochs", {}, {"train": {"epochs": 3}}),
    ("weight", {"terms": {"ce": {}}}, {"terms": {"ce": {"weight": 2}}}),
    ("a further term", {"terms": {"ce": {}}}, {"terms": {"ce": {}, "kd": {}}}),
    ("width", {}, {"student": {"width": 0.5}}),
    ("descriptor", {}, {"student": {"descriptor_dim": 8}}),
    (
        "taps",
        {"student": {"model": "resnet18", "width": 1}},
        {"student": {"model": "resnet18", "width": 1, "taps": ["layer4"]}},
    ),
    (
        "classifier",
        {"student": {"model": "mynets:small"}},
        {"student": {"model": "mynets:small", "classifier": "head"}},
    ),
    (
        "published weights",
        {"terms": {"kd": {}}, "teacher": {"model": "resnet18", "width": 1}},
        {"terms": {"kd": {}}, "teacher": {"model": "resnet18", "width": 1, "pretrained": True}},
    ),
    *(
        (
            f"{key} of a loaded teacher",
            {"terms": {"kd": {}}, "teacher": {"checkpoint": "x"}},
            {"terms": {"kd": {}}, "teacher": {"checkpoint": "x", key: value, **more}},
        )
        for key, value, more in (
            ("preprocess", "none", {}),
            ("mean", [0.5], {"std": [0.5]}),
            ("channels", "bgr", {}),
            ("image_size", 64, {}),
            ("classes", ["b", "a"], {}),
        )
    ),
    ("split", {}, {"data": {"seed": 1}}),
    ("crop", {}, {"data": {"crop": 0}}),
    ("the teacher that is asked", {"terms": {"kd": {}}}, {"terms": {"kd": {}}, "teacher": {"epochs": 3}}),
    ("steps of multistep", {"train": {"schedule": "multistep"}}, {"train": {"schedule": "multistep", "gamma": 0.5}}),
    ("attend of dot", {"terms": ALL_TERMS}, {"terms": {**ALL_TERMS, "squeeze": {"attend": "fused"}}}),
    ("depth", {"terms": ALL_TERMS}, {"terms": {**ALL_TERMS, "squeeze": {"depth": 1}}}),
    (
        "decay of all levels",
        {"terms": {"ce": {}, "squeeze": {"levels": "all"}}},
        {"terms": {"ce": {}, "squeeze": {"levels": "all", "level_decay": 0.5}}},
    ),
    (
        "top_dim of depth 3",
        {"terms": {"ce": {}, "squeeze": {"depth": 3}}},
        {"terms": {"ce": {}, "squeeze": {"depth": 3, "top_dim": 8}}},
    ),
    (
        "training of task-driven estimators",
        {"terms": ALL_TERMS},
        {"terms": ALL_TERMS, "teacher": {"attention": {"epochs": 5}}},
    ),
    ("confusion", {"terms": {"adversarial": {}}}, {"terms": {"adversarial": {"confusion": 0.7}}}),
]


@pytest.mark.parametrize(("one", "two"), [pair[1:] for pair in SAME], ids=[pair[0] for pair in SAME])
def test_configurations_that_differ_in_dead_knobs_alone_have_one_hash(one: dict, two: dict, make_config: Make) -> None:
    assert config_hash(make_config(**one)) == config_hash(make_config(**two))


@pytest.mark.parametrize(("one", "two"), [pair[1:] for pair in OTHER], ids=[pair[0] for pair in OTHER])
def test_configurations_that_differ_in_a_live_knob_have_other_hashes(one: dict, two: dict, make_config: Make) -> None:
    assert config_hash(make_config(**one)) != config_hash(make_config(**two))


def test_estimators_that_no_term_asks_for_do_not_count(make_config: Make) -> None:
    one, two = (make_config(terms={"kd": {}}, teacher={"attention": {"epochs": n}}) for n in (1, 5))
    assert config_hash(one) == config_hash(two)


def test_the_hash_is_the_same_in_every_process_and_on_every_day(make_config: Make) -> None:
    assert content_hash({"b": [1, 2.5, None, "ä"], "a": {"x": True}}) == "c3c7211262b6d219"
    assert len(config_hash(make_config())) == 16


def test_the_canonical_form_holds_the_live_knobs_alone(make_config: Make) -> None:
    tree = canonical(make_config(terms={"ce": {}, "kd": {"weight": 0}}))
    assert set(tree) == {"data", "student", "terms", "train", "seed"}
    assert set(tree["terms"]) == {"ce"}
    assert not {"milestones", "gamma"} & set(tree["train"])
    assert not {"root", "download"} & set(tree["data"])
