"""What each phase of a search (`hksd_search.run`) hands on to the next ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hksd.config.networks import StudentConfig
from hksd.config.run import RunConfig
from hksd.data import DataSet
from hksd_search.backend.cluster import Cluster
from hksd_search.caps import Caps
from hksd_search.console import Display
from hksd_search.ledger import Ledger
from hksd_search.session import TEACHERS, how_to_resume
from hksd_search.space.sizes import Meter
from hksd_search.space.space import Space
from hksd_search.strategy.warm_start import Taken
from hksd_search.study.reading import SearchFolder
from hksd_search.tracking import tracker as tracking
from hksd_search.tracking.address import Address


@dataclass(frozen=True)
class Home:
    """Where a search lives.

    Attributes:
        runs: folder of all searches.
        folder: its own.
        name: its name.
        address: Ray cluster, or None.
        store: MLflow store.
    """

    runs: Path
    folder: Path
    name: str
    address: str | None
    store: Address

    @property
    def teachers(self) -> Path:
        """Folder of cached teachers."""
        return (self.runs / TEACHERS).resolve()

    @property
    def resume_command(self) -> str:
        """What continues the search."""
        return how_to_resume(self.name, self.runs, self.address)


@dataclass(frozen=True)
class Seen:
    """What a search knows before it writes anything.

    Attributes:
        space: what to search.
        home: where.
        display: where progress is shown.
        data: its images.
        meter: measures students.
        largest: the largest student within the limits.
        cluster: its nodes, or None where all is on this machine.
    """

    space: Space
    home: Home
    display: Display
    data: DataSet
    meter: Meter
    largest: StudentConfig
    cluster: Cluster | None = None

    @property
    def middle(self) -> RunConfig:
        """The run in the middle of the space, which stands for the others."""
        return self.space.middle({})


@dataclass(frozen=True)
class Taught:
    """The teacher stage.

    Attributes:
        facts: what is known of the search before its first trial, for `search.json`.
        taken: what is taken over from earlier searches.
    """

    facts: dict[str, Any]
    taken: list[Taken]


@dataclass(frozen=True)
class Books:
    """What is written down while trials train.

    Attributes:
        ledger: the study.
        tracker: MLflow.
        caps: what the search may cost.
    """

    ledger: Ledger
    tracker: tracking.Tracker
    caps: Caps


@dataclass(frozen=True)
class Closed:
    """The search as its books have it at its end.

    Attributes:
        found: the search as others read it.
        interrupted: it goes on some day.
        cap: the cap that ended it early, or None.
        export: folder of the exported student; None where there is none to export, or not yet.
        sent: what reached MLflow.
        faults: what could not be written, in words.
    """

    found: SearchFolder
    interrupted: bool
    cap: str | None
    export: Path | None
    sent: tracking.Sent
    faults: list[str]
