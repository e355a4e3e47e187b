"""The arms: published ways of training, which every search is measured against at equal epochs.

Fixed, each arm is trained once, as published, with the largest student within the limits and the middle of every other
range: a search has to beat a student that is at least as big as any it may draw. Tuned, each arm also draws: from a
space of its own, with the student and the training of the search and with its own weights a decade around what was
published, and with as many trials as the search itself. It is then the search's equal in everything but its terms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hksd.config.networks import StudentConfig
from hksd.config.run import RunConfig, dump
from hksd.yaml import Document, read_yaml
from hksd_search.space import space as spaces
from hksd_search.space.ranges import Draws
from hksd_search.space.settings import SearchConfig
from hksd_search.space.space import Space

NO_DISTILLATION, STANDARD_KD, ATTENTION_TRANSFER, PAPER_PRESET = (
    "no distillation",
    "standard KD",
    "attention transfer",
    "paper preset",
)
PUBLISHED_PIXELS = 32  # height and width of the images for which the weight of attention transfer was published
PRESET = "hksd"  # the file with the terms of the paper's method (spaces/paper)
PATIENCE = 200  # refused draws in a row after which a space counts as exhausted

# Weights and temperature of standard KD, and the weight of attention transfer, on CIFAR: CONFIRMED in RepDistiller and
# mdistiller.
ARMS: dict[str, dict[str, Any]] = {
    NO_DISTILLATION: {"ce": {"weight": 1.0}},
    STANDARD_KD: {"ce": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}},
    ATTENTION_TRANSFER: {"ce": {"weight": 1.0}, "attention_transfer": {"weight": 1000.0, "p": 2.0}},
    PAPER_PRESET: {},  # read from its file
}
TUNED = {"kd.temperature": {"uniform": [1, 8]}}  # knobs that a tuned arm draws beside its weights


def published(space: Space, image_size: int) -> dict[str, dict[str, Any]]:
    """The terms of every arm by name, for runs of this space.

    Attention transfer is a mean over the positions of a map, whose energies sum to one: on images smaller than those
    for which its weight was published, the same weight would mean more, and is lowered with their area. The warm-up of
    the preset is as long a part of the run as in its file. Where the space trains the estimators of its teacher
    together with it, the preset takes their form from the space: a search has one teacher.

    Args:
        space: the space.
        image_size: height and width of its images, in pixels.
    """
    preset = read_yaml(spaces.find(PRESET)).tree
    terms = {name: dict(term) for name, term in preset["terms"].items()}
    share = space.tree["train"]["epochs"] / preset["train"]["epochs"]
    terms["adversarial"]["warmup_epochs"] = round(terms["adversarial"]["warmup_epochs"] * share, 2)
    middle = space.middle({})
    if middle.teacher is not None and middle.teacher.attention.mode == "joint" and "squeeze" in middle.terms:
        preset_squeeze = terms["squeeze"]
        terms["squeeze"] = dump(middle.terms["squeeze"]) | {k: preset_squeeze[k] for k in ("weight", "depth")}
    transfer = {name: dict(term) for name, term in ARMS[ATTENTION_TRANSFER].items()}
    transfer["attention_transfer"]["weight"] *= min(1.0, (image_size / PUBLISHED_PIXELS) ** 2)
    return {**ARMS, ATTENTION_TRANSFER: transfer, PAPER_PRESET: terms}


def arms(space: Space, student: StudentConfig, image_size: int) -> dict[str, RunConfig]:
    """The published runs of the arms by name, all with `student`; none where the space wants none."""
    if space.search.arms == "none":
        return {}
    student_section = dump(student)
    return {
        name: space.middle({"student": student_section, "terms": terms})
        for name, terms in published(space, image_size).items()
    }


def tuned(space: Space, terms: Mapping[str, Mapping[str, Any]]) -> Space:
    """The space that a tuned arm draws from.

    Its weights (but that of `ce`) and the temperature have the range that the space gives them, else a decade on
    both sides of what was published, and 1 to 8.

    Args:
        space: the space of the search.
        terms: the terms of the arm, as published.
    """
    plain = next(iter(space.alternatives.values())) if space.alternatives else space

    def spread(term: str, knob: str, value: Any) -> Any:
        if (given := plain.ranges.get(("terms", term, knob))) is not None:
            step = {"step": given.step} if given.step else {}
            return {given.kind: list(given.values), **step}
        if f"{term}.{knob}" in TUNED:
            return TUNED[f"{term}.{knob}"]
        return {"log_uniform": [value / 10, value * 10]} if knob == "weight" and term != "ce" else value

    ranged = {term: {knob: spread(term, knob, v) for knob, v in knobs.items()} for term, knobs in terms.items()}
    ranged["ce"] = dict(terms["ce"])
    tree = {**plain.tree, "terms": ranged, "search": dump(space.search)}
    return spaces.parse(Document(tree, space.source, {}), space.name)


def prefix(arm: str | None) -> str:
    """What the names of the parameters of a competitor begin with."""
    return "" if arm is None else f"{arm}: "


@dataclass(frozen=True)
class Named:
    """Draws whose parameters carry the name of an arm, so that the sampler learns for each competitor apart."""

    # ruff: noqa: D102 - see `Draws`
    draws: Draws
    arm: str

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self.draws.suggest_categorical(prefix(self.arm) + name, choices)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self.draws.suggest_float(prefix(self.arm) + name, low, high, step=step, log=log)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return self.draws.suggest_int(prefix(self.arm) + name, low, high, step=step)


@dataclass(frozen=True)
class Turn:
    """Who gets the next trial.

    Attributes:
        arm: name of an arm, or None for the search itself.
        config: what to run, when it is the published run of an arm; else it is drawn.
    """

    arm: str | None
    config: RunConfig | None = None


class Competitors:
    """The search and its arms: whose turn it is, and what they draw from.

    Args:
        space: the space.
        student: the student of the published runs.
        image_size: height and width of the images, in pixels.
    """

    def __init__(self, space: Space, student: StudentConfig, image_size: int):
        self.space, self.published = space, arms(space, student, image_size)
        self.spaces: dict[str | None, Space] = {None: space}
        if space.search.arms == "tuned":
            terms = published(space, image_size)
            self.spaces |= {name: tuned(space, terms[name]) for name in self.published}
        self.taken: Counter[str | None] = Counter()  # trials that were, or are being, trained
        self.given: set[str | None] = set()  # arms whose published run was handed out
        self._refused: Counter[str | None] = Counter()  # draws in a row
        self.walked: Mapping[str | None, Callable[[], bool]] = {}  # whether a grid has ended, of those who walk one

    def share(self, arm: str | None, settings: SearchConfig) -> int:
        """Number of trials of a competitor."""
        count = len(self.published)
        if settings.arms != "tuned":
            return settings.trials if arm is None else 1
        return settings.trials // (count + 1) + (settings.trials % (count + 1) if arm is None else 0)

    def turn(self) -> Turn | None:
        """Whose turn it is: published runs come first, then the competitor with the smallest part of its share.

        Returns:
            None when every competitor has had its share, or finds nothing new in its space.
        """
        for name, config in self.published.items():
            if name not in self.given:
                return Turn(name, config)
        settings = self.space.search
        open_ = [arm for arm in self.spaces if not self.spent(arm) and self.taken[arm] < self.share(arm, settings)]
        return Turn(min(open_, key=lambda arm: self.taken[arm])) if open_ else None

    def draw(self, arm: str | None, trial: Draws) -> RunConfig:
        """Draw for a competitor."""
        return self.spaces[arm].draw(trial if arm is None else Named(trial, arm))

    def took(self, arm: str | None) -> None:
        """A run of a competitor was handed out."""
        self.taken[arm] += 1
        self._refused[arm] = 0

    def refused(self, arm: str | None) -> None:
        """A draw of a competitor was refused."""
        self._refused[arm] += 1

    def spent(self, arm: str | None) -> bool:
        """Whether the space of a competitor counts as exhausted; a grid knows its end, however many are refused."""
        if (walked := self.walked.get(arm)) is not None:
            return walked()
        return self._refused[arm] >= PATIENCE
