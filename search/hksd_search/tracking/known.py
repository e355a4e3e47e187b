"""What a search remembers of its tracking: where its runs are, and what of its spool has reached them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hksd.files import write_atomically
from hksd_search.tracking.access import has_secrets, same_store, store_uri, without_secrets
from hksd_search.tracking.spool import Spool

SPOOL_FILE, RUNS_FILE = "tracking-spool.jsonl", "mlflow.json"
NOTES_FILE = "mlflow-notes.jsonl"  # what is new since RUNS_FILE was written; that grows with the search
DAMAGED = ""  # address of a store that cannot be read any more


@dataclass(frozen=True)
class Known:
    """What stands in `RUNS_FILE` and `NOTES_FILE`.

    Attributes:
        uri: the store, without secrets; `DAMAGED` where the file is.
        default: it is the SQLite file below the runs folder, wherever that is moved to.
        experiment: id of the experiment, once there is one.
        runs: id of each run by the number of its trial, and that of the search itself.
        acknowledged: records of the spool that need not be sent again.
        closed: the run of the search has been ended since it began last.
    """

    uri: str
    default: bool = False
    experiment: str | None = None
    runs: Mapping[str, str] = field(default_factory=dict)
    acknowledged: int = 0
    closed: bool = False

    @property
    def fresh(self) -> bool:
        """Nothing of the search has been sent yet."""
        return self.experiment is None and not self.runs and self.uri != DAMAGED

    def leads_to(self, uri: str, runs: Path) -> bool:
        """Whether that is the store at `uri`, for searches below the folder `runs`."""
        return same_store(self.uri, uri) or (self.default and same_store(store_uri(None, runs), uri))


def read(folder: Path) -> Known | None:
    """What a search, which may be running, remembers; None where it was never tracked."""
    try:
        facts = json.loads((folder / RUNS_FILE).read_text())
        known = Known(**{name: facts[name] for name in Known.__dataclass_fields__ if name in facts})
        usual = known.default or same_store(known.uri, store_uri(None, folder.parent))
        known = replace(known, uri=str(known.uri), default=usual, runs=dict(known.runs))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError):  # half a file
        return Known(DAMAGED)
    for note in Spool(folder / NOTES_FILE).read(0):
        known = replace(known, **{**_known_of(note), "runs": {**known.runs, **note.get("runs", {})}})
    return known


def _known_of(note: Mapping[str, Any]) -> dict[str, Any]:
    return {name: note[name] for name in ("experiment", "acknowledged", "closed") if name in note}


def write(folder: Path, known: Known) -> None:
    """Write it down, without secrets.

    Raises:
        OSError: it cannot be written.
    """
    if has_secrets(known.uri):
        known = replace(known, uri=without_secrets(known.uri))
    write_atomically(folder / RUNS_FILE, json.dumps(asdict(known)).encode())
