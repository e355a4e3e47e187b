"""Tune's view of early stopping: what a trial is told after each epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search.population import Evolution
from search.searcher import Ledger
from search.stopping import EarlyStopping


class LedgerScheduler(FIFOScheduler):  # type: ignore[misc]
    """Stops trials by the scheduler of the space, and everything after its epoch once the ledger stops.

    A trial's last epoch is never answered with a stop: the trial still has its weights to write. Holds no state of its
    own: the rules start from what the study has.
    """

    def __init__(self, ledger: Ledger):
        super().__init__()
        self.ledger: Ledger | None = ledger
        self.stopping: EarlyStopping | None = EarlyStopping(ledger.space, ledger.records())
        pbt = ledger.space.search.scheduler.pbt
        self.evolution = Evolution(ledger, pbt) if pbt else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "ledger": None, "stopping": None, "evolution": None}

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """See ray.tune.schedulers.TrialScheduler; Ray's own looks through all trials of the search at each event."""
        return next((trial for trial in tune_controller.get_live_trials() if trial.status == Trial.PENDING), None)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """See ray.tune.schedulers.TrialScheduler."""
        return str(TrialScheduler.STOP if self._stops(int(trial.config["number"]), result) else TrialScheduler.CONTINUE)

    def _stops(self, number: int, result: dict[str, Any]) -> bool:
        if "fault" in result or "epoch" not in result:
            return False
        assert self.ledger is not None
        assert self.stopping is not None
        if result["epoch"] >= self.stopping.epochs:
            return False
        if self.ledger.stopping:
            return True
        if self.evolution is not None:
            return self.evolution.stops(number, result["epoch"], result["val_accuracy"])
        _, given = self.ledger.live[number]
        return self.stopping.stops(number, given.arm, result["epoch"], result["val_accuracy"], given.costs)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""
        Path(checkpoint_path).write_text("the study has the state\n")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
