"""Records on disk until somebody else has them: one JSON object a line, in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from hksd.files import write_atomically


class Spool:
    """A file of records. A fault of the disk is remembered in `problem`, never raised.

    Args:
        path: the file; made when the first record is kept.
    """

    def __init__(self, path: Path):
        self.path = path
        self.problem: str | None = None
        self._file: TextIO | None = None

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

    def start(self, records: Sequence[dict[str, Any]]) -> None:
        """Begin with these records and nothing else."""
        try:
            self._write(records)
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            self.problem = f"{self.path}: {error.strerror}"

    def add(self, record: dict[str, Any]) -> None:
        """Keep one more record; it survives the process."""
        if self._file is not None:
            try:
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
            except OSError as error:
                self.problem = f"{self.path}: {error.strerror}"

    def end(self, records: Sequence[dict[str, Any]]) -> None:
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

    def _write(self, records: Sequence[dict[str, Any]]) -> None:
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in records).encode())
