"""Ways of training that compose with any terms: attacked images, pruning, generated images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hksd.data import DataSet
from hksd.models.taps import TappedNet
from hksd.modes.data_free import DataFreeConfig, Generated
from hksd.modes.prune import Prune, PruneConfig
from hksd.modes.robust import Robust, RobustConfig
from hksd.schema import Section

if TYPE_CHECKING:  # it has the sections of the modes
    from hksd.config import RunConfig


@dataclass(frozen=True)
class ModeEntry:
    """A registered mode: its configuration class, what it is, and where it comes from."""

    config: type[Section]
    summary: str
    source: str


MODES: dict[str, ModeEntry] = {
    "robust": ModeEntry(
        RobustConfig,
        "train on images that were changed against the student (PGD)",
        "Madry et al. 2018, arXiv 1706.06083; Lee and Lee 2021 (form RECONSTRUCTED)",
    ),
    "prune": ModeEntry(
        PruneConfig,
        "make weights or filters zero by proximal steps, then train the rest",
        "Lee and Lee 2021, Appl. Sci. 11(3) 1093 (proximal gradient CONFIRMED, form RECONSTRUCTED)",
    ),
    "data_free": ModeEntry(
        DataFreeConfig,
        "train on generated images",
        "DAFL, DFAD (CONFIRMED in code); Jin et al. 2021 (RECONSTRUCTED)",
    ),
}


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


__all__ = [
    "MODES",
    "DataFreeConfig",
    "Generated",
    "ModeEntry",
    "Modes",
    "Prune",
    "PruneConfig",
    "Robust",
    "RobustConfig",
]
