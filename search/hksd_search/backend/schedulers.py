"""Tune's view of early stopping: what a trial is told after each epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from hksd.config.changes import Change, Values
from hksd.config.run import RunConfig, from_tree
from hksd.errors import RunError, UserError
from hksd.run import checkpoint
from hksd_search.backend import failures
from hksd_search.backend.cluster import Cluster
from hksd_search.backend.failures import Failure
from hksd_search.ending import Why
from hksd_search.ledger import Ledger
from hksd_search.space.settings import Pbt
from hksd_search.strategy.population import Population, boundaries, explored, knobs
from hksd_search.strategy.stopping import EarlyStopping
from hksd_search.study.forks import Offspring
from hksd_search.study.records import Fork, Record, record_of, trial_folder


def mind(ledger: Ledger, cluster: Cluster | None) -> None:
    """Have the search end for what has been found about the nodes of its cluster."""
    if cluster is None or ledger.stopping:
        return
    try:
        cluster.check()
    except UserError as error:
        ledger.stop(Why.UNFIT, str(error))
    except RunError as error:
        ledger.stop(Why.FAULT, str(error))


class LedgerScheduler(FIFOScheduler):  # type: ignore[misc]
    """Stops trials by the scheduler of the space, and everything after its epoch once the ledger stops.

    A trial's last epoch is never answered with a stop: the trial still has its weights to write. Holds no state of its
    own: the rules start from what the study has.

    Args:
        ledger: of the search.
        lost: takes in why the worker of a trial was lost, by Tune's id of the trial: Tune tells its scheduler of the
            trial itself, and its searcher only of the id.
        cluster: nodes that come and go; None where all workers are on this machine.
    """

    def __init__(self, ledger: Ledger, lost: dict[str, Failure] | None = None, cluster: Cluster | None = None):
        super().__init__()
        self.ledger: Ledger | None = ledger
        self.cluster: Cluster | None = cluster
        self.lost = {} if lost is None else lost
        self.stopping: EarlyStopping | None = EarlyStopping(ledger.space, ledger.records())
        pbt = ledger.space.search.scheduler.pbt
        self.evolution = Evolution(ledger, pbt) if pbt else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "ledger": None, "cluster": None, "stopping": None, "evolution": None}

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """See ray.tune.schedulers.TrialScheduler; Ray's own looks through all trials of the search at each event."""
        assert self.ledger is not None
        mind(self.ledger, self.cluster)
        if self.ledger.stopping and self.cluster is not None:
            self._let_go(tune_controller)
            return None
        return next((trial for trial in tune_controller.get_live_trials() if trial.status == Trial.PENDING), None)

    def _let_go(self, tune_controller: Any) -> None:
        """End the trials that still wait for a node: none may ever come."""
        for trial in list(tune_controller.get_live_trials()):
            if trial.status == Trial.PENDING and trial not in tune_controller._resetting_trials:
                tune_controller.stop_trial(trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """See ray.tune.schedulers.TrialScheduler."""
        return str(TrialScheduler.STOP if self._stops(int(trial.config["number"]), result) else TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """See ray.tune.schedulers.TrialScheduler; comes before the searcher hears of it."""
        super().on_trial_error(tune_controller, trial)
        if (failure := failures.told_by_tune(trial.error_file)) is not None:
            self.lost[trial.trial_id] = failure

    def _stops(self, number: int, result: dict[str, Any]) -> bool:
        if "fault" in result or "epoch" not in result:
            return False
        assert self.ledger is not None
        assert self.stopping is not None
        if result["epoch"] >= self.stopping.epochs:
            return False
        if self.ledger.stopping:
            return True
        if result["epoch"] < record_of(self.ledger.trial(number)).epoch:  # trained again; it went on after it before
            return False
        if self.evolution is not None:
            return self.evolution.stops(number, result["epoch"], result["val_accuracy"])
        _, given = self.ledger.live[number]
        return self.stopping.stops(number, given.arm, result["epoch"], result["val_accuracy"], given.costs)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""
        Path(checkpoint_path).write_text("the study has the state\n")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


TRIES = 32  # forks that are drawn before a trial goes on because each was a configuration that there is already


class Evolution:
    """The population of a search: decides after every epoch, and tells the ledger of forks.

    Args:
        ledger: of the search; its trials so far are the population to start with.
        settings: how.
    """

    def __init__(self, ledger: Ledger, settings: Pbt):
        self.ledger, self.settings = ledger, settings
        self.boundaries = boundaries(ledger.space)
        self.population = Population(settings.population, settings.quantile)
        for known in ledger.records():
            for epoch, accuracy in known.accuracies.items():
                self._enter(known, epoch, accuracy)

    def _enter(self, known: Record, epoch: int, accuracy: float) -> None:
        begun = known.fork.epoch if known.fork else 0  # what it shares with its parent is in the population already
        if epoch in self.boundaries and epoch > begun and known.arm is None and known.status != "failed":
            costs = [known.costs[name] for name in self.ledger.space.search.minimize]
            self.population.enter(known.number, epoch, accuracy, costs)

    def stops(self, number: int, epoch: int, accuracy: float) -> bool:
        """Take in an epoch of a live trial; whether it stops, for a fork that the ledger now knows.

        It goes on, whatever its rank, while the search has no trial left to give.
        """
        known = record_of(self.ledger.trial(number))
        self._enter(known, epoch, accuracy)
        if number not in self.population.points.get(epoch, ()):
            return False
        self._forget(epoch)
        parents = self.population.better(number, epoch)
        if not parents or not self.ledger.room():
            return False
        seen = {*self.ledger.hashes, *(pending.hash for pending in self.ledger.offspring.values())}
        for offspring in self._offspring(number, epoch, parents):
            if offspring.hash not in seen:
                self.ledger.replace(number, offspring)
                return True
        return False

    def _offspring(self, number: int, epoch: int, parents: Sequence[int]) -> Iterator[Offspring]:
        """Forks that may take the place of a trial: the same for a seed, a trial and an epoch, and the same parents."""
        space = self.ledger.space
        draws = random.Random(f"{space.search.seed} {number} {epoch}")
        for _ in range(TRIES):
            parent = self.ledger.trial(draws.choice(parents))
            config = from_tree(parent.user_attrs["facts"]["config"])
            values = explored(config.at(epoch), knobs(space, parent.params), self.settings.factor, draws)
            if values:
                changed = replace(config, changes=(*_until(config, epoch), Change(epoch=epoch, set=Values(values))))
                yield Offspring(Fork(parent.number, epoch), number, changed)

    def _forget(self, epoch: int) -> None:
        """Remove the checkpoints of members that are no longer in the population at an epoch."""
        staying = set(self.population.members(epoch))
        for number in self.population.points[epoch].keys() - staying:
            checkpoint.kept(trial_folder(self.ledger.folder, number), epoch).unlink(missing_ok=True)


def _until(config: RunConfig, epoch: int) -> tuple[Change, ...]:
    return tuple(change for change in config.changes if change.epoch < epoch)


def remove_checkpoints(folder: Path) -> None:
    """Remove what the trials of the search in `folder` have kept for forks."""
    for path in folder.glob(f"trials/*/{checkpoint.KEPT.format('*')}"):
        path.unlink(missing_ok=True)
