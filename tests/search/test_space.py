"""A space: every fault at once, only what matters is drawn, and nothing outside the limits."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hksd.config import run as config
from hksd.config.changes import Change
from hksd.config.networks import StudentConfig
from hksd.config.run import RunConfig, config_hash, dump, from_tree
from hksd.errors import ConfigError, UserError, key_path
from hksd.models.size import size_of
from hksd.schema import Section, check, section_fields
from hksd.yaml import parse_yaml, read_yaml
from hksd_search.space import space as spaces
from hksd_search.space.arms import arms
from hksd_search.space.settings import SearchConfig
from hksd_search.space.sizes import Costs, Meter, check_feasible, within
from hksd_search.space.space import Space

Make = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted([*(ROOT / "spaces").glob("*.yaml"), *(ROOT / "spaces" / "paper").glob("*.yaml")])
HEAD = "data: {name: digits}\nteacher: {model: resnet8}\nstudent: {model: resnet8}\n"  # three lines


def random_study(seed: int = 0) -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


def draws(space: Space, count: int, seed: int = 0) -> Iterator[tuple[RunConfig, dict[str, Any]]]:
    """Drawn configurations, each with the parameters that the sampler was asked for."""
    study = random_study(seed)
    for _ in range(count):
        trial = study.ask()
        yield space.draw(trial), trial.params


class Dice:
    """What a space asks of a trial, answered by a plain generator: thousands of draws in a second."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self.random.choice(choices)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if step:
            return low + step * self.random.randrange(int((high - low) / step + 1e-9) + 1)
        return low * (high / low) ** self.random.random() if log else self.random.uniform(low, high)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return self.random.randrange(low, high + 1, step)


def faults(text: str) -> dict[str, tuple[str, int | None]]:
    """Key path -> message and line of every fault of a space."""
    with pytest.raises(ConfigError) as caught:
        spaces.loads(text, "bad", "bad.yaml")
    found = [(key_path(problem.path), problem.message, problem.line) for problem in caught.value.problems]
    assert len({path for path, _, _ in found}) == len(found), "a key is blamed twice"
    assert all(line.startswith("bad.yaml: ") for line in str(caught.value).splitlines())
    return {path: (message, line) for path, message, line in found}


# --- what comes with hksd


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_file_is_found_by_its_name_and_loads(file: Path) -> None:
    assert spaces.find(file.stem) == file
    assert spaces.shipped()[file.stem] == file
    if "search" in read_yaml(file).tree:
        space = spaces.load(file.stem)
        assert space.name == file.stem
        assert space.ranges
    else:
        assert config.load(spaces.find(file.stem)).terms


def test_no_shipped_file_hides_another() -> None:
    assert len(spaces.shipped()) == len(SHIPPED)


SPACES = [file.stem for file in SHIPPED if "search" in read_yaml(file).tree]


@pytest.mark.parametrize("name", SPACES)
def test_draws_and_arms_of_every_shipped_space_are_runs_and_its_limits_bind(name: str) -> None:
    space = spaces.load(name)
    shape = {"in_channels": 3, "classes": 10, "image_size": 32}
    if space.tree["data"]["name"] == "digits":
        shape = {"in_channels": 1, "classes": 10, "image_size": 8}
    largest = check_feasible(space, Meter(shape))
    assert all(arm.student == largest for arm in arms(space, largest, shape["image_size"]).values())
    drawn = [draw for draw, _ in draws(space, 100)]
    assert len({config_hash(draw) for draw in drawn}) > 90
    kept = [not within(space.search.limits, Meter(shape).costs(draw.student)) for draw in drawn]
    assert sum(kept) > 20
    assert (
        max(size_of(d.student.spec(), **shape).params for d, k in zip(drawn, kept, strict=True) if k)
        <= size_of(largest.spec(), **shape).params
    )


# --- errors


def test_all_faults_of_a_space_are_told_at_once_with_file_key_line_and_nearest_name() -> None:
    found = faults(
        """\
data: {name: digitz}
teacher: {model: resnet8}
student:
  model: {choice: [resnet8, resnet9]}
  width: {uniform: [-1, 2]}
  widht: 3
terms:
  ce: {weight: {choice: []}}
  kdd: {weight: 1}
  kd: {temperature: {log_unifrom: [1, 8]}, weight: heavy}
  squeeze: {depth: {int: [1, 4]}}
train: {epochs: 2, lr: {log_uniform: [0.1, 0.01]}, momentum: {uniform: [0.5, 1.5]}}
search:
  trails: 4
  sampler: tpee
  limits: {params: 0}
"""
    )
    expected = {
        "data.name": ("did you mean 'digits'?", 1),
        "student.model.choice[1]": ("unknown model 'resnet9'; did you mean 'resnet8'?", 4),
        "student.width.uniform[0]": ("must be at least 0.01", 5),
        "student.widht": ("unknown key; did you mean 'width'?", 6),
        "terms.ce.weight.choice": ("empty range", 8),
        "terms.kdd": ("unknown key; did you mean 'kd'?", 9),
        "terms.kd.temperature.log_unifrom": ("unknown distribution 'log_unifrom'; did you mean 'log_uniform'?", 10),
        "terms.kd.weight": ("must be a number (got 'heavy')", 10),
        "terms.squeeze.depth.int[1]": ("must be at most 3 (got 4)", 11),
        "train.lr.log_uniform": ("low must be below high", 12),
        "train.momentum.uniform[1]": ("must be less than 1", 12),
        "search.trials": ("required", 13),
        "search.trails": ("unknown key; did you mean 'trials'?", 14),
        "search.sampler": ("did you mean 'tpe'?", 15),
        "search.limits.params": ("must be at least 1 (got 0)", 16),
    }
    assert found.keys() == expected.keys()
    for path, (message, line) in expected.items():
        assert message in found[path][0]
        assert found[path][1] == line


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("data.crop", "data: {name: digits, crop: {int: [0, 2]}}"),
        ("data.seed", "data: {name: digits, seed: {choice: [0, 1]}}"),
        ("teacher.model", "teacher: {model: {choice: [resnet8, resnet14]}}"),
        ("teacher.attention.lr", "teacher: {model: resnet8, attention: {lr: {uniform: [0.1, 0.2]}}}"),
        ("seed", "seed: {int: [0, 3]}"),
        ("train.epochs", "train: {epochs: {choice: [2, 3]}}"),
    ],
)
def test_what_all_trials_must_share_cannot_be_a_range(path: str, text: str) -> None:
    lines = {"data": "data: {name: digits}", "teacher": "teacher: {model: resnet8}", "train": "train: {epochs: 2}"}
    lines[text.partition(":")[0]] = text
    body = "\n".join([*lines.values(), "student: {model: resnet8}", "terms: {ce: {}}", "search: {trials: 2}", ""])
    found = faults(body)
    assert list(found) == [path]
    assert "a range is not possible here" in found[path][0]


@pytest.mark.parametrize(
    ("text", "path", "message", "line"),
    [
        ("terms: {ce: {}}\ntrain: {epochs: 2}\n", "search", "this section is required in a search space", None),
        ("terms: {ce: {}}\ntrain: {epochs: 2}\nsearch:\n", "search", "must be a section of keys (got nothing)", 6),
        ("terms: {ce: {}}\ntrain: {epochs: 2}\nsearch: 3\n", "search", "must be a section of keys (got 3)", 6),
        ("terms: {ce: {}}\ntrain: {epochs: 2}\nsearch: {trials: 0}\n", "search.trials", "at least 1", 6),
        (
            "terms: {ce: {}}\ntrain: {epochs: 2}\nsearch:\n  trials: 2\n  scheduler: {asha: {grace_epoch: 1}}\n",
            "search.scheduler.asha.grace_epoch",
            "did you mean 'grace_epochs'?",
            8,
        ),
        (
            "terms: {ce: {}}\ntrain: {epochs: 2}\nsearch: {trials: 2, minimize: [parms]}\n",
            "search.minimize[0]",
            "did you mean 'params'?",
            6,
        ),
        ("terms: {ce: {}}\ntrain: 2\nsearch: {trials: 2}\n", "train", "must be a section of keys", 5),
        ("terms: [ce]\ntrain: {epochs: 2}\nsearch: {trials: 2}\n", "terms", "must be a section of keys", 4),
        (
            "terms: {kd: {uniform: [0, 1]}}\ntrain: {epochs: 2}\nsearch: {trials: 2}\n",
            "terms.kd.uniform",
            "unknown key",
            4,
        ),
        ("terms: {ce: {}}\ntrain: {epochs: 2, lr: {}}\nsearch: {trials: 2}\n", "train.lr", "exactly one of", 5),
        (
            "terms: {ce: {}}\ntrain: {epochs: 2, schedule: {choice: [cosine, multi]}}\nsearch: {trials: 2}\n",
            "train.schedule.choice[1]",
            "must be 'cosine' or 'multistep'",
            5,
        ),
        (
            "terms: {ce: {}, squeeze: {blocks: {choice: [all, 0]}}}\ntrain: {epochs: 2}\nsearch: {trials: 2}\n",
            "terms.squeeze.blocks.choice[1]",
            "must be 'all' or a whole number",
            4,
        ),
        (
            "terms: {squeeze: {}}\ntrain: {epochs: 2}\nsearch: {trials: 2}\n",
            "",
            "no term tells the student the classes",
            None,
        ),
    ],
)
def test_a_fault_is_told_once_with_its_key_and_line(text: str, path: str, message: str, line: int | None) -> None:
    found = faults(HEAD + text)
    assert list(found) == [path]
    assert message in found[path][0]
    assert found[path][1] == line


@pytest.mark.parametrize(
    "place",
    [
        "train: {epochs: 2, lr: {uniform: [0.1, 0.2], off: 0.5}}",
        "student: {model: resnet8, width: {choice: [1], off: 0.5}}",
    ],
)
def test_only_a_term_can_be_switched_off(place: str) -> None:
    lines = {"teacher": "teacher: {model: resnet8}", "student": "student: {model: resnet8}"}
    lines["train"] = "train: {epochs: 2}"
    lines[place.partition(":")[0]] = place
    found = faults("\n".join(["data: {name: digits}", *lines.values(), "terms: {ce: {}}", "search: {trials: 2}", ""]))
    assert [path.rpartition(".")[2] for path in found] == ["off"]
    assert "only a term can be switched off" in next(iter(found.values()))[0]


def test_an_unknown_space_names_the_nearest_and_all_known_ones() -> None:
    with pytest.raises(
        UserError, match=r"unknown space or configuration 'quickstrat'; did you mean 'quickstart'\?"
    ) as caught:
        spaces.load("quickstrat")
    assert all(file.stem in str(caught.value) for file in SHIPPED)


@pytest.mark.parametrize("name", ["missing.yaml", "below/missing.yml"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.ya?ml: no such file"):
        spaces.load(str(tmp_path / name))


def test_a_folder_that_is_called_like_a_shipped_space_does_not_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cifar10").mkdir()  # where somebody keeps the images, say
    monkeypatch.chdir(tmp_path)
    assert spaces.load("cifar10").name == "cifar10"


# --- draws


def test_a_drawn_configuration_is_what_its_dump_builds(make_space: Make) -> None:
    for drawn, _ in draws(make_space(), 50):
        assert from_tree(dump(drawn)) == drawn


def test_a_draw_holds_exactly_what_the_sampler_gave(make_space: Make) -> None:
    for drawn, params in draws(make_space(), 50):
        flat = config.flatten(dump(drawn))
        assert {key: flat[key] for key in params if not key.endswith(".off")} == {
            key: value for key, value in params.items() if not key.endswith(".off")
        }


def test_a_term_that_is_absent_draws_none_of_its_knobs(make_space: Make) -> None:
    seen = set()
    for drawn, params in draws(make_space(), 100):
        kd = {key for key in params if key.startswith("terms.kd.") and not key.endswith(".off")}
        expected = {"terms.kd.weight", "terms.kd.temperature"} if "kd" in drawn.terms else set()
        assert kd == expected
        seen.add("kd" in drawn.terms)
    assert seen == {True, False}


@pytest.mark.parametrize("off", [0.1, 0.33, 0.8])
def test_a_term_is_absent_with_its_probability(off: float, make_space: Make) -> None:
    space = make_space(terms={"ce": {}, "kd": {"temperature": {"uniform": [1, 8], "off": off}}})
    dice, count = Dice(0), 2000 if off == 0.33 else 500
    absent = sum("kd" not in space.draw(dice).terms for _ in range(count))
    assert abs(absent - off * count) < 4 * math.sqrt(count * off * (1 - off))
    absent, count = sum("kd" not in drawn.terms for drawn, _ in draws(space, 150)), 150
    assert abs(absent - off * count) < 4 * math.sqrt(count * off * (1 - off))


def test_a_term_without_off_is_always_there(make_space: Make) -> None:
    weight = {"uniform": [0.5, 1.0]}
    space = make_space(terms={"ce": {"weight": weight}, "kd": {"weight": {**weight, "off": 0}}})
    for drawn, params in draws(space, 50):
        assert {"ce", "kd"} == set(drawn.terms)
        assert not any(key.endswith(".off") for key in params)


SQUEEZE = {
    "weight": 1.0,
    "depth": {"choice": [1, 2, 3]},
    "compatibility": {"choice": ["dot", "gap"]},
    "attend": {"choice": ["raw", "fused"]},
    "pool": {"choice": ["sum", "mean"]},
    "attention_temperature": {"uniform": [0.5, 2]},
    "levels": {"choice": ["top", "all"]},
    "level_decay": {"uniform": [0.5, 2]},
    "top_dim": {"choice": [64, 128]},
    "normalize": {"choice": [True, False]},
    "metric": {"choice": ["l2", "cosine"]},
}
LIVE = {
    "squeeze": ({"terms": {"ce": {}, "squeeze": SQUEEZE}}, ("terms", "squeeze")),
    "squeeze from its other ends": (
        {
            "terms": {
                "ce": {},
                "squeeze": {
                    key: {"choice": value["choice"][::-1]} if isinstance(value, dict) and "choice" in value else value
                    for key, value in SQUEEZE.items()
                },
            }
        },
        ("terms", "squeeze"),
    ),
    "squeezed blocks": (
        {
            "terms": {
                "ce": {},
                "squeeze": {
                    "depth": {"choice": [1, 2]},
                    "share_query": {"choice": [True, False]},
                    "blocks": {"choice": ["all", 1, 2]},
                },
            }
        },
        ("terms", "squeeze"),
    ),
    "squeezed blocks from the other end": (
        {
            "terms": {
                "ce": {},
                "squeeze": {
                    "depth": {"choice": [1, 2]},
                    "share_query": {"choice": [True, False]},
                    "blocks": {"choice": [1, 2, "all"]},
                },
            }
        },
        ("terms", "squeeze"),
    ),
    "adversarial": (
        {
            "terms": {
                "ce": {},
                "adversarial": {
                    "loss": {"choice": ["hinge", "nonsaturating"]},
                    "confusion": {"uniform": [0.1, 0.5]},
                },
            }
        },
        ("terms", "adversarial"),
    ),
    "train": (
        {"train": {"schedule": {"choice": ["cosine", "multistep"]}, "gamma": {"uniform": [0.1, 0.5]}}},
        ("train",),
    ),
}


@pytest.mark.parametrize(("sections", "path"), LIVE.values(), ids=LIVE)
def test_a_knob_is_drawn_exactly_when_it_can_matter(sections: dict, path: tuple[str, ...], make_space: Make) -> None:
    space = make_space(**sections)
    knobs = {key[-1] for key in space.ranges if key[:-1] == path}
    both = set()
    for drawn, params in draws(space, 150):
        owner: Any = drawn
        for key in path:
            owner = owner[key] if isinstance(owner, Mapping) else getattr(owner, key)
        asked = {knob for knob in knobs if ".".join((*path, knob)) in params}
        assert asked == knobs - owner.dead_knobs(), owner
        both |= {(knob, knob in asked) for knob in knobs}
    assert any(not asked for _, asked in both)


def test_the_sampler_is_not_asked_for_a_pool_when_there_is_no_attention(make_space: Make) -> None:
    space = make_space(terms={"ce": {}, "squeeze": {key: SQUEEZE[key] for key in ("compatibility", "pool", "attend")}})
    for drawn, params in draws(space, 60):
        gap = drawn.terms["squeeze"].compatibility == "gap"
        assert gap == ("terms.squeeze.pool" not in params) == ("terms.squeeze.attend" not in params)


def test_the_decay_of_levels_is_drawn_only_where_several_levels_are_compared(make_space: Make) -> None:
    keys = ("depth", "levels", "level_decay")
    space = make_space(terms={"ce": {}, "squeeze": {key: SQUEEZE[key] for key in keys}})
    for drawn, params in draws(space, 100):
        squeeze = drawn.terms["squeeze"]
        assert ("terms.squeeze.levels" in params) == (squeeze.depth >= 2)
        assert ("terms.squeeze.level_decay" in params) == (squeeze.depth >= 2 and squeeze.levels == "all")


def sections(kind: Any) -> Iterator[type[Section]]:
    """Every section class below `kind`, itself included."""
    for option in (kind, *get_args(kind)):
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            yield option
    for inner in section_fields(kind).values():
        yield from sections(inner)


def leaves(kind: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Key path of every value below `kind`."""
    for key, inner in section_fields(kind).items():
        if section_fields(inner):
            yield from leaves(inner, (*path, key))
        else:
            yield (*path, key)


ALL_SECTIONS = sorted({*sections(RunConfig), *sections(SearchConfig)}, key=lambda kind: kind.__name__)
REQUIRED = {"name": "digits", "model": "resnet8", "epochs": 3, "trials": 3}


def literals(hint: Any) -> set[Any]:
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    return {value for part in get_args(hint) for value in literals(part)}


def candidates(kind: type[Section]) -> dict[str, list[Any]]:
    """Values that each plain field of a section takes, found by trying."""
    required = {
        field.name: REQUIRED[field.name]
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    hints, found = get_type_hints(kind, include_extras=True), {}
    for field in dataclasses.fields(kind):
        named = sorted(literals(hints[field.name]), key=repr)
        pool = [*named, True, False, None, 0, 1, 2, 0.5, 2.5, "cpu", "x", "resnet8", "resnet14"]
        takes = [value for value in pool if check(kind, {**required, field.name: value})[0] is not None]
        found |= {field.name: takes} if takes else {}
    return found


PLAIN = [kind for kind in ALL_SECTIONS if kind not in (RunConfig, SearchConfig, Change)]  # no range is in a change


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.__name__)
def test_what_is_dead_depends_on_fields_that_are_drawn_earlier(kind: type[Section]) -> None:
    pools, random_ = candidates(kind), random.Random(0)
    names = list(pools)

    def some() -> dict[str, Any]:
        return {name: random_.choice(pools[name]) for name in names}

    wrong, tried = set(), 0
    for _ in range(400):
        first, second = some(), some()
        at = random_.randrange(len(names))
        mixed = {name: (first if i < at else second)[name] for i, name in enumerate(names)}
        one, two = (check(kind, tree)[0] for tree in (first, mixed))
        if one is None or two is None:
            continue
        tried += 1
        if (names[at] in one.dead_knobs()) != (names[at] in two.dead_knobs()):
            wrong.add(names[at])
    assert tried > 100
    assert not wrong, f"{kind.__name__}: whether {wrong} matter(s) hangs on a field that is drawn later, or on itself"


# Ranges of every kind, put in the place of every key: what loads must be drawable.
TRIED = [
    {"uniform": [1, 3]},
    {"uniform": [0.1, 0.9]},
    {"uniform": [0, 1]},
    {"uniform": [1, 3], "step": 0.5},
    {"uniform": [1, 9], "step": 0.5},
    {"uniform": [1, 3], "step": 1},
    {"log_uniform": [1, 64]},
    {"int": [1, 3]},
    {"int": [0, 1]},
    {"choice": [0, 1]},
    {"choice": [0.5, 1.5]},
    {"choice": [None, 2]},
    {"choice": [True, False]},
]
FREE = [
    path
    for path in leaves(RunConfig)
    if not any(path[: len(fixed)] == fixed for fixed in (tuple(key.split(".")) for key in spaces.FIXED))
]


def put(tree: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    inner = value if len(path) == 1 else put(tree.get(path[0]) or {}, path[1:], value)
    return {**tree, path[0]: inner}


@pytest.mark.parametrize("spread", TRIED, ids=str)
def test_whatever_loads_as_a_space_can_be_drawn(spread: dict[str, Any], space_text: Make) -> None:
    fixed = {"student": {"model": "resnet8", "width": 1.0}, "terms": {"ce": {}, "logits": {}}}
    document = parse_yaml(space_text(**fixed), "tried.yaml")
    undrawable, loaded = set(), 0
    for path in FREE:
        try:
            space = spaces.parse(dataclasses.replace(document, tree=put(document.tree, path, spread)), "tried")
        except ConfigError:
            continue
        loaded += 1
        for seed in range(12):
            try:
                space.draw(Dice(seed))
            except ConfigError:
                undrawable.add(".".join(path))
    assert loaded
    assert not undrawable


# --- the middle, and overrides


def test_the_middle_is_in_the_middle_of_every_range_and_takes_whole_sections(make_space: Make) -> None:
    space = make_space()
    middle = space.middle({})
    assert (middle.student.model, middle.student.width) == ("resnet8", 0.25)
    assert middle.terms["kd"].weight == pytest.approx(1.0)
    assert middle.terms["kd"].temperature == 4.5
    assert middle.train.lr == pytest.approx(math.sqrt(0.003))
    other = space.middle({"terms": {"ce": {"weight": 2.0}}})
    assert (list(other.terms), other.train) == (["ce"], middle.train)


def test_overrides_reach_values_ranges_and_the_search_section(tmp_path: Path, space_text: Make) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(space_text())
    space = spaces.load(
        str(file),
        [
            "student.width.choice=[0.75]",
            "terms.kd.weight=2",
            "train.batch_size={choice: [32, 64]}",
            "search.trials=3",
            "train.lr.log_uniform=[1e-3, 1e-1]",
        ],
    )
    assert space.name == "own"
    assert space.search.trials == 3
    sizes = set()
    for drawn, params in draws(space, 30):
        assert drawn.student.width == 0.75
        assert drawn.terms["kd"].weight == 2.0
        assert "terms.kd.off" not in params
        assert 1e-3 <= drawn.train.lr <= 1e-1
        sizes.add(drawn.train.batch_size)
    assert sizes == {32, 64}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.width.choice=[]", "student.width.choice"),
        ("train.lr.uniform=[1, 2]", "got log_uniform and uniform"),
        ("student.width.choice[0]=1", "unknown distribution"),
        ("train.lr", "expected KEY.PATH=VALUE"),
        ("search.trials=none", "search.trials"),
        ("terms.kd.weight.off.x=1", "is a value, not a section"),
    ],
)
def test_a_wrong_override_is_an_error_with_its_key(
    override: str, message: str, tmp_path: Path, space_text: Make
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(space_text())
    with pytest.raises(UserError) as caught:
        spaces.load(str(file), [override])
    assert message in str(caught.value)


def test_with_trials_changes_nothing_else(make_space: Make) -> None:
    space = make_space()
    assert space.with_trials(None) == space
    more = space.with_trials(50)
    assert more.search.trials == 50
    assert dataclasses.replace(more, search=space.search) == space


@pytest.mark.parametrize(
    ("scheduler", "epochs", "grace"),
    [
        ("none", 12, 12),
        ("asha", 12, 4),
        ("asha", 1, 1),
        ("asha", 10, 4),
        ({"asha": {"grace_epochs": 5}}, 12, 5),
        ({"asha": {"grace_epochs": 50}}, 12, 12),
        ({"asha": None}, 7, 7),
        ({}, 9, 3),
    ],
)
def test_no_trial_is_stopped_before_a_third_of_its_epochs_or_the_named_number(
    scheduler: Any, epochs: int, grace: int
) -> None:
    search, problems = check(SearchConfig, {"trials": 3, "scheduler": scheduler})
    assert search is not None, problems
    assert search.grace_epochs(epochs) == grace


# --- limits

STUDENTS = {"model": {"choice": ["resnet8", "resnet14", "resnet20"]}, "width": {"choice": [0.25, 0.5, 1.0]}}


def sized(space: Space, shape: dict[str, int]) -> list[tuple[Any, Costs]]:
    models, widths = (space.ranges[("student", key)].values for key in ("model", "width"))
    students = [StudentConfig(model=model, width=width) for model in models for width in widths]
    return [(student, Meter(shape).costs(student)) for student in students]


@given(params=st.none() | st.integers(4000, 300_000), mflops=st.none() | st.floats(0.05, 4.0))
def test_the_largest_student_within_both_limits_is_chosen(
    params: int | None, mflops: float | None, make_space: Make, shape: dict[str, int]
) -> None:
    space = make_space(student=STUDENTS, search={"limits": {"params": params, "mflops": mflops}})
    fitting = [
        (student, size)
        for student, size in sized(space, shape)
        if (params is None or size["params"] <= params) and (mflops is None or size["mflops"] <= mflops)
    ]
    if not fitting:
        with pytest.raises(UserError):
            check_feasible(space, Meter(shape))
        return
    found = Meter(shape).costs(check_feasible(space, Meter(shape)))
    assert found["params"] == max(size["params"] for _, size in fitting)
    assert not within(space.search.limits, found)


def test_a_student_of_exactly_the_limit_is_within(make_space: Make, shape: dict[str, int]) -> None:
    size = Meter(shape).costs(StudentConfig(model="resnet14", width=0.5))
    space = make_space(student=STUDENTS, search={"limits": {"params": size["params"], "mflops": size["mflops"]}})
    assert within(space.search.limits, size) == []
    assert check_feasible(space, Meter(shape)) == StudentConfig(model="resnet14", width=0.5)
    tight = make_space(student=STUDENTS, search={"limits": {"params": size["params"] - 1}})
    assert len(within(tight.search.limits, size)) == 1


@pytest.mark.parametrize(
    ("limits", "impossible", "possible"),
    [
        ({"params": 100}, ["params = 100"], []),
        ({"mflops": 0.001}, ["mflops = 0.001"], []),
        ({"params": 100, "mflops": 50}, ["params = 100"], ["mflops = 50"]),
        ({"params": 100000, "mflops": 0.001}, ["mflops = 0.001"], ["params = 100000"]),
        ({"params": 1, "mflops": 0.001}, ["params = 1", "mflops = 0.001"], []),
        ({"peak_memory_mb": 0.001, "params": 100000}, ["peak_memory_mb = 0.001"], ["params = 100000"]),
    ],
)
def test_an_impossible_limit_is_named_with_the_smallest_size_that_can_be_reached(
    limits: dict[str, float], impossible: list[str], possible: list[str], make_space: Make, shape: dict[str, int]
) -> None:
    space = make_space(student=STUDENTS, search={"limits": limits})
    with pytest.raises(UserError, match=r"search\.limits") as caught:
        check_feasible(space, Meter(shape))
    message = str(caught.value)
    assert "small.yaml" in message
    sizes = [size for _, size in sized(space, shape)]
    for name in ("params", "mflops", "peak_memory_mb"):
        least = min(size[name] for size in sizes)
        if name in limits:
            # The size that is named is right to the last of its digits, however it is rounded.
            shown = re.search(rf"limits\.{name} = [^;]+smallest reachable is (\S+) \(resnet8, width 0.25\)", message)
            assert shown is not None, message
            assert float(shown[1]) == pytest.approx(least, rel=1e-5)
    for text in impossible:
        assert f"limits.{text} is impossible" in message
    for text in possible:
        assert f"limits.{text} is possible alone" in message


@pytest.mark.parametrize("width", [{"uniform": [0.25, 1.0]}, {"log_uniform": [0.25, 1.0]}])
def test_no_draw_within_the_limits_is_larger_than_the_student_of_the_arms(
    width: dict[str, Any], make_space: Make, shape: dict[str, int]
) -> None:
    space = make_space(student={"model": "resnet8", "width": width}, search={"limits": {"params": 40_000}})
    largest = Meter(shape).costs(check_feasible(space, Meter(shape)))
    sizes = [Meter(shape).costs(drawn.student) for drawn, _ in draws(space, 60)]
    kept = [size["params"] for size in sizes if not within(space.search.limits, size)]
    assert len(kept) > 10
    assert max(kept) <= largest["params"]


# --- alternatives

ONE_OF = {
    "ce": {"weight": {"uniform": [0.1, 1]}},
    "one_of": {
        "kd": {"kd": {"weight": {"log_uniform": [0.1, 10]}, "temperature": {"uniform": [1, 8]}}},
        "logits": {"logits": {"weight": {"log_uniform": [0.01, 1]}}},
        "both": {"kd": {"weight": 0.9}, "logits": {"weight": {"log_uniform": [1, 2], "off": 0.5}}},
        "none": {},
    },
}


def test_a_draw_takes_one_alternative_with_what_is_common_and_its_own_knobs(make_space: Make) -> None:
    seen: dict[str, set[str]] = {}
    for drawn, params in draws(make_space(terms=ONE_OF), 80):
        name = params["terms.one_of"]
        own = {key for key in params if key.startswith("terms.one_of.")}
        seen.setdefault(name, set()).update(own)
        assert "terms.ce.weight" in params
        expected = {"kd": {"kd"}, "logits": {"logits"}, "both": {"kd", "logits"}, "none": set()}[name]
        assert set(drawn.terms) - {"logits"} == {"ce", *(expected - {"logits"})}
        assert all(key.startswith(f"terms.one_of.{name}.") for key in own)
        if name == "kd":
            assert drawn.terms["kd"].weight == params["terms.one_of.kd.kd.weight"]
    assert seen == {
        "kd": {"terms.one_of.kd.kd.weight", "terms.one_of.kd.kd.temperature"},
        "logits": {"terms.one_of.logits.logits.weight"},
        "both": {"terms.one_of.both.logits.weight", "terms.one_of.both.logits.off"},
        "none": set(),
    }


def test_the_middle_of_alternatives_is_that_of_the_first(make_space: Make) -> None:
    assert list(make_space(terms=ONE_OF).middle({}).terms) == ["ce", "kd"]


def test_a_space_with_alternatives_is_what_its_own_tree_loads(make_space: Make, space_text: Make) -> None:
    space = make_space(terms=ONE_OF)
    again = spaces.loads(space_text(terms=space.tree["terms"]), "small", "small.yaml")
    assert again == space


@pytest.mark.parametrize(
    ("one_of", "path", "message"),
    [
        ({"kd": {"kd": {}}}, "terms.one_of", "at least two alternatives"),
        (["kd", "logits"], "terms.one_of", "at least two alternatives"),
        ({"kd": {"kd": {}}, "a b": {}}, "terms.one_of.a b", "letters, digits"),
        ({"kd": {"kd": {}}, "x": 3}, "terms.one_of.x", "must be a section of terms"),
        ({"kd": {"kd": {}}, "x": {"ce": {}}}, "terms.one_of.x.ce", "also stands in terms"),
        ({"a": {"kd": {"temprature": 4}}, "b": {}}, "terms.one_of.a.kd.temprature", "did you mean 'temperature'"),
        ({"a": {"kd": {"weight": {"uniform": [2, 1]}}}, "b": {}}, "terms.one_of.a.kd.weight.uniform", ""),
        ({"a": {"kdd": {}}, "b": {}}, "terms.one_of.a.kdd", "did you mean 'kd'"),
    ],
)
def test_faults_of_alternatives_are_told_where_they_stand(
    one_of: Any, path: str, message: str, make_space: Make
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_space(terms={"ce": {}, "one_of": one_of})
    assert path in {".".join(map(str, problem.path)) for problem in caught.value.problems}
    assert message in str(caught.value)


# --- the documentation


@pytest.mark.parametrize("kind", [RunConfig, SearchConfig], ids=lambda kind: kind.__name__)
def test_the_readme_of_the_spaces_mentions_every_key(kind: type[Section]) -> None:
    text = (ROOT / "spaces" / "README.md").read_text()
    prefix = ("search",) if kind is SearchConfig else ()
    words = set(re.findall(r"\w+", text))
    missing = [".".join((*prefix, *path)) for path in leaves(kind) if not set(path) <= words]
    assert not missing
