"""What commands say and do about the teacher's knowledge, before anything is trained with it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hksd.config.run import RunConfig
from hksd.data import DataSet
from hksd.data.augment import batches_of
from hksd.device import precision
from hksd.device.device import isolated, resolve_device
from hksd.teacher import prepare as teachers
from hksd.teacher.estimators import Progress
from hksd.teacher.knowledge import Cost, Stored, cost
from hksd.teacher.plan import knowledge_of
from hksd.teacher.teacher import Teacher
from hksd_search.console import Display


def with_teacher(published: Iterable[RunConfig], middle: RunConfig) -> list[RunConfig]:
    """The runs for which a search makes teachers, its own last; a published run of an arm may want own estimators."""
    return [*(run for run in published if run.terms.teacher_needs), middle]


@dataclass(frozen=True)
class TeacherFacts:
    """What came of the teacher stage of a search: all that is known of the teacher, and no network.

    Attributes:
        accuracy: see `hksd.teacher.teacher.Teacher`, as the five that follow.
        attention_accuracy: of the estimators.
        key: hash of what made it.
        cached: nothing was trained.
        familiar: its accuracy may be that of images that it knows.
        remarks: what is to be told, on all teachers that were made.
        seconds: that all took; 0 where they were cached.
        node: name of the machine that it was made on.
        knowledge: facts of the knowledge that trials take from it (`Teaching.facts`).
        told: the same in words.
    """

    accuracy: float
    attention_accuracy: tuple[float, ...]
    key: str
    cached: bool
    familiar: bool
    remarks: tuple[str, ...]
    seconds: float
    node: str
    knowledge: Mapping[str, Any]
    told: str


def make_teacher(runs: Sequence[RunConfig], data: DataSet, cache_dir: Path, on_progress: Progress) -> TeacherFacts:
    """Make the teachers of runs, and see what trials take from the last one.

    Args:
        runs: for which teachers are made; the last one is the run in the middle of the space.
        data: their images.
        cache_dir: folder of cached teachers.
        on_progress: called after every epoch of training.
    """
    begun, trained = time.monotonic(), False

    def progress(what: str, epoch: int, epochs: int, accuracy: float) -> None:
        nonlocal trained
        trained = True
        on_progress(what, epoch, epochs, accuracy)

    made = [teachers.prepare(run, data, cache_dir=cache_dir, on_progress=progress, quiet=True) for run in runs]
    seconds, last = time.monotonic() - begun if trained else 0.0, made[-1]
    teaching = Teaching(runs[-1], data, last, cache_dir)
    return TeacherFacts(
        accuracy=last.accuracy,
        attention_accuracy=last.attention_accuracy,
        key=last.key,
        cached=not trained,
        familiar=last.familiar,
        remarks=tuple(dict.fromkeys(remark for one in made for remark in one.remarks)),
        seconds=seconds,
        node=socket.gethostname(),
        knowledge=teaching.facts(),
        told=str(teaching),
    )


class Teaching:
    """The knowledge that a run, or the trials of a search, will take from a teacher.

    Args:
        config: the run, or the one in the middle of the space.
        data: its images.
        teacher: its teacher.
        cache_dir: folder of cached teachers.
    """

    def __init__(self, config: RunConfig, data: DataSet, teacher: Teacher, cache_dir: Path):
        device = resolve_device(config.train.device)
        self.precision = precision.resolve(config.train.precision, device)
        self.source = knowledge_of(
            config, data, teacher.to(device), self.precision, folder=cache_dir / teacher.key, shared=config
        )
        self.config, self.batches = config, batches_of(data.train, data, config.data, device, augment=True)
        self.cost: Cost | None = None
        if isinstance(self.source, Stored):
            with self._threads():
                self.cost = cost(self.source, self.batches)

    def _threads(self) -> Any:
        config = self.config
        return isolated(config.seed, config.train.threads, resolve_device(config.train.device))

    def __str__(self) -> str:
        known = f"the teacher works in every step: {'; '.join(self.source.why)}"
        if self.cost is not None:
            known = f"knowledge of the teacher: {self.cost}"
        return f"{known}\narithmetic: {self.precision.reason}"

    def facts(self) -> dict[str, Any]:
        """The same for machines."""
        kind = "live" if self.cost is None else "cached"
        found: dict[str, Any] = {"knowledge": kind, "why": list(self.source.why), "precision": self.precision.reason}
        return found | (asdict(self.cost) if self.cost else {})

    def build_all(self) -> None:
        """Build every view that is missing, and say nothing."""
        if isinstance(self.source, Stored):
            with self._threads():
                for view in range(self.source.count):
                    self.source.get(view, self.batches)

    def build(self, display: Display, count: int | None) -> int:
        """Build the first `count` views (default all) that are missing; returns how many views there are now."""
        if not isinstance(self.source, Stored):
            return 0
        count = self.source.count if count is None else min(count, self.source.count)
        with self._threads():
            for view in range(count):
                self.source.get(view, self.batches)
                display.step("computing the teacher's knowledge", view + 1, count, unit="view")
        return count if self.source.keep else 0

    def missing_views(self) -> int:
        """Number of views that trials would have to compute; 0 where the teacher works in every step."""
        source = self.source
        if not isinstance(source, Stored):
            return 0
        store, fields = source.store, list(source.fields)
        return sum(store is None or len(store.read(view, fields)) < len(fields) for view in range(source.count))
