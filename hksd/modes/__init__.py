"""Ways of training that compose with any terms: attacked images, pruning, generated images."""

from __future__ import annotations

from dataclasses import dataclass

from hksd.modes.data_free import DataFreeConfig, Generated
from hksd.modes.prune import Prune, PruneConfig
from hksd.modes.robust import Robust, RobustConfig
from hksd.schema import Section


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


__all__ = [
    "MODES",
    "DataFreeConfig",
    "Generated",
    "ModeEntry",
    "Prune",
    "PruneConfig",
    "Robust",
    "RobustConfig",
]
