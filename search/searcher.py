"""The truth of a search: an Optuna study that knows every trial, what it was given and how it ended.

A trial's life: asked (RUNNING), then COMPLETE with its values, PRUNED with its last value, or FAIL with its reason.
A draw outside the limits or drawn before is refused here, before any training, and told PRUNED: to the sampler a bad
region, to people a status of its own. An interrupted trial goes back to WAITING, so nothing is RUNNING when nothing
runs.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hksd.config import RunConfig, StudentConfig, config_hash, dump, from_tree
from hksd.errors import ConfigError, UserError
from hksd.objective import verify
from search import samplers
from search.arms import arms
from search.costs import Meter, within
from search.records import STUDY_NAME, Assignment, Record, Status, mend_journal, open_storage, record
from search.space import Space

PATIENCE = 200  # refused draws in a row after which the space counts as exhausted
log = logging.getLogger(__name__)


@dataclass
class Events:
    """Who wants to know: called by the ledger as trials start, report and end. All optional."""

    started: list[Callable[[Assignment], None]] = field(default_factory=list)
    reported: list[Callable[[int, Mapping[str, Any]], None]] = field(default_factory=list)
    ended: list[Callable[[Record], None]] = field(default_factory=list)


class Ledger:
    """Asks, refuses, records.

    Args:
        space: the space.
        folder: folder of the search; holds the journal.
        meter: measures students for the images of the data.
        largest: student of the arms.
        events: observers.
    """

    def __init__(self, space: Space, folder: Path, meter: Meter, largest: StudentConfig, events: Events | None = None):
        self.space, self.meter, self.events = space, meter, events or Events()
        self.objectives = [space.search.maximize, *space.search.minimize]
        mend_journal(folder)
        self.storage = open_storage(folder)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=STUDY_NAME,
                load_if_exists=True,
                directions=["maximize", *["minimize"] * len(space.search.minimize)],
            )
            self.study.set_metric_names(self.objectives)
        self.arms = arms(space, largest)
        self.live: dict[int, tuple[optuna.Trial, Assignment]] = {}
        self.hashes: dict[str, int] = {}
        self.given: set[str | None] = set()  # arms that were given out
        self.stopping, self.exhausted, self.trained = False, False, 0
        self._take_over()
        self.study.sampler = samplers.make(space, self._trials())
        self.thinned = samplers.chosen(space)[0] in samplers.THINNED

    def _trials(self) -> list[FrozenTrial]:
        trials: list[FrozenTrial] = self.study.get_trials(deepcopy=False)
        return trials

    def _attributes(self, trial: optuna.Trial) -> dict[str, Any]:
        attributes: dict[str, Any] = self.storage.get_trial(trial._trial_id).user_attrs
        return attributes

    def _take_over(self) -> None:
        """Continue a study whose process may have died at any write.

        What was refused but not yet told is told; what was running waits again, and was admitted if it has a status;
        what is finished counts.
        """
        for trial in self._trials():
            status, facts = trial.user_attrs.get("status"), trial.user_attrs.get("facts")
            if trial.state == TrialState.RUNNING:
                if status in ("rejected", "duplicate"):
                    self.study.tell(trial.number, state=TrialState.PRUNED)
                elif status is not None:
                    self._wait_again(trial._trial_id)
                else:
                    self.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
            elif trial.state.is_finished() and status in ("complete", "pruned", "failed"):
                self.trained += 1
            if facts:
                self.given.add(facts["arm"])
                if status not in (None, "duplicate", "rejected"):
                    self.hashes.setdefault(facts["hash"], trial.number)

    def _wait_again(self, trial_id: int) -> None:
        self.storage.set_trial_user_attr(trial_id, "status", "interrupted")
        self.storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def next(self) -> Assignment | None:
        """Hand out the next trial to train, or None when the budget, the space or the patience ends here."""
        walks = isinstance(self.study.sampler, samplers.GridSampler)  # it knows its end, however many are refused
        for _ in itertools.count() if walks else range(PATIENCE):
            if self.stopping or self.trained + len(self.live) >= self.space.search.trials:
                return None
            if walks and self._walked():
                self.exhausted = True
                return None
            with self.storage.together():
                trial, assignment = self._take()
            if assignment is None:
                self._announce(trial)
                continue
            for observer in self.events.started:
                observer(assignment)
            return assignment
        self.exhausted = True
        log.warning("%d draws in a row were refused: the space holds nothing new within the limits", PATIENCE)
        return None

    def _walked(self) -> bool:
        """Whether every point of the grid was given out, every arm too, and nothing waits to go on."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return self.study.sampler.exhausted and not waiting and self.given >= self.arms.keys()

    def _take(self) -> tuple[optuna.Trial, Assignment | None]:
        """Ask for a trial and take it in, or refuse it."""
        with self.storage.sampling() if self.thinned else nullcontext():
            trial = self.study.ask()
            attributes = self._attributes(trial)
            if known := attributes.get("facts"):
                resumed = attributes.get("status") == "interrupted"
                return trial, self._admit(trial, from_tree(known["config"]), known["arm"], resumed)
            return trial, self._draw(trial, next((name for name in self.arms if name not in self.given), None))

    def _draw(self, trial: optuna.Trial, arm: str | None) -> Assignment | None:
        """Take in an arm, or a draw; one that makes no valid run (every term absent, say) is refused."""
        try:
            config = self.arms[arm] if arm else self.space.draw(trial)
            verify(config, **self.meter.shape)
        except ConfigError as error:
            self._refuse(trial, "rejected", "; ".join(str(problem) for problem in error.problems))
            return None
        except UserError as error:
            self._refuse(trial, "rejected", str(error))
            return None
        return self._admit(trial, config, arm, resumed=False)

    def _admit(self, trial: optuna.Trial, config: RunConfig, arm: str | None, resumed: bool) -> Assignment | None:
        """Take a draw in, or refuse it with its reason."""
        costs, digest = self.meter.costs(config.student), config_hash(config)
        if not resumed:
            facts = {"arm": arm, "hash": digest, "costs": costs, "config": dump(config)}
            trial.set_user_attr("facts", facts)
            self.given.add(arm)
            broken, twin = within(self.space.search.limits, costs), self.hashes.get(digest)
            if broken or twin is not None:
                if broken:
                    self._refuse(trial, "rejected", f"outside the limits: {', '.join(broken)}")
                else:
                    self._refuse(trial, "duplicate", f"the same configuration as trial {twin}", twin)
                return None
        trial.set_user_attr("status", "running")
        self.hashes[digest] = trial.number
        assignment = Assignment(trial.number, config, arm, costs, resumed)
        self.live[trial.number] = trial, assignment
        return assignment

    def _refuse(self, trial: optuna.Trial, status: Status, reason: str, twin: int | None = None) -> None:
        if twin is not None and len(self.objectives) == 1:
            # To the sampler a duplicate is worth what its twin reached, and it costs nothing.
            known = self.storage.get_trial_id_from_study_id_trial_number(self.study._study_id, twin)
            for step, value in self.storage.get_trial(known).intermediate_values.items():
                trial.report(value, step)
        self._conclude(trial, status, TrialState.PRUNED, reason=reason)

    def report(self, number: int, result: Mapping[str, Any]) -> None:
        """Take in the report of an epoch (fields of `hksd.loop.EpochReport`); a repeated epoch is ignored.

        A resumed trial repeats its last epoch. Observers hear of it, marked, since the process before may have died
        between the study and them.
        """
        trial, assignment = self.live[number]
        before = self._attributes(trial).get("progress", {"epoch": 0, "seconds": 0.0})
        epoch, accuracy = int(result["epoch"]), float(result["val_accuracy"])
        if epoch <= before["epoch"]:
            if assignment.resumed and epoch == before["epoch"]:
                for observer in self.events.reported:
                    observer(number, {**result, "repeated": True})
            return
        seconds = before["seconds"] + float(result["seconds"])
        with self.storage.together():
            trial.set_user_attr("progress", {"epoch": epoch, "val_accuracy": accuracy, "seconds": seconds})
            if len(self.objectives) == 1:  # Optuna takes intermediate values of single-objective studies only
                trial.report(accuracy, epoch)
        for observer in self.events.reported:
            observer(number, result)

    def finish(self, number: int, reason: str | None = None) -> None:
        """End a trial: failed when there is a reason, complete when its last epoch was reported, else pruned.

        While the search is stopping, a trial that is not through goes back to WAITING.
        """
        trial, assignment = self.live.pop(number)
        progress = self._attributes(trial).get("progress", {"epoch": 0})
        through = progress["epoch"] >= assignment.config.train.epochs
        with self.storage.together():
            if reason is not None:
                self._conclude(trial, "failed", TrialState.FAIL, reason=reason)
            elif through:
                values = {"val_accuracy": progress["val_accuracy"], **assignment.costs}
                self._conclude(trial, "complete", TrialState.COMPLETE, [values[name] for name in self.objectives])
            elif self.stopping:
                self._wait_again(trial._trial_id)
            else:
                self._conclude(trial, "pruned", TrialState.PRUNED)
        self._announce(trial)

    def _conclude(
        self,
        trial: optuna.Trial,
        status: Status,
        state: TrialState,
        values: list[float] | None = None,
        reason: str | None = None,
    ) -> None:
        if reason is not None:
            trial.set_user_attr("reason", reason)
        trial.set_user_attr("status", status)  # last: a status stands for a conclusion that is whole
        self.study.tell(trial, values=values, state=state)
        self.trained += status in ("complete", "pruned", "failed")

    def _announce(self, trial: optuna.Trial) -> None:
        """Tell observers how a trial ended, once the study has it on disk."""
        for observer in self.events.ended:
            observer(record(self.storage.get_trial(trial._trial_id)))

    def interrupt(self) -> None:
        """Put everything that still runs back to WAITING."""
        self.stopping = True
        for number in list(self.live):
            self.finish(number)

    def records(self) -> list[Record]:
        """All trials of the study."""
        return [record(trial) for trial in self._trials()]
