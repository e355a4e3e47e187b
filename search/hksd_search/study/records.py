"""What is known of a trial: the assignment that it was given, and its record in the study."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hksd.config.run import RunConfig, from_tree
from hksd.errors import UserError
from hksd.files import write_atomically
from hksd.modes import MODES
from hksd_search.space.settings import REPORTED

if TYPE_CHECKING:  # Optuna is imported by what needs a study: a single run knows records too
    from optuna.trial import FrozenTrial

    from hksd_search.study.storage import StudyStorage

STRIKES = 3  # tries after which a trial that its machine let down has failed
STUDY_FILE, STUDY_NAME = "study.journal", "search"
ACCURACY = "accuracy/"  # with the epoch: the user attribute of one epoch, in studies of several objectives
Status = Literal[
    "complete", "pruned", "failed", "rejected", "duplicate", "running", "interrupted", "waiting", "imported"
]


@dataclass(frozen=True)
class Fork:
    """Where a trial of population based training goes on from (see `hksd_search.strategy.population`).

    Attributes:
        parent: number of the trial whose first epochs are its own too.
        epoch: how many.
    """

    parent: int
    epoch: int

    def __str__(self) -> str:
        return f"fork of {self.parent} at epoch {self.epoch}"


@dataclass(frozen=True)
class Assignment:
    """A trial to train.

    Attributes:
        number: number of the trial in the study.
        config: what to run.
        arm: name of the arm, or None for a drawn trial.
        costs: costs of its student by name (`hksd_search.space.settings.REPORTED`).
        resumed: it was interrupted before and continues.
        fork: where it goes on from, or None for a trial with a beginning of its own.
        inherited: validation accuracy after each epoch that it shares with its parent.
    """

    number: int
    config: RunConfig
    arm: str | None
    costs: Mapping[str, float]
    resumed: bool = False
    fork: Fork | None = None
    inherited: Mapping[int, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Short name for people: ``014 resnet8 w0.50 d2 kd+squeeze``."""
        return label(self.number, self.config)


@dataclass(frozen=True)
class Record:
    """What the study knows of a trial.

    Attributes:
        number: number of the trial.
        status: how it stands.
        arm: name of the arm, or None.
        config: its run configuration as nested mappings; None when the draw did not get that far.
        costs: costs of its student by name (`space.settings.REPORTED`); empty when the draw did not get that far.
        epoch: last epoch reported, 0 for none.
        val_accuracy: validation accuracy of that epoch.
        seconds: training time so far; of a fork, without that of the epochs that it shares with its parent.
        reason: why it failed or was refused, or what replaced it.
        accuracies: validation accuracy after each epoch reported, or shared with a parent.
        fork: where it went on from, or None for a trial with a beginning of its own.
        nodes: names of the machines that it has trained on, in order.
    """

    number: int
    status: Status
    arm: str | None
    config: dict[str, Any] | None
    costs: Mapping[str, float]
    epoch: int
    val_accuracy: float | None
    seconds: float
    reason: str | None
    accuracies: Mapping[int, float] = field(default_factory=dict)
    fork: Fork | None = None
    nodes: tuple[str, ...] = ()

    @property
    def params(self) -> int | None:
        """Parameters of its student."""
        return int(self.costs["params"]) if self.costs else None

    @property
    def mflops(self) -> float | None:
        """MFLOPs of its student for one image, 2 x MACs."""
        return self.costs.get("mflops")

    def flat(self) -> dict[str, Any]:
        """All fields by name but the accuracies, each cost, and each half of a fork, as a field of its own."""
        fields: dict[str, Any] = {}
        for name, value in self.__dict__.items():
            if name == "accuracies":
                continue
            if name == "costs":
                fields |= {cost: value.get(cost) for cost in REPORTED}
            elif name == "fork":
                fields |= {"parent": value.parent if value else None, "forked_at": value.epoch if value else None}
            elif name == "nodes":
                fields[name] = ", ".join(value)
            else:
                fields[name] = value
        return fields

    @property
    def label(self) -> str:
        """Short name for people; see `Assignment.label`."""
        return label(self.number, from_tree(self.config)) if self.config else f"{self.number:03d}"


def label(number: int, config: RunConfig) -> str:
    """Short name of a trial for people: number, student, depth, terms, modes."""
    terms = config.terms.active()
    depth = f" d{terms['squeeze'].depth}" if "squeeze" in terms else ""  # type: ignore[attr-defined]
    short = "+".join("adv" if name == "adversarial" else name for name in terms)
    modes = "".join(f" {mode}" for mode in MODES if getattr(config, mode) is not None)
    return f"{number:03d} {config.student.model} w{config.student.width:.2f}{depth} {short}{modes}"


def trial_folder(search: Path, number: int) -> Path:
    """Folder of trial `number` below the folder of a search."""
    return search / "trials" / f"{number:03d}"


def open_storage(folder: Path) -> StudyStorage:
    """Open the study's journal in the folder of a search; what others write later is not seen.

    Raises:
        UserError: it cannot be read or written, or is no journal.
    """
    from hksd_search.study.storage import Journal, StudyStorage

    path = folder / STUDY_FILE
    try:
        return StudyStorage(Journal(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, AssertionError) as error:
        raise UserError(f"{path}: damaged, or no journal of a study") from error


def mend_journal(folder: Path) -> None:
    """Take off the part of a line that a process left when it died while it wrote; call it before writing."""
    path = folder / STUDY_FILE
    if not path.exists():
        return
    content = path.read_bytes()
    whole, _, tail = content.rpartition(b"\n")
    if not tail:
        return
    try:
        json.loads(tail)
        mended = content + b"\n"
    except ValueError:
        mended = whole + b"\n" if whole else b""
    write_atomically(path, mended)


def _accuracies(trial: FrozenTrial) -> dict[int, float]:
    """Accuracy after each epoch; Optuna keeps such values itself where there is one objective only."""
    kept = {int(key[len(ACCURACY) :]): value for key, value in trial.user_attrs.items() if key.startswith(ACCURACY)}
    return kept or dict(trial.intermediate_values)


def record_of(trial: FrozenTrial) -> Record:
    """Read a trial of the study."""
    facts, progress = trial.user_attrs.get("facts", {}), trial.user_attrs.get("progress", {})
    states: dict[str, Status] = {"RUNNING": "running", "COMPLETE": "complete", "FAIL": "failed"}
    status = trial.user_attrs.get("status", states.get(trial.state.name, "interrupted"))
    return Record(
        number=trial.number,
        status=status,
        arm=facts.get("arm"),
        config=facts.get("config"),
        costs=facts.get("costs", {}),
        epoch=progress.get("epoch", 0),
        val_accuracy=progress.get("val_accuracy"),
        seconds=progress.get("seconds", 0.0),
        reason=trial.user_attrs.get("reason") if status in ("failed", "rejected", "duplicate", "pruned") else None,
        accuracies={} if status == "duplicate" else _accuracies(trial),  # a duplicate shows its twin's to the sampler
        fork=Fork(facts["parent"], facts["forked_at"]) if facts.get("origin") == "fork" else None,
        nodes=tuple(trial.user_attrs.get("nodes", ())),
    )


def read_records(folder: Path) -> list[Record]:
    """Read all trials of the search in `folder`.

    Raises:
        UserError: there is no search.
    """
    if not (folder / STUDY_FILE).exists():
        raise UserError(f"{folder}: no search here (no {STUDY_FILE})")
    try:
        storage = open_storage(folder)
        study = storage.get_study_id_from_name(STUDY_NAME)
        return [record_of(trial) for trial in storage.get_all_trials(study, deepcopy=False)]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, AssertionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder / STUDY_FILE}: damaged, or no journal of a study") from error
