"""What a walk through folders passes over, counted, and the words for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from hksd.errors import some

SHOWN = 4  # suffixes that a line names
LONGEST = 12  # characters of what is taken for a suffix


@dataclass
class Tally:
    """What is passed over in one class, or beside the folders of the classes.

    Attributes:
        files: number of all files, but for those in folders that are passed over.
        suffixes: how many there are of which suffix that is not read.
        systems: how many there are of which folders and files of systems.
        others: further reasons, each with the names that it holds for.
        empty: images of 0 bytes.
        closed: images that may not be read.
    """

    files: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)
    systems: Counter[str] = field(default_factory=Counter)
    others: dict[str, list[str]] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    def not_read(self, name: str) -> None:
        """Count a file by its suffix."""
        suffix = PurePath(name).suffix.lower()
        self.suffixes[suffix if suffix[1:].isalnum() and len(suffix) <= LONGEST else ""] += 1

    def other(self, reason: str, name: str) -> None:
        """Count `name` for `reason`."""
        self.others.setdefault(reason, []).append(name)


def line(folder: Path, passed: Sequence[str], remarks: Sequence[str] = ()) -> str:
    """The line on the set in `folder`, of `reasons` and further remarks; "" without any."""
    said = "; ".join([*([f"passed over: {'; '.join(passed)}"] if passed else []), *remarks])
    # A name may hold a line break, or what a terminal obeys.
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in f"{folder}: {said}") if said else ""


def reasons(tallies: Mapping[str, Tally], top: Tally | None = None) -> list[str]:
    """Why what is passed over in the classes `tallies`, and beside them (`top`): a clause for each reason."""
    every = [*tallies.values(), *([top] if top else [])]
    said = []
    suffixes, systems = Counter[str](), Counter[str]()
    for tally in every:
        suffixes.update(tally.suffixes)
        systems.update(tally.systems)
    if suffixes:
        kinds = [_of_suffix(suffix, tallies) for suffix, _ in suffixes.most_common(SHOWN)]
        if more := suffixes.total() - sum(count for _, count in suffixes.most_common(SHOWN)):
            kinds.append(f"{more} of other kinds")
        said.append(f"{', '.join(kinds)}, and such files are not read (.png, .jpg, .tif and the like are)")
    if systems:
        shown = some([f"{count} {name}" for name, count in systems.most_common()])
        said.append(f"files and folders of systems: {systems.total()} ({shown})")
    others: dict[str, list[str]] = {}
    for tally in every:
        for reason, names in tally.others.items():
            others.setdefault(reason, []).extend(names)
    return said + [f"{reason}: {len(names)} (as {min(names)})" for reason, names in others.items()]


def _of_suffix(suffix: str, tallies: Mapping[str, Tally]) -> str:
    having = {name: tally for name, tally in tallies.items() if tally.suffixes[suffix]}
    count, files = sum(t.suffixes[suffix] for t in having.values()), sum(t.files for t in having.values())
    most = max(having, key=lambda name: having[name].suffixes[suffix])
    where = f" in {len(having)} classes" if len(having) > 1 else f" in '{most}'" if most else ""
    clause = f"{count} of {files} files{where} are {suffix or 'without suffix'}"
    if len(having) > 1:
        clause += f" (most in '{most}': {having[most].suffixes[suffix]} of {having[most].files})"
    return clause
