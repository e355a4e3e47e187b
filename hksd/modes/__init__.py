"""Ways of training that compose with any terms: attacked images, pruning, generated images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hksd.modes.data_free import DataFreeConfig, Generated
from hksd.modes.prune import Prune, PruneConfig
from hksd.modes.robust import Robust, RobustConfig


@dataclass(frozen=True)
class Modes:
    """The modes of one run; None where a mode is off."""

    robust: Robust | None = None
    prune: Prune | None = None
    generated: Generated | None = None

    def scalars(self) -> dict[str, float]:
        """What the modes tell the log after an epoch."""
        return {
            **(self.prune.scalars() if self.prune else {}),
            **(self.generated.scalars() if self.generated else {}),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold (only the generator learns)."""
        return self.generated.state_dict() if self.generated else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`."""
        if self.generated:
            self.generated.load_state_dict(state)


__all__ = ["DataFreeConfig", "Generated", "Modes", "Prune", "PruneConfig", "Robust", "RobustConfig"]
