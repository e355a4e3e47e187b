"""Who takes part in a confirmation: the best students of a search and its arms, and the runs of each over new seeds."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hksd.bounds import LAST_SEED
from hksd.config.run import RunConfig, config_hash, from_tree
from hksd.errors import UserError
from hksd.fit import RESULT_FILE
from hksd_search.study.reading import SearchFolder
from hksd_search.study.records import Record

FAILED_FILE = "failed.json"  # in the folder of a run that would fail again
FIRST_SEED = 1000  # after the search's own seed, with which the students were selected: it is never used again


@dataclass(frozen=True)
class Contender:
    """A trial of the search whose configuration is trained again.

    Attributes:
        record: the trial.
        config: its configuration, with the seed of the search.
    """

    record: Record
    config: RunConfig

    @property
    def name(self) -> str:
        """Name for people: the arm, or the number of the trial."""
        return self.record.arm or f"trial {self.record.number}"

    @property
    def who(self) -> str:
        """Name of its folder; with the number of the trial, since an arm may have several."""
        kind = f"arm-{re.sub('[^a-z0-9]+', '-', self.record.arm.lower())}" if self.record.arm else "trial"
        return f"{kind}-{self.record.number:03d}"

    @property
    def model(self) -> str:
        """Its network in words."""
        return f"{self.config.student.model} w{self.config.student.width:g}"


@dataclass(frozen=True)
class Run:
    """A contender with one of the new seeds.

    Attributes:
        contender: what is trained.
        config: its configuration with the new seed.
        folder: where it is trained.
    """

    contender: Contender
    config: RunConfig
    folder: Path

    @property
    def name(self) -> str:
        """Name for people."""
        return f"{self.contender.name}, seed {self.config.seed}"

    @property
    def key(self) -> str:
        """Name among all runs of the confirmation."""
        return f"{self.contender.who}/{self.folder.name}"

    def result(self, fingerprint: str) -> dict[str, Any] | None:
        """Its `result.json`, when it has run to its end with this configuration on data of this fingerprint."""
        try:
            found: Any = json.loads((self.folder / RESULT_FILE).read_text())
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict):
            return None
        same = found.get("config_hash") == config_hash(self.config) and found.get("data_fingerprint") == fingerprint
        return found if same else None

    def failure(self) -> str | None:
        """Why it failed, when it would fail again: its loss was not finite."""
        try:
            found: Any = json.loads((self.folder / FAILED_FILE).read_text())
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict):
            return None
        return found.get("reason") if found.get("config_hash") == config_hash(self.config) else None


def new_seeds(seed: int, count: int) -> list[int]:
    """The first `count` seeds of a confirmation of a search with that seed; more of them begin with fewer of them."""
    return [(seed + FIRST_SEED + k) % (LAST_SEED + 1) for k in range(count)]


def runs_of(contender: Contender, seeds: Sequence[int], folder: Path) -> list[Run]:
    """The runs of a contender, below the folder of the confirmation."""
    return [
        Run(contender, dataclasses.replace(contender.config, seed=seed), folder / contender.who / f"seed-{seed}")
        for seed in seeds
    ]


def students(search: SearchFolder, top: int, trials: Sequence[int] | None = None) -> list[Contender]:
    """The students to confirm: the drawn trials named by number, or the best `top` of them.

    The best are those of the search's own ranking; where it has a front, those of the front highest in accuracy.

    Raises:
        UserError: no trial has run to its end, or one that is named has not, or is an arm.
    """
    if trials:
        return [_contender(_named(search, number)) for number in dict.fromkeys(trials)]
    drawn = dataclasses.replace(search, records=[record for record in search.records if record.arm is None])
    if drawn.best is None:
        raise UserError(f"{search.name}: no drawn trial has run to the end yet, so there is nothing to confirm")
    if search.facts.get("minimize") and search.facts.get("max_drop") is None:
        return [_contender(record) for record in drawn.front()[:top]]
    chosen: list[Record] = []
    while len(chosen) < top and drawn.best is not None:
        chosen.append(drawn.best)
        drawn = dataclasses.replace(drawn, records=[record for record in drawn.records if record not in chosen])
    return [_contender(record) for record in chosen]


def arms(search: SearchFolder) -> list[Contender]:
    """The arms that have run to their end; of an arm with several trials, the best one."""
    found = [search.arm(name) for name in search.arm_names()]
    return [_contender(record) for record in found if record is not None and record.status == "complete"]


def unfinished_arms(search: SearchFolder) -> list[str]:
    """Names of the arms of which no trial has run to its end."""
    ended = {contender.record.arm for contender in arms(search)}
    return [name for name in search.arm_names() if name not in ended]


def _named(search: SearchFolder, number: int) -> Record:
    record = next((record for record in search.records if record.number == number), None)
    if record is None:
        raise UserError(f"--trials {number}: {search.name} has no trial {number} (0 to {len(search.records) - 1})")
    if record.arm:
        raise UserError(f'--trials {number}: trial {number} is the arm "{record.arm}"; arms are confirmed anyway')
    if record.status != "complete":
        raise UserError(f"--trials {number}: trial {number} is {record.status}; only complete trials can be confirmed")
    return record


def _contender(record: Record) -> Contender:
    assert record.config is not None, "a complete trial has a configuration"
    return Contender(record, from_tree(record.config))
