"""What one call tells MLflow of a run: values, parameters and tags, of several records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LONGEST_PARAM = 6000  # characters that MLflow takes


@dataclass
class Batch:
    """Gathers what records say of one run until it is sent.

    Attributes:
        metrics: values, of several steps.
        params: parameters by name.
        tags: tags by name, the last word each.
        steps: steps whose accuracy the run has, as far as that is known.
        asked: `steps` has all that the store has.
        told: it is the study that speaks.
    """

    metrics: list[Any] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    steps: set[int] = field(default_factory=set)
    asked: bool = False
    told: bool = False

    def has(self, step: int, ask: Callable[[], set[int]]) -> bool:
        """Whether the run has the accuracy of a step, or will have it; `ask` gives the steps in the store."""
        if not self.asked:
            self.steps, self.asked = self.steps | ask(), True
        return step in self.steps

    def send(self, client: Any, run: str) -> None:
        """Send and forget it: by one call, or as many as MLflow's limits demand; none where nothing is to be said.

        Sending it twice leaves a run as it is: MLflow passes over values that it has with time and step.
        """
        from mlflow.entities import Param, RunTag

        if not (self.metrics or self.params or self.tags):
            return
        params = [Param(key, value[:LONGEST_PARAM]) for key, value in self.params.items()]
        client.log_batch(run, self.metrics, params, [RunTag(key, value) for key, value in self.tags.items()])
        self.metrics, self.params, self.tags = [], {}, {}
