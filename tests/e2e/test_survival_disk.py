"""The disk fills up under a search: it says so, stops, and goes on when there is room again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Any]
EPOCHS = 12
# In a mount namespace of its own, with a small file system below `runs`: fills it once two epochs are through.
SCRIPT = """
set -u
mkdir -p runs && mount -t tmpfs -o size=24m tmpfs runs || exit 77
python() { "$PYTHON" -m hksd_search.cli search "$@"; }
python space.yaml --name full > out.1 2> err.1 &
search=$!
reports() { cat runs/full/study.journal 2> /dev/null | grep -c '"progress"'; }
while kill -0 $search && [ "$(reports)" -lt 3 ]; do sleep 0.1; done
cat /dev/zero > runs/filler 2> /dev/null
wait $search
echo $? > code.1
rm -f runs/filler
cp -r runs stopped
python full --resume --json > out.2 2> err.2
echo $? > code.2
cp -r runs finished
"""


def can_mount() -> bool:
    """Whether a user may have a file system of his own here."""
    try:
        command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs `unshare -Urm mount`, which is not allowed here")
def test_a_search_whose_disk_is_full_stops_and_goes_on_when_there_is_room_again(
    tmp_path: Path, write_space: Make, facts: Make
) -> None:
    write_space(
        tmp_path / "space.yaml",
        train={"epochs": EPOCHS, "batch_size": 16},
        terms={"squeeze": {"weight": 0}},
        search={"trials": 4, "arms": "none", "scheduler": "none", "concurrent": 2},
    )
    environment = {**os.environ, "PYTHON": sys.executable}
    for name in ("HKSD_RUNS", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        environment.pop(name, None)
    subprocess.run(["unshare", "-Urm", "sh", "-c", SCRIPT], cwd=tmp_path, env=environment, check=True, timeout=400)

    said = (tmp_path / "err.1").read_text()
    assert (tmp_path / "code.1").read_text() == "1\n", said
    assert "Traceback" not in said
    assert "failed: the disk is full: " in said
    assert "resume with:\n  hksd search full --resume" in said
    stopped = facts(tmp_path / "stopped", "full").records
    assert {record.status for record in stopped} <= {"interrupted", "complete"}, "a trial was blamed for the disk"

    assert (tmp_path / "code.2").read_text() == "0\n", (tmp_path / "err.2").read_text()
    assert json.loads((tmp_path / "out.2").read_text())["trials"]["complete"] == 4
    finished = facts(tmp_path / "finished", "full")
    finished.must_agree()
    assert [record.status for record in finished.records] == ["complete"] * 4
    done = [record for record in stopped if record.status == "complete"]
    assert [record for record in finished.records if record.number in {old.number for old in done}] == done
