"""All that is known of one trial, for who wants to see why it ended so: notes of its workers, the study, its files."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from hksd.errors import UserError
from hksd_search.study.records import STUDY_FILE, STUDY_NAME, Record, open_storage, record_of, trial_folder

LOG_FILE = "log.txt"  # in the folder of a trial: a line for each thing that its workers had to tell
FAULT_FILE = "fault.txt"  # there: the stack trace of its last fault
LAST_WORDS = "last-words.txt"  # there: of a process that ended itself, or hung, or crashed
MOST = 1_000_000  # characters of a file that are shown, the last ones


@dataclass(frozen=True)
class TrialLog:
    """What is known of a trial.

    Attributes:
        record: how it stands.
        strikes: why its machines let it down, each time that counted.
        started: when it was drawn, or handed out first, as the driver's clock said; None where nobody wrote it down.
        ended: when it was told to have ended.
        folder: of its files; may not be there.
        files: size in bytes of each file there, by name.
        log: lines of `LOG_FILE`.
        fault: the stack trace of its last fault; that of an earlier try where it has gone on since.
        last_words: what its last process left that did not end as it should.
    """

    record: Record
    strikes: tuple[str, ...] = ()
    started: datetime | None = None
    ended: datetime | None = None
    folder: Path = Path()
    files: Mapping[str, int] = field(default_factory=dict)
    log: tuple[str, ...] = ()
    fault: str | None = None
    last_words: str | None = None


def note(folder: Path, text: str) -> None:
    """Add a line to the log of the trial in `folder`, with the time and the machine; a full disk loses it."""
    line = f"{datetime.now():%Y-%m-%d %H:%M:%S} {socket.gethostname()}: {' '.join(text.splitlines())}\n"
    with suppress(OSError):
        folder.parent.mkdir(exist_ok=True)  # and no folder of a search that is gone
        folder.mkdir(exist_ok=True)
        with (folder / LOG_FILE).open("a") as file:
            file.write(line)


def read(search: Path, number: int) -> TrialLog:
    """Read all of a trial; of its folder what is there.

    Args:
        search: folder of the search.
        number: of the trial.

    Raises:
        UserError: no such search, or no such trial in it.
    """
    if not (search / STUDY_FILE).exists():
        raise UserError(f"{search}: no trial yet (no {STUDY_FILE})")
    storage = open_storage(search)
    trials = storage.get_all_trials(storage.get_study_id_from_name(STUDY_NAME), deepcopy=False)
    found = next((trial for trial in trials if trial.number == number), None)
    if found is None:
        there = (
            f"there are 0 to {len(trials) - 1}" if len(trials) > 1 else "there is 0" if trials else "there is none yet"
        )
        raise UserError(f"{search}: no trial {number} ({there})")
    folder = trial_folder(search, number)
    return TrialLog(
        record=record_of(found),
        strikes=tuple(map(str, found.user_attrs.get("strikes", ()))),
        started=found.datetime_start,
        ended=found.datetime_complete,
        folder=folder,
        files=_files(folder),
        log=tuple((_text(folder / LOG_FILE) or "").splitlines()),
        fault=_text(folder / FAULT_FILE),
        last_words=_text(folder / LAST_WORDS),
    )


def _text(file: Path) -> str | None:
    """A text, or the end of a long one; None where there is none, or an empty one."""
    try:
        return file.read_text(errors="replace").strip()[-MOST:] or None
    except OSError:
        return None


def _files(folder: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    with suppress(OSError):
        for file in sorted(folder.iterdir()):
            with suppress(OSError):  # gone meanwhile
                if file.is_file():
                    found[file.name] = file.stat().st_size
    return found
