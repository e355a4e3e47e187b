"""A fork that waits to take the place of a trial."""

from __future__ import annotations

from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from hksd.config.run import RunConfig, config_hash, dump
from hksd_search.study.records import ACCURACY, Fork, record_of


@dataclass(frozen=True)
class Offspring:
    """A fork that takes the place of a trial.

    Attributes:
        fork: where it goes on from.
        replaces: number of the trial.
        config: its parent's configuration with one change more.
    """

    fork: Fork
    replaces: int
    config: RunConfig

    @property
    def hash(self) -> str:
        """Hash of its configuration."""
        return config_hash(self.config)

    def waiting(self, parent: FrozenTrial, objectives: int) -> FrozenTrial:
        """The fork as a trial that waits: with the parameters of its parent and the epochs that they share.

        Args:
            parent: its parent, as the study has it.
            objectives: of the study; Optuna keeps accuracies itself where there is one.
        """
        shared = {e: value for e, value in record_of(parent).accuracies.items() if e <= self.fork.epoch}
        facts = {
            **{key: parent.user_attrs["facts"][key] for key in ("arm", "costs")},
            "origin": "fork",
            "hash": self.hash,
            "config": dump(self.config),
            "parent": self.fork.parent,
            "forked_at": self.fork.epoch,
            "replaces": self.replaces,
        }
        progress = {"epoch": self.fork.epoch, "val_accuracy": shared[self.fork.epoch], "seconds": 0.0}
        own = {} if objectives == 1 else {f"{ACCURACY}{e}": value for e, value in shared.items()}
        return optuna.trial.create_trial(
            state=TrialState.WAITING,
            params=parent.params,
            distributions=parent.distributions,
            user_attrs={"facts": facts, "progress": progress, "status": "waiting", **own},
            intermediate_values=shared if objectives == 1 else {},
        )
