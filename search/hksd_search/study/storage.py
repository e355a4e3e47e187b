"""The storage of a study that one process writes: an Optuna journal whose cost per trial does not grow.

Three things keep it so. What belongs together is written together, in one append, and never read back. Trials that
wait are known without a look at all trials. And the sampler sees at most `SEEN` trials that have ended (up to a quarter
more in between), since its time grows with each that it sees: TPE takes 12 ms a draw at 100 trials, 155 ms at 5,000.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hksd.files import FULL
from hksd_search.study import pareto

RESERVE = 2**20  # bytes of the disk that are kept for the end of a search
GONE = "it was deleted or moved, or its disk was taken away, while the search ran"
SEEN, BEST = 500, 100  # trials that the sampler sees, and how many of them are the best; TPE models the best 25 apart


class Journal(BaseJournalBackend):  # type: ignore[misc]
    """A journal file of one writer: read once, and appended to, record by record or many at once.

    A file that cannot be written is told in `trouble`, and no exception. On a full disk what was kept in `reserve` is
    then used up. When that is gone too, or the file itself (deleted, moved, its disk taken away), it stays as it is, at
    the end of a record, and nothing is written any more (`frozen`).
    """

    def __init__(self, path: Path):
        self._path, self._file = path, JournalFileBackend(str(path))
        self.trouble: str | None = None
        self.frozen = False
        self._opened = False
        self._unread: list[dict[str, Any]] = []  # written since the last look: nobody else writes, so all that is new
        self._held: list[dict[str, Any]] | None = None

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """The whole file at first, then what was written since the last call."""
        if not self._opened:
            self._opened = True
            return list(self._file.read_logs(log_number_from))
        unread, self._unread = self._unread, []
        return unread

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records to the file, or hold them back."""
        if self._held is None:
            self._write(logs)
        else:
            self._held += logs
        self._unread += json.loads(json.dumps(logs))  # as they will be read; and later changes do not reach them

    @contextmanager
    def together(self) -> Iterator[None]:
        """Hold back what is written inside and append it at the end, also after an exception."""
        if self._held is not None:
            yield
            return
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            if held:
                self._write(held)

    def reserve(self) -> None:
        """Keep some of the disk for the end.

        Raises:
            OSError: it is full already.
        """
        with self._reserved.open("wb") as file:
            file.write(bytes(RESERVE))
            file.flush()
            os.fsync(file.fileno())

    def release(self) -> None:
        """Give back what was kept, where the disk allows that."""
        with suppress(OSError):
            self._reserved.unlink(missing_ok=True)

    @property
    def there(self) -> bool:
        """Whether the file is where it was."""
        return self._path.exists()

    @property
    def _reserved(self) -> Path:
        return self._path.with_suffix(".reserve")

    def _write(self, logs: list[dict[str, Any]]) -> None:
        """Append records, all or none of them."""
        if self.frozen:
            return
        try:
            size = self._path.stat().st_size  # the backend would begin a new file in the place of one that is gone
            for _ in range(2):  # the second time with the reserve
                try:
                    self._file.append_logs(logs)
                    return
                except OSError as error:
                    self.trouble = (
                        f"{'the disk is full: ' if error.errno in FULL else ''}{self._path}: {error.strerror}"
                    )
                    os.truncate(self._path, size)
                    self.release()
        except OSError as error:
            self.trouble = f"{self._path}: {error.strerror}"
            if not self.there:
                self.trouble = f"{self._path}: {GONE}"
        self.frozen = True


class StudyStorage(JournalStorage):  # type: ignore[misc]
    """Storage of a study for the process that runs its search (see the module).

    Args:
        journal: the file; nobody else may write it while this is in use.
    """

    def __init__(self, journal: Journal):
        super().__init__(journal)
        self._journal = journal
        self._waiting: set[int] = set()
        self._running: set[int] = set()
        self._ended: list[FrozenTrial] = []  # what the sampler sees, in the order of their numbers where it matters
        self._sampling = False
        for study in self.get_all_studies():
            for trial in super().get_all_trials(study._study_id, deepcopy=False):
                self._note(trial)

    def __getstate__(self) -> NoReturn:
        """Refuse to be pickled or copied.

        Raises:
            TypeError: always. A second writer would spoil the journal, and a copy would begin without its trials.
        """
        raise TypeError(
            "the storage of a study belongs to one process and cannot be pickled or copied; "
            "open it again from the folder of its search with hksd_search.study.records.open_storage"
        )

    @property
    def journal(self) -> Journal:
        """Its file."""
        return self._journal

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write what is written inside at once."""
        with self._journal.together():
            yield

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Show a sampler that works inside at most `SEEN` of the trials that have ended, and all that run."""
        self._sampling = True
        try:
            yield
        finally:
            self._sampling = False

    def waiting(self) -> int:
        """How many trials wait."""
        return len(self._waiting)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See optuna.storages.BaseStorage."""
        trial_id: int = super().create_new_trial(study_id, template_trial)
        self._note(self.get_trial(trial_id))
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See optuna.storages.BaseStorage."""
        done: bool = super().set_trial_state_values(trial_id, state, values)
        self._note(self.get_trial(trial_id))
        return done

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """See optuna.storages.BaseStorage; inside `sampling` without the trials that are left out."""
        if states == (TrialState.WAITING,):
            return [self.get_trial(trial_id) for trial_id in sorted(self._waiting)]
        if not self._sampling:
            found: list[FrozenTrial] = super().get_all_trials(study_id, deepcopy, states)
            return found
        if len(self._ended) > SEEN + SEEN // 4:  # not at each trial more: choosing takes longer than a draw
            self._ended = thinned(self._ended, self.get_study_directions(study_id))
        shown = [*self._ended, *(self.get_trial(trial_id) for trial_id in self._running)]
        return sorted((t for t in shown if states is None or t.state in states), key=lambda t: t.number)

    def _note(self, trial: FrozenTrial) -> None:
        for state, ids in ((TrialState.WAITING, self._waiting), (TrialState.RUNNING, self._running)):
            (ids.add if trial.state == state else ids.discard)(trial._trial_id)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            self._ended.append(trial)


def thinned(
    trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], seen: int = 0, most: int = 0
) -> list[FrozenTrial]:
    """`seen` (0: `SEEN`) of more trials: the `most` (0: `BEST`) best complete ones, others at even distances.

    Best are those that the fewest others dominate; with one objective, the highest in rank.
    """
    seen, most = seen or SEEN, most or BEST
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in directions]
    points = [[sign * value for sign, value in zip(signs, trial.values, strict=True)] for trial in complete]
    beaten = pareto.beaten(points)
    best = {complete[index].number for index in np.argsort(beaten, kind="stable")[:most]}
    others = [trial for trial in trials if trial.number not in best]
    places = np.linspace(0, len(others) - 1, seen - len(best)).round().astype(int)
    chosen = best | {others[place].number for place in places}
    return [trial for trial in trials if trial.number in chosen]
