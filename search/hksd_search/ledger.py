"""The truth of a search: an Optuna study that knows every trial, what it was given and how it ended.

A trial's life: asked (RUNNING), then COMPLETE with its values, PRUNED with its last value, or FAIL with its reason.
A draw outside the limits or drawn before is refused here, before any training, and told PRUNED: to the sampler a bad
region, to people a status of its own. An interrupted trial goes back to WAITING, so nothing is RUNNING when nothing
runs. A fork (see `hksd_search.strategy.population`) begins as one that waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hksd.config.networks import StudentConfig
from hksd.config.run import RunConfig, config_hash, dump, from_tree
from hksd.errors import ConfigError, UserError
from hksd.run.objective import verify
from hksd_search.ending import End, Why
from hksd_search.space.arms import Competitors, Turn
from hksd_search.space.sizes import Meter, within
from hksd_search.space.space import Space
from hksd_search.strategy import beginning, samplers
from hksd_search.strategy.warm_start import Taken
from hksd_search.study import study as studies
from hksd_search.study.forks import Offspring
from hksd_search.study.records import STRIKES, Assignment, Record, Status, record_of

log = logging.getLogger(__name__)


@dataclass
class Events:
    """Who wants to know: called by the ledger as trials start, report, end and move to a machine."""

    started: list[Callable[[Assignment], None]] = field(default_factory=list)
    reported: list[Callable[[int, Mapping[str, Any]], None]] = field(default_factory=list)
    ended: list[Callable[[Record], None]] = field(default_factory=list)
    moved: list[Callable[[int, str], None]] = field(default_factory=list)  # with the names of its machines so far


class Ledger:
    """Asks, refuses, records.

    Args:
        space: the space.
        folder: folder of the search; holds the journal.
        meter: measures students for the images of the data.
        largest: student of the arms.
        events: observers.
        target: accuracy that a student has to reach (`search.max_drop`), or None.
        warm: what a new search takes over from earlier ones.
    """

    def __init__(
        self,
        space: Space,
        folder: Path,
        meter: Meter,
        largest: StudentConfig,
        events: Events | None = None,
        target: float | None = None,
        warm: Sequence[Taken] = (),
    ):
        self.space, self.folder, self.meter, self.largest, self.target = space, folder, meter, largest, target
        self.events = events or Events()
        self.objectives = [space.search.maximize, *space.search.minimize]
        self.study, self.storage = studies.open_study(folder, self.objectives)
        self.competitors = Competitors(space, largest, meter.shape["image_size"])
        self.live: dict[int, tuple[optuna.Trial, Assignment]] = {}
        self.reached: dict[int, int] = {}  # last epoch that a live trial has reported since it was handed out
        self.hashes: dict[str, int] = {}
        self.offspring: dict[int, Offspring] = {}  # what takes the place of a live trial once that has stopped
        self.trained, self.wished = 0, 0
        self.end: End | None = None  # why the search ends before its last trial
        if not self._trials():
            beginning.begin(self.study, self.storage, space, largest, warm, target)
        studies.mend(self.study, self.storage)
        self._take_over()
        self.storage.journal.reserve()
        self.samplers = samplers.of(self.competitors.spaces, self._trials())
        self.competitors.walked = samplers.walks(self.samplers)

    def _trials(self) -> list[FrozenTrial]:
        trials: list[FrozenTrial] = self.study.get_trials(deepcopy=False)
        return trials

    def _attributes(self, trial: optuna.Trial) -> dict[str, Any]:
        attributes: dict[str, Any] = self.storage.get_trial(trial._trial_id).user_attrs
        return attributes

    def _take_over(self) -> None:
        """Count what the study has."""
        for trial in self._trials():
            self.wished += "origin" in trial.user_attrs
            status, facts = trial.user_attrs.get("status"), trial.user_attrs.get("facts")
            self.trained += trial.state.is_finished() and status in ("complete", "pruned", "failed")
            if facts:
                if facts["origin"] == "arm":
                    self.competitors.given.add(facts["arm"])
                if status not in (None, "duplicate", "rejected", "imported"):
                    self.hashes.setdefault(facts["hash"], trial.number)
                    self.competitors.took(facts["arm"])

    def next(self) -> Assignment | None:
        """Hand out the next trial to train, or None when the budget or the space ends here, or for the moment.

        A trial that runs may come back (see `lost`), so there is nothing more only when nothing runs.
        """
        while self.wants_more():
            with self.storage.together():
                turn = self.competitors.turn()
                if turn is None and not self.storage.waiting():
                    if self.competitors.spent(None):
                        self.stop(Why.EXHAUSTED)
                    return None
                trial, assignment = self._take(turn or Turn(None))
            if assignment is None:
                self._announce(trial)
                continue
            if self._written():
                for observer in self.events.started:
                    observer(assignment)
            return assignment
        return None

    def wants_more(self) -> bool:
        """Whether there may be a trial to train."""
        return not self.stopping and self._promised() < self.space.search.trials

    def _promised(self) -> int:
        """Trials that were trained, that run, and that will take the place of one that runs."""
        return self.trained + len(self.live) + len(self.offspring)

    def room(self) -> bool:
        """Whether another trial may follow those that were trained, that run and that wait."""
        pending, settings = len(self.offspring), self.space.search
        own = self.competitors.taken[None] + pending < self.competitors.share(None, settings)
        return own and self._promised() + self.storage.waiting() < settings.trials

    def _take(self, turn: Turn) -> tuple[optuna.Trial, Assignment | None]:
        """Ask for a trial, which may be one that waits, and take it in, or refuse it."""
        self.study.sampler = self.samplers.get(turn.arm, self.samplers[None])  # a published run draws nothing
        if turn == Turn(None) and not self.storage.waiting():
            self._wish()
        with nullcontext() if samplers.sees_all(self.study.sampler) else self.storage.sampling():
            trial = self.study.ask()
            attributes = self._attributes(trial)
            if known := attributes.get("facts"):
                config, status = from_tree(known["config"]), attributes.get("status")
                if status in ("interrupted", "waiting"):
                    return trial, self._hand_out(trial, config, resumed=status == "interrupted")
                return trial, self._admit(trial, config, known["arm"], known["origin"])
            return trial, self._draw(trial, turn)

    def _wish(self) -> None:
        """Put the next of the draws that are wished for into the study, where the sampler finds it."""
        if self.wished < len(wishes := self.study.user_attrs.get(studies.WISHES, [])):
            wish = wishes[self.wished]
            self.study.enqueue_trial(wish["params"], user_attrs={"origin": wish["origin"]})
            self.wished += 1

    def _draw(self, trial: optuna.Trial, turn: Turn) -> Assignment | None:
        """Take in an arm, or a draw; one that makes no valid run (every term absent, say) is refused."""
        try:
            config = turn.config or self.competitors.draw(turn.arm, trial)
            verify(config, **self.meter.shape)
            self.meter.costs(config.student)  # a network may be one that cannot be measured
        except UserError as error:
            faults = error.problems if isinstance(error, ConfigError) else [error]
            if turn.config is not None:
                self.competitors.given.add(turn.arm)
            self.competitors.refused(turn.arm)
            self._refuse(trial, "rejected", "; ".join(map(str, faults)))
            return None
        origin = "arm" if turn.config else self._attributes(trial).get("origin", "draw")
        return self._admit(trial, config, turn.arm, origin)

    def _admit(self, trial: optuna.Trial, config: RunConfig, arm: str | None, origin: str) -> Assignment | None:
        """Take a draw in, or refuse it with its reason."""
        digest, costs = config_hash(config), self.meter.costs(config.student)
        facts = {"arm": arm, "origin": origin, "hash": digest, "costs": costs, "config": dump(config)}
        trial.set_user_attr("facts", facts)
        if origin == "arm":
            self.competitors.given.add(arm)
        broken, twin = within(self.space.search.limits, costs), self.hashes.get(digest)
        if broken or twin is not None:
            self.competitors.refused(arm)
            if broken:
                self._refuse(trial, "rejected", f"outside the limits: {', '.join(broken)}")
            else:
                self._refuse(trial, "duplicate", f"the same configuration as trial {twin}", twin)
            return None
        self.competitors.took(arm)
        self.hashes[digest] = trial.number
        return self._hand_out(trial, config, resumed=False)

    def _hand_out(self, trial: optuna.Trial, config: RunConfig, resumed: bool) -> Assignment:
        """Let a trial run that was taken in, now or before."""
        trial.set_user_attr("status", "running")
        known = record_of(self.storage.get_trial(trial._trial_id))
        inherited = known.accuracies if known.fork and not resumed else {}
        assignment = Assignment(trial.number, config, known.arm, known.costs, resumed, known.fork, inherited)
        self.live[trial.number] = trial, assignment
        self.reached.pop(trial.number, None)
        return assignment

    def _refuse(self, trial: optuna.Trial, status: Status, reason: str, twin: int | None = None) -> None:
        if twin is not None and len(self.objectives) == 1:
            # To the sampler a duplicate is worth what its twin reached, and it costs nothing.
            for step, value in self.trial(twin).intermediate_values.items():
                trial.report(value, step)
        self._conclude(trial, status, TrialState.PRUNED, reason=reason)

    def report(self, number: int, result: Mapping[str, Any]) -> None:
        """Take in the report of an epoch (fields of `hksd.run.outcome.EpochReport`); a repeated epoch counts once."""
        trial, _ = self.live[number]
        before = self._attributes(trial).get("progress", {"epoch": 0, "seconds": 0.0})
        epoch, accuracy, last = int(result["epoch"]), float(result["val_accuracy"]), self.reached.get(number, 0)
        if epoch <= last and not result.get("anew"):  # Tune tells the last report of a trial twice
            return
        self.reached[number] = epoch
        self._moved(number, result.get("hostname"))
        if epoch <= before["epoch"]:
            self._repeated(number, result, before, again=last > 0 or epoch == 1 < before["epoch"])
            return
        seconds = before["seconds"] + float(result["seconds"])
        with self.storage.together():
            studies.note_accuracy(self.study, self.storage, trial._trial_id, epoch, accuracy)
            trial.set_user_attr("progress", {"epoch": epoch, "val_accuracy": accuracy, "seconds": seconds})  # last
        if self._written():
            for observer in self.events.reported:
                observer(number, result)

    def _moved(self, number: int, node: str | None) -> None:
        """Note the machine that a trial trains on, and tell of it where that is another one."""
        trial, _ = self.live[number]
        nodes = list(self._attributes(trial).get("nodes", []))
        if node is None or node in nodes[-1:]:
            return
        nodes = [*(name for name in nodes if name != node), node]
        trial.set_user_attr("nodes", nodes)
        for observer in self.events.moved:
            observer(number, ", ".join(nodes))

    def _repeated(self, number: int, result: Mapping[str, Any], before: Mapping[str, Any], again: bool) -> None:
        """Take in an epoch that the study knows.

        A resumed trial reports the last epoch of its checkpoint. Observers hear of it, marked, since the process before
        may have died between the study and them. An epoch that was trained `again`, since its checkpoint is gone, takes
        time, and on a GPU it may end with another accuracy, which is that of the student.
        """
        trial, assignment = self.live[number]
        epoch, accuracy = int(result["epoch"]), float(result["val_accuracy"])
        told: dict[str, Any] = {"repeated": True}
        if again or result.get("anew"):  # anew: a fork that did not find its parent's checkpoint
            now = {**before, "seconds": before["seconds"] + float(result["seconds"])}
            same = result.get("anew") or record_of(self.trial(number)).accuracies.get(epoch) == accuracy
            with self.storage.together():
                if not same:
                    studies.note_accuracy(self.study, self.storage, trial._trial_id, epoch, accuracy)
                    now["val_accuracy"] = accuracy if epoch == before["epoch"] else before["val_accuracy"]
                trial.set_user_attr("progress", now)
            told = {"repeated": same, "again": True}
        if assignment.resumed and (again or epoch == before["epoch"]) and self._written():
            for observer in self.events.reported:
                observer(number, {**result, **told})

    def finish(self, number: int, reason: str | None = None) -> None:
        """A trial has ended by itself: failed when there is a reason, complete after its last epoch, else pruned.

        Only after its last epoch has a trial written its student, so what did not end by itself is not complete (see
        `put_back`). While the search is stopping, a trial that is not through waits again.
        """
        trial, assignment = self.live.pop(number)
        through = self.reached.get(number, 0) >= assignment.config.train.epochs
        with self.storage.together():
            if reason is not None:
                self._conclude(trial, "failed", TrialState.FAIL, reason=reason)
            elif through:
                values = {"val_accuracy": self._attributes(trial)["progress"]["val_accuracy"], **assignment.costs}
                self._conclude(trial, "complete", TrialState.COMPLETE, [values[name] for name in self.objectives])
            elif self.stopping:
                studies.wait_again(self.storage, trial._trial_id)
            else:
                heir = self.offspring.pop(number, None)
                reason = studies.replaced_by(self._enqueue(heir)) if heir else None
                self._conclude(trial, "pruned", TrialState.PRUNED, reason=reason)
        self.offspring.pop(number, None)
        self._announce(trial)

    def put_back(self, number: int) -> None:
        """Let a trial wait again that did not end by itself: its student may not be on disk, whatever it reported."""
        trial, _ = self.live.pop(number)
        self.offspring.pop(number, None)
        with self.storage.together():
            studies.wait_again(self.storage, trial._trial_id)
        self._announce(trial)

    def replace(self, number: int, offspring: Offspring) -> None:
        """Let a fork follow a live trial, which is told to stop now."""
        self.offspring[number] = offspring

    def _enqueue(self, offspring: Offspring) -> int:
        """Let a fork wait to be handed out; returns its number."""
        parent = self.trial(offspring.fork.parent)
        waiting = self.storage.create_new_trial(self.study._study_id, offspring.waiting(parent, len(self.objectives)))
        number: int = self.storage.get_trial(waiting).number
        self.hashes[offspring.hash] = number
        self.competitors.took(None)
        return number

    def lost(self, number: int, reason: str, allowed: int = STRIKES, strike: bool = True) -> None:
        """A trial was let down by its machine: it waits to be tried again, and has failed at the last time allowed.

        Args:
            number: of the trial.
            reason: what happened, in words.
            allowed: strikes with which it has failed.
            strike: count this one; not where the trial had not begun.
        """
        trial, _ = self.live[number]
        strikes = [*self._attributes(trial).get("strikes", []), *([reason] if strike else [])]
        if strike and len(strikes) >= allowed:
            self.finish(number, f"{len(strikes)} times, the last time: {reason}")
            return
        trial.set_user_attr("strikes", strikes)
        log.warning("trial %d: %s; it is tried again from its last checkpoint", number, reason)
        self.put_back(number)

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
        if self.target is not None:  # what fell short, and by how much, is what the sampler has to know
            reached = self._attributes(trial).get("progress", {}).get("val_accuracy", 0.0)
            trial.set_constraint("accuracy", self.target - reached)
        trial.set_user_attr("status", status)  # last: a status stands for a conclusion that is whole
        self.study.tell(trial, values=values, state=state)
        self.trained += status in ("complete", "pruned", "failed")

    def _announce(self, trial: optuna.Trial) -> None:
        """Tell observers how a trial ended, once the study has it on disk."""
        if not self._written():
            return
        for observer in self.events.ended:
            observer(record_of(self.storage.get_trial(trial._trial_id)))

    @property
    def stopping(self) -> bool:
        """Whether the trials that run are to stop after their epoch, and no other starts."""
        return self.end is not None and self.end.why > Why.EXHAUSTED

    def stop(self, why: Why, text: str = "") -> None:
        """End the search; what says more about it is kept.

        Args:
            why: the reason.
            text: the cap that was reached, or what no trial could go on with.
        """
        if self.end is None or why > self.end.why:
            self.end = End(why, text)
        if why >= Why.FAULT:
            self.storage.journal.release()  # room for the end

    def _written(self) -> bool:
        """Whether the study has on disk what was recorded; the search stops where its file cannot be written."""
        journal = self.storage.journal
        if journal.trouble:
            self.stop(Why.FAULT, journal.trouble)
        return not journal.frozen

    def interrupt(self) -> None:
        """Put everything that still runs back to WAITING."""
        self.stop(Why.INTERRUPTED)
        for number in list(self.live):
            self.put_back(number)

    def trial(self, number: int) -> FrozenTrial:
        """A trial as the study has it."""
        return self.storage.get_trial(
            self.storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
        )

    def records(self) -> list[Record]:
        """All trials of the study."""
        return [record_of(trial) for trial in self._trials()]
