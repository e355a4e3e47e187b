"""Caps on what a search may cost, in device hours and in money, counted while its trials train.

A device hour is an hour of one GPU where trials use GPUs, and a share of a GPU counts as that share; without GPUs it
is an hour of the cores of one trial (`search.resources.cpu`). Training counts, of the teacher (one whole device) and of
the trials, those that fail or are stopped too; time in which a device waits does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hksd_search.ending import Why

if TYPE_CHECKING:  # imports Optuna
    from hksd_search.ledger import Ledger

HOUR = 3600.0  # seconds
RAISED = 2  # the cap that the advice proposes, in caps


def device_hours(seconds: float, gpu: float) -> float:
    """Device hours of trials.

    Args:
        seconds: of training, summed over trials.
        gpu: GPUs of a trial, fractions allowed; 0 where they train on cores.
    """
    return seconds * (gpu or 1.0) / HOUR


class Caps:
    """Ends a search once a cap is reached: no trial starts, those that run finish their epoch and wait for a resume.

    A cap therefore holds to within one epoch of each trial that runs.

    Args:
        ledger: of the search, with what earlier sessions trained.
        teacher_seconds: time that the training of the teacher took; 0 when it was cached.
    """

    def __init__(self, ledger: Ledger, teacher_seconds: float):
        self.ledger, self.teacher_seconds, self.gpu = ledger, teacher_seconds, 0.0
        self.seconds = sum(record.seconds for record in ledger.records())

    def start(self, gpu: float) -> None:
        """Count from now on, with that many GPUs for each trial; what was spent before may be enough already."""
        self.gpu = gpu
        self.ledger.events.reported.append(self._reported)
        self._check(self.hours)

    def look(self) -> None:
        """End a search whose teacher alone has taken all that it may cost."""
        self._check(self.teacher_seconds / HOUR)

    @property
    def hours(self) -> float:
        """Device hours so far."""
        return self.teacher_seconds / HOUR + device_hours(self.seconds, self.gpu)

    def _reported(self, number: int, result: Mapping[str, Any]) -> None:
        """Count an epoch; the last one before a resume is reported again, which is not training it again."""
        if result.get("again") or not result.get("repeated"):
            self.seconds += float(result["seconds"])
            self._check(self.hours)

    def _check(self, hours: float) -> None:
        caps = self.ledger.space.search
        if caps.max_device_hours is not None and hours >= caps.max_device_hours:
            self.ledger.stop(Why.CAP, "max_device_hours")
        elif caps.max_cost is not None and caps.price is not None and hours * caps.price >= caps.max_cost:
            self.ledger.stop(Why.CAP, "max_cost")

    def cut_short(self) -> bool:
        """Whether a cap kept the search from trials that it would have trained."""
        return self.reached is not None and self.ledger.trained < self.ledger.space.search.trials

    @property
    def reached(self) -> str | None:
        """Name of the cap that ended the search, or None."""
        end = self.ledger.end
        return end.text if end and end.why is Why.CAP else None

    def explain(self, resume: str) -> str:
        """Why the search ended, and how to go on.

        Args:
            resume: the command that continues it.
        """
        caps, cap = self.ledger.space.search, self.reached
        assert cap is not None
        bound = float(getattr(caps, cap))
        money = "" if caps.price is None else f", a cost of {self.hours * caps.price:.3g}"
        return (
            f"search.{cap} = {bound:g} is reached: {self.hours:.3g} device hours{money}, the teacher included; "
            f"go on with a higher one:\n  {resume} --{cap.replace('_', '-')} {RAISED * bound:g}"
        )
