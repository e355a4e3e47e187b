"""Why a search ends before its last trial."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Why(IntEnum):
    """Why a search ends before its last trial; of two reasons the higher one says more."""

    EXHAUSTED = 1
    CAP = 2
    INTERRUPTED = 3
    FAULT = 4
    UNFIT = 5


@dataclass(frozen=True)
class End:
    """That a search ends before its last trial.

    Attributes:
        why: the reason. EXHAUSTED: the space has no further draw; what runs goes on. CAP: money or device hours are
            spent. INTERRUPTED: by the user, or a machine that goes away. FAULT: no trial could go on. UNFIT:
            a node of the cluster is not what it must be, which is the user's to mend.
        text: name of the cap in the `search` section, or the fault in words.
    """

    why: Why
    text: str = ""
