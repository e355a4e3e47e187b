"""A search space: a run configuration with ranges in place of values, drawn define-by-run.

A draw walks the sections in the order of the schema. A knob that cannot matter given what was drawn before it (its
section calls it dead) is not drawn, nor is anything in a block that was drawn absent, so the sampler only ever sees
parameters that exist.
"""

from __future__ import annotations

import importlib.resources
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hksd import bounds
from hksd.config import changes
from hksd.config.networks import StudentConfig
from hksd.config.run import RunConfig, from_tree, path_faults
from hksd.errors import KeyPath, Problem, UserError, unknown
from hksd.files import expanded
from hksd.models.user import is_user
from hksd.schema import build, check, section_fields
from hksd.yaml import Document, Override, parse_yaml, read_yaml
from hksd_search.space import alternatives, ranges
from hksd_search.space.ranges import Draws, Range, grid_problems
from hksd_search.space.settings import SearchConfig

FOLDER = "hksd_search.spaces"  # the package of what comes with hksd: the folder spaces/ of the repository
FIXED = {
    "data": "all trials must see the same images",
    "teacher": "a search has one teacher",
    "seed": "all trials share one seed, so that they differ by their configuration alone",
    "train.epochs": "trials are compared at equal epochs",
}


@dataclass(frozen=True)
class Space:
    """A parsed and validated space.

    Attributes:
        name: name for runs and messages.
        source: file it came from.
        tree: the run configuration with ranges, as in the file, without the `search` section.
        ranges: every range by its key path.
        search: the `search` section.
        alternatives: the plain spaces of `terms.one_of` by name; empty where the space is plain itself.
        names: where parameters of a plain space stand in the file, for those that stand elsewhere.
    """

    name: str
    source: str
    tree: Mapping[str, Any]
    ranges: Mapping[KeyPath, Range]
    search: SearchConfig
    alternatives: Mapping[str, Space] = field(default_factory=dict)
    names: Mapping[KeyPath, KeyPath] = field(default_factory=dict)

    def draw(self, trial: Draws) -> RunConfig:
        """Draw a run configuration; parameters are named by their key path in the file."""
        if self.alternatives:
            return self.alternatives[trial.suggest_categorical(alternatives.PARAMETER, tuple(self.alternatives))].draw(
                trial
            )
        return from_tree(self._draw(RunConfig, self.tree, (), trial), self.source)

    def _draw(self, kind: Any, node: Mapping[str, Any], path: KeyPath, trial: Draws) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, inner in section_fields(kind).items():
            where = (*path, key)
            if key not in node or self._absent(where, node[key], trial):
                continue
            if where in self.ranges:
                if key not in self._dead(kind, node, path, result):
                    result[key] = self.ranges[where].draw(trial, self.parameter(where))
            elif isinstance(node[key], Mapping) and section_fields(inner):
                result[key] = self._draw(inner, node[key], where, trial)
            else:
                result[key] = node[key]
        return result

    def parameter(self, path: KeyPath) -> str:
        """Name of the parameter at a key path of a plain space, or of the block there."""
        return ".".join(map(str, self.names.get(path, path)))

    def off(self, path: KeyPath) -> float:
        """Probability that the block at a key path of a plain space is absent."""
        return max((self.ranges[p].off for p in self.ranges if p[:-1] == path), default=0.0)

    def _absent(self, path: KeyPath, node: Any, trial: Draws) -> bool:
        """Draw whether the block at `path` is absent; a float, so that its probability is exact."""
        if not isinstance(node, Mapping):
            return False
        off = self.off(path)
        return off > 0 and trial.suggest_float(self.parameter(path) + ranges.ABSENCE, 0.0, 1.0) < off

    def _dead(self, kind: Any, node: Mapping[str, Any], path: KeyPath, drawn: Mapping[str, Any]) -> frozenset[str]:
        section = section_type(kind)
        known = {
            key: self.ranges[(*path, key)].middle() if (*path, key) in self.ranges else value
            for key, value in node.items()
        }
        value, _ = check(section, {**known, **drawn})
        if value is None:
            return frozenset()
        if getattr(value, "weight", None) == 0:  # a term of weight 0 is no term
            return frozenset(section_fields(section)) - {"weight"}
        return frozenset(value.dead_knobs())

    def middle(self, replacements: Mapping[str, Any]) -> RunConfig:
        """The configuration in the middle of every range, with whole sections replaced; of the first alternative."""
        if self.alternatives:
            return next(iter(self.alternatives.values())).middle(replacements)
        tree = {**_resolve(self.tree, (), lambda path: self.ranges[path].middle(), self.ranges), **replacements}
        return from_tree(tree, self.source)

    def smallest_students(self) -> Iterator[dict[str, Any]]:
        """The `student` section for every combination of choices, with every range of numbers at its low end."""
        node = self.tree["student"]
        keys = [key for key in node if ("student", key) in self.ranges]
        options = [
            spread.values if spread.kind == "choice" else spread.values[:1]
            for spread in (self.ranges[("student", key)] for key in keys)
        ]
        for values in itertools.product(*options):
            yield {**node, **dict(zip(keys, values, strict=True))}

    def with_trials(self, trials: int | None) -> Space:
        """This space with another number of trials."""
        return self if trials is None else replace(self, search=replace(self.search, trials=trials))


def section_type(kind: Any) -> Any:
    """The dataclass of a section, with `| None` taken off."""
    return next((option for option in getattr(kind, "__args__", ()) if section_fields(option)), kind)


def find(name: str) -> Path:
    """Find a space or run configuration by path, or by name among the ones that come with hksd.

    Raises:
        UserError: there is none; lists the known names.
    """
    known = shipped()
    if name in known:  # names come first: a folder of that name may stand in the working directory
        return known[name]
    path = expanded(name, "the name or path of a space or configuration")
    try:
        if path.is_file():
            return path
        if path.exists() and not path.is_dir():
            raise UserError(f"{name}: a pipe or a device; give a plain file")
        if path.is_dir() and path.parts:
            raise UserError(f"{name}: a folder; give a .yaml file in it, or the name of a space ({', '.join(known)})")
    except OSError as error:  # a folder that may not be looked into
        raise UserError(f"{name}: {error.strerror}") from error
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise UserError(f"{name}: no such file")
    raise UserError(unknown("space or configuration", name, known) + ", or a path to a .yaml file")


def shipped() -> dict[str, Path]:
    """The spaces and configurations that come with hksd, by name."""
    folder = Path(str(importlib.resources.files(FOLDER)))
    files = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("paper/*.yaml"))]
    return {file.stem: file for file in files}


def load(name: str, overrides: Sequence[str | Override] = ()) -> Space:
    """Load a space by name or path, with ``a.b=value`` overrides.

    Raises:
        UserError: no such space, malformed override.
        ConfigError: every fault of the file, with line and key path.
    """
    found = document(name, overrides)
    space = parse(found, find(name).stem)
    if faults := path_faults(found.tree):
        raise found.error(faults)
    return space


def document(name: str, overrides: Sequence[str | Override] = ()) -> Document:
    """The file of a space or a run configuration as it stands, with overrides; see `find` for its name."""
    return read_yaml(find(name)).changed(overrides)


def own_students(space: Space | None, config: RunConfig) -> Iterator[StudentConfig]:
    """Students of one's own, one for each factory: those of a space with their smallest sizes, or that of a run."""
    if space is None:
        yield from (student for student in (config.student,) if is_user(student.model))
        return
    sections = {section["model"]: section for section in space.smallest_students()}
    yield from (build(StudentConfig, section, space.source) for name, section in sections.items() if is_user(name))


def loads(text: str, name: str, source: str) -> Space:
    """Parse a space from YAML text; see `load`."""
    return parse(parse_yaml(text, source), name)


def parse(document: Document, name: str) -> Space:
    """Validate a parsed file as a space.

    Raises:
        ConfigError: with every fault.
    """
    tree = {key: value for key, value in document.tree.items() if key != "search"}
    if "search" not in document.tree:
        raise document.error(
            [
                Problem(
                    ("search",),
                    "this section is required in a search space, for example "
                    "`search: {trials: 16}` (a single run: `hksd train`)",
                )
            ]
        )
    search, faults = check(SearchConfig, document.tree["search"])
    plain, problems = alternatives.split(tree)
    problems += [replace(fault, path=("search", *fault.path)) for fault in faults]
    spaces: dict[str, Space] = {}
    for alternative, one in plain.items():
        found: dict[KeyPath, Range] = {}
        faults = _faults(one, search, found)
        problems += [replace(fault, path=alternatives.placed(fault.path, tree, alternative)) for fault in faults]
        if search is not None:
            owned = {*found, *(path[:-1] for path in found)}
            names = {path: alternatives.placed(path, tree, alternative) for path in owned}
            moved = {path: place for path, place in names.items() if path != place}
            spaces[alternative] = Space(name, document.source, one, found, search, names=moved)
    problems += _unchangeable(search, spaces.values())
    if problems or search is None:
        raise document.error(list(dict.fromkeys(problems)))
    if "" in spaces:
        return spaces[""]
    together = {one.names.get(path, path): spread for one in spaces.values() for path, spread in one.ranges.items()}
    ordered = dict(sorted(together.items(), key=lambda item: list(tree).index(str(item[0][0]))))
    return Space(name, document.source, tree, ordered, search, alternatives=spaces)


def _faults(tree: Mapping[str, Any], search: SearchConfig | None, found: dict[KeyPath, Range]) -> list[Problem]:
    """Fill `found` with the ranges of a plain tree and return everything that is wrong with it."""
    problems = list(_collect(RunConfig, tree, (), found))
    problems += _misplaced(found)
    if "teacher" not in tree:
        message = "this section is required in a search space: the arms need a teacher too"
        problems.append(Problem(("teacher",), message))
    problems += _too_many_threads(tree, search) if search is not None else []
    if search is not None and search.sampler == "grid" and search.grid_points is None:
        problems += grid_problems(found)
    blamed = {problem.path for problem in problems}
    first = _resolve(tree, (), lambda path: found[path].values[0], found)
    _, faults = check(RunConfig, first)
    # What stands at or above a faulty range, or is checked per value below, is not said twice.
    problems += [
        fault
        for fault in faults
        if not any(_below(fault.path, path) for path in found)
        and not any(_below(fault.path, path) or (fault.path and _below(path, fault.path)) for path in blamed)
    ]
    for path, spread in found.items():
        for below, value in spread.samples():
            changed = _resolve(tree, (), lambda p, at=path, v=value: v if p == at else found[p].values[0], found)
            _, faults = check(RunConfig, changed)
            problems += [replace(fault, path=(*path, *below)) for fault in faults if _below(fault.path, path)]
    return problems


def _below(path: KeyPath, ancestor: KeyPath) -> bool:
    return path[: len(ancestor)] == ancestor


def _collect(kind: Any, node: Any, path: KeyPath, found: dict[KeyPath, Range]) -> Iterator[Problem]:
    """Fill `found` with the ranges below `node`; yield what is wrong with them."""
    fields = section_fields(kind)
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        if key not in fields or not isinstance(value, Mapping):
            continue  # unknown keys are found when the whole is validated
        where = (*path, key)
        if section_fields(fields[key]):
            yield from _collect(fields[key], value, where, found)
            continue
        spread, problems = ranges.parse(value, where)
        yield from problems
        if spread is not None:
            found[where] = spread


def _too_many_threads(tree: Mapping[str, Any], search: SearchConfig) -> Iterator[Problem]:
    """A trial with more threads than cores of its own would slow its neighbours down (measured: by more than half)."""
    train = tree.get("train")
    threads = train.get("threads", 1) if isinstance(train, Mapping) else 1
    if isinstance(threads, int) and search.resources.cpu < threads <= bounds.CORES:
        yield Problem(
            ("train", "threads"),
            f"{threads} threads, but a trial has search.resources.cpu = {search.resources.cpu}; make them equal",
        )


def _unchangeable(search: SearchConfig | None, spaces: Collection[Space]) -> Iterator[Problem]:
    """Population based training needs something to change, in every alternative."""
    if search is None or search.scheduler.pbt is None:
        return
    paths = [tuple(path.split(".")) for path in changes.knobs()]
    if not all(any(path in one.ranges for path in paths) for one in spaces):
        yield Problem(
            ("search", "scheduler", "pbt"),
            "changes schedule knobs, of which none has a range here; give one to train.lr, train.momentum, "
            "train.weight_decay or the weight of a term",
        )


def _misplaced(found: Mapping[KeyPath, Range]) -> Iterator[Problem]:
    for path, spread in found.items():
        for prefix, reason in FIXED.items():
            if _below(path, tuple(prefix.split("."))):
                yield Problem(path, f"a range is not possible here: {reason}")
        if spread.off and (len(path) != 3 or path[0] != "terms"):
            yield Problem((*path, "off"), "only a term can be switched off, by `off` in the range of one of its knobs")


def _resolve(node: Any, path: KeyPath, value: Any, found: Mapping[KeyPath, Range]) -> Any:
    """Copy `node` with every range replaced by ``value(path)``."""
    if path in found:
        return value(path)
    if isinstance(node, Mapping):
        return {key: _resolve(inner, (*path, key), value, found) for key, inner in node.items()}
    return node
