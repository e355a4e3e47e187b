"""The description of one distillation run: load, dump, hash.

The same schema with ranges in place of values is a search space (`hksd_search.space.space`); what a search exports as
``best.yaml`` is such a run configuration again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from hksd.bounds import LAST_SEED
from hksd.config import changes as changing
from hksd.config.changes import Change
from hksd.config.networks import StudentConfig, TeacherConfig
from hksd.config.train import TrainConfig
from hksd.data.settings import DataConfig
from hksd.errors import Problem, UserError
from hksd.files import expanded
from hksd.modes import MODES, DataFreeConfig, PruneConfig, RobustConfig
from hksd.schema import Section, check
from hksd.terms import TERMS, TermConfig
from hksd.yaml import Document, Override, read_yaml, to_yaml

RANGE_HINT = "; ranges are for search spaces (`hksd search`), not for a single run"


class Terms(Mapping[str, TermConfig]):
    """The loss terms of a run by name, in the order of the registry; immutable."""

    def __init__(self, terms: Mapping[str, TermConfig]):
        self._terms = {name: terms[name] for name in TERMS if name in terms}

    @classmethod
    def section_types(cls) -> dict[str, type[TermConfig]]:
        """Name -> configuration class of every registered term."""
        return {name: entry.config for name, entry in TERMS.items()}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate like a mapping with one optional, strictly typed section per registered term."""
        fields = {
            name: core_schema.typed_dict_field(handler.generate_schema(kind), required=False)
            for name, kind in cls.section_types().items()
        }
        sections = core_schema.typed_dict_schema(fields, extra_behavior="forbid")
        return core_schema.no_info_after_validator_function(cls, sections)

    def __getitem__(self, name: str) -> TermConfig:
        return self._terms[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._terms)

    def __len__(self) -> int:
        return len(self._terms)

    def __hash__(self) -> int:
        return hash(tuple(self._terms.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Terms) and self._terms == other._terms

    def __repr__(self) -> str:
        return f"Terms({self._terms!r})"

    def active(self) -> dict[str, TermConfig]:
        """The terms with a weight above 0."""
        return {name: term for name, term in self._terms.items() if term.weight > 0}

    @property
    def teacher_needs(self) -> frozenset[str]:
        """What the active terms read of the teacher's taps; empty for a run without a teacher."""
        return frozenset[str]().union(*(term.teacher_needs for term in self.active().values()))


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """One distillation run."""

    data: Annotated[DataConfig, Field(description="images")]
    teacher: Annotated[TeacherConfig | None, Field(description="not needed when no term asks for a teacher")] = None
    student: Annotated[StudentConfig, Field(description="network to train")]
    terms: Annotated[Terms, Field(description="loss terms by name")]
    train: Annotated[TrainConfig, Field(description="optimiser and schedule")]
    robust: Annotated[RobustConfig | None, Field(description="mode: train on attacked images")] = None
    prune: Annotated[PruneConfig | None, Field(description="mode: make weights zero while training")] = None
    data_free: Annotated[DataFreeConfig | None, Field(description="mode: train on generated images")] = None
    changes: Annotated[tuple[Change, ...], Field(description="new values of schedule knobs on the way")] = ()
    seed: Annotated[int, Field(ge=0, le=LAST_SEED, description="initial weights and order of images")] = 0

    def at(self, epoch: int) -> RunConfig:
        """What this run is like after `epoch` finished epochs: with the changes up to there, and none to come."""
        new = changing.settled(self.changes, epoch)
        terms = {name: dataclasses.replace(self.terms[name], weight=value) for name, value in new["terms"].items()}
        train: TrainConfig = dataclasses.replace(self.train, **new["train"])
        return dataclasses.replace(self, train=train, terms=Terms({**self.terms, **terms}), changes=())

    def views(self) -> int:
        """Number V of views of every training image: epoch e (from 0) shows view e mod V."""
        if not (self.data.crop or self.data.flip or (self.data.streaming and self.data.crop_scale)):
            return 1  # nothing changes from epoch to epoch
        return min(self.train.views or self.train.epochs, self.train.epochs)

    def __post_init__(self) -> None:
        active = self.terms.active()
        wanting = [name for name, term in active.items() if term.teacher_needs]
        if wanting and self.teacher is None:
            raise ValueError(f"a teacher section is required: {', '.join(wanting)} need(s) one")
        if self.data_free is not None:
            needs = {name: sorted(term.data_needs()) for name, term in active.items() if term.data_needs()}
            if needs:
                wants = "; ".join(f"terms.{name} needs {' and '.join(what)}" for name, what in needs.items())
                raise ValueError(
                    f"data_free trains on generated images, which have no labels and do not come again, but {wants}; "
                    "take these terms away (or what in them learns from labels)"
                )
            if not wanting:
                raise ValueError("data_free needs a term that learns from the teacher, such as kd")
        for name, term in active.items():
            missing = sorted(term.companions() - active.keys())
            if missing:
                raise ValueError(
                    f"terms.{name} as it is set works on what terms.{missing[0]} makes: give terms.{missing[0]} a "
                    f"weight above 0, or change terms.{name}"
                )
        if not any(term.tells_classes() for term in active.values()):
            raise ValueError(
                "no term tells the student the classes: give ce, kd, logits or another term that does "
                "(see `hksd methods`) a weight above 0, or adversarial with a category_weight above 0"
            )
        changing.check(self.changes, self.train.epochs, list(active))
        for place, change in enumerate(self.changes):
            try:
                self.at(change.epoch)
            except ValueError as error:
                raise ValueError(f"changes[{place}]: with these values the run does not work: {error}") from error


def from_tree(tree: Any, source: str = "configuration") -> RunConfig:
    """Build a run configuration from nested mappings.

    Raises:
        ConfigError: with every fault of the tree.
    """
    return from_document(Document(tree, source, {}))


def from_document(document: Document) -> RunConfig:
    """Build a run configuration from a parsed file; see `from_tree`."""
    if isinstance(document.tree, dict) and "search" in document.tree:
        problem = Problem(("search",), "this is a search space; run it with `hksd search`, or take a run configuration")
        raise document.error([problem])
    config, problems = check(RunConfig, document.tree, hint=RANGE_HINT)
    if config is None:
        raise document.error(problems)
    return config


def load(path: str | Path, overrides: Sequence[str | Override] = ()) -> RunConfig:
    """Load a run configuration, with ``a.b=value`` overrides.

    Raises:
        UserError: the file cannot be read, or an override is malformed.
        ConfigError: with every fault, its line and key path.
    """
    document = read_yaml(Path(path)).changed(overrides)
    config = from_document(document)
    if faults := path_faults(document.tree):
        raise document.error(faults)
    return config


PATHS = ("data", "root"), ("data", "classes"), ("teacher", "checkpoint"), ("teacher", "classes")


def path_faults(tree: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the form of the paths in a valid tree.

    It is asked where a user gives a file, and not of every configuration: the homes of one machine are not those of
    another, where the same configuration may be read in a report.
    """
    faults = []
    for section, key in PATHS:
        if isinstance(path := (tree.get(section) or {}).get(key), str):
            try:
                expanded(path, "")
            except UserError as error:
                faults.append(Problem((section, key), str(error).removeprefix(": ")))
    return faults


def dump(config: Any) -> Any:
    """Turn a configuration (or any part of it) into plain mappings, lists and values, losslessly."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: dump(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {name: dump(value) for name, value in config.items()}
    return [dump(value) for value in config] if isinstance(config, tuple) else config


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings as one flat mapping with key paths: ``{"terms": {"kd": 1}}`` -> ``{"terms.kd": 1}``."""
    if not isinstance(tree, Mapping):
        return {path: tree} if path else {}
    parts = [flatten(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items()]
    return {key: value for part in parts for key, value in part.items()}


def dump_yaml(config: RunConfig) -> str:
    """Write a run configuration as YAML that `load` reads back to an equal object."""
    return to_yaml(dump(config))


def canonical(config: Any) -> Any:
    """Like `dump`, without what cannot influence the result: dead knobs, and terms of weight 0."""
    if isinstance(config, Terms):
        config = config.active()
    if isinstance(config, Mapping):
        return {name: canonical(value) for name, value in config.items()}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        dead = config.dead_knobs() if isinstance(config, Section) else frozenset()
        live = [f.name for f in dataclasses.fields(config) if f.name not in dead]
        tree = {name: canonical(getattr(config, name)) for name in live}
        if isinstance(config, RunConfig):
            needs = config.terms.teacher_needs
            if not needs:
                tree.pop("teacher")
            elif "squeezed" not in needs:
                tree["teacher"].pop("attention")
            tree = {name: value for name, value in tree.items() if name not in (*MODES, "changes") or value}
        return tree
    return [canonical(value) for value in config] if isinstance(config, tuple) else config


def content_hash(content: Any) -> str:
    """Hash plain mappings, lists and values (16 hexadecimal digits); equal content, equal hash."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def config_hash(config: RunConfig) -> str:
    """Hash of `canonical(config)`: two configurations that differ only in dead knobs have the same hash."""
    return content_hash(canonical(config))


def history_hash(config: RunConfig, epoch: int) -> str:
    """Hash of what makes the first `epoch` epochs of a run: its `config_hash` without the changes that come later."""
    before = tuple(change for change in config.changes if change.epoch < epoch)
    return config_hash(dataclasses.replace(config, changes=before))
