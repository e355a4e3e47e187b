"""The modes of a run under way: attacked images, pruning, generated images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hksd.config.run import RunConfig
from hksd.data import DataSet
from hksd.models.taps import TappedNet
from hksd.modes.data_free import Generated
from hksd.modes.prune import Prune
from hksd.modes.robust import Robust


@dataclass(frozen=True)
class Modes:
    """The modes of one run; None where a mode is off."""

    robust: Robust | None = None
    prune: Prune | None = None
    generated: Generated | None = None

    @classmethod
    def of(
        cls, config: RunConfig, data: DataSet, student: TappedNet, teacher: TappedNet | None, device: torch.device
    ) -> Modes:
        """The modes of a run with these networks, which are on `device`."""
        epochs, generated = config.train.epochs, None
        if config.data_free:
            assert teacher is not None, "data_free has terms with a teacher"
            size = {"in_channels": data.channels, "image_size": data.image_size}
            generated = Generated(config.data_free, teacher, student, epochs, **size, device=device)
        return cls(
            robust=Robust(config.robust, data, device) if config.robust else None,
            prune=Prune(config.prune, student, epochs) if config.prune else None,
            generated=generated,
        )

    def scalars(self) -> dict[str, float]:
        """What the modes tell the log after an epoch."""
        return {
            **(self.prune.scalars() if self.prune else {}),
            **(self.generated.scalars() if self.generated else {}),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold: the generator, and the zeros that pruning has fixed."""
        return {
            **(self.generated.state_dict() if self.generated else {}),
            **(self.prune.state_dict() if self.prune else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`."""
        if self.generated:
            self.generated.load_state_dict(state)
        if self.prune:
            self.prune.load_state_dict(state)
