"""Records on disk until somebody else has them: one JSON object a line, in order."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from hksd.files import write_atomically


class Spool:
    """A file of records. A fault of the disk is remembered in `problem`, never raised.

    Args:
        path: the file; made when the first record is kept.

    Attributes:
        acknowledged: so many lines at its beginning somebody else has.
    """

    def __init__(self, path: Path):
        self.path = path
        self.problem: str | None = None
        self.acknowledged = 0
        self._lines = 0
        self._beyond: set[int] = set()  # lines that somebody else has, behind one that nobody has
        self._file: TextIO | None = None
        self._turn = threading.Lock()

    def read(self, done: int) -> list[dict[str, Any]]:
        """Records that an earlier process left, without the first `done` ones and a line it died in."""
        lines = self.path.read_text(encoding="utf-8").splitlines()[done:] if self.path.exists() else []
        records = []
        for line in lines:
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    def start(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Begin with these records and nothing else."""
        try:
            self._lines = len(records)
            self._write(records)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            self.problem = f"{self.path}: {error.strerror}"

    def add(self, record: Mapping[str, Any]) -> int:
        """Keep one more record, which survives the process; gives its line, the first one being 0."""
        with self._turn:
            line, self._lines = self._lines, self._lines + 1
            if self._file is not None:
                try:
                    self._file.write(json.dumps(record) + "\n")
                    self._file.flush()
                except OSError as error:
                    self.problem = f"{self.path}: {error.strerror}"
            return line

    def done(self, lines: Iterable[int]) -> None:
        """Somebody else has these lines now."""
        self._beyond.update(lines)
        while self.acknowledged in self._beyond:
            self._beyond.remove(self.acknowledged)
            self.acknowledged += 1

    def end(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Leave these records for the next process, or no file when there are none."""
        try:
            if self._file is not None:
                self._file.close()
            if records:
                self._write(records)
            else:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            self.problem = f"{self.path}: {error.strerror}"

    def _write(self, records: Sequence[Mapping[str, Any]]) -> None:
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in records).encode())
