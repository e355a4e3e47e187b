"""The files of trials that have ended: whole, and no more of them than somebody needs.

A complete trial has its student and its result. When those are on disk nobody goes on from its checkpoints, which are
larger than the student: they are removed. Where the files are gone or damaged later (a cleaner of folders, a broken
disk), a resume finds it and lets the trial wait again.
"""

from __future__ import annotations

from pathlib import Path

from hksd import fit
from hksd.run import checkpoint
from hksd_search.study import study as studies
from hksd_search.study.records import STUDY_FILE, Record, mend_journal, read_records, trial_folder

NAMED = 3  # trials of which it is said what is wrong


def tidy(folder: Path, record: Record) -> None:
    """Remove the checkpoints of a trial of the search in `folder` that needs none any more."""
    trial = trial_folder(folder, record.number)
    if record.status == "complete" and fit.unfinished(trial) is None:
        checkpoint.forget(trial)


def mend(folder: Path) -> dict[int, str]:
    """Let the complete trials wait again whose files are missing or damaged, and tidy up the others.

    For the one process that may write the study, before it opens it; a search that has not begun has none.

    Args:
        folder: folder of the search.

    Returns:
        What is wrong with the files of each, by its number.
    """
    if not (folder / STUDY_FILE).exists():
        return {}
    mend_journal(folder)
    complete = [record for record in read_records(folder) if record.status == "complete"]
    faults = {r.number: fault for r in complete if (fault := fit.unfinished(trial_folder(folder, r.number)))}
    if faults:
        studies.reopen(folder, faults)
    for record in complete:
        tidy(folder, record)
    return faults


def told(faults: dict[int, str]) -> str:
    """What `mend` found, in a line for people."""
    named = [f"trial {number} ({fault})" for number, fault in sorted(faults.items())]
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return f"files of complete trials are gone: {', '.join(named[:NAMED])}{more}; trained again"
