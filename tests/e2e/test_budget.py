"""A real search with a cap: it ends cleanly, says why and how to go on, and goes on with a higher cap."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hksd_search.study.records import read_records

Make = Callable[..., Any]
HOUR = 3600.0
SECONDS = 2.0  # of training, enough for a whole trial on a slow machine


def test_a_search_that_reaches_its_cap_ends_cleanly_and_goes_on_with_a_higher_one(
    tmp_path: Path, write_space: Make, hksd: Make, facts: Make
) -> None:
    write_space(tmp_path / "space.yaml", search={"trials": 400, "scheduler": "none"})
    first = hksd("search", "space.yaml", "--name", "capped", "--max-device-hours", 1e-6, "--json", cwd=tmp_path)
    assert first.process.returncode == 1, first.err
    assert "no trial ran to its end: search.max_device_hours = 1e-06 is reached" in first.err
    assert "Traceback" not in first.err
    (advice,) = [line for line in first.err.splitlines() if "--max-device-hours" in line]

    folder = tmp_path / "runs" / "capped"
    assert read_records(folder) == [], "the teacher alone took all of it"
    teacher = json.loads((folder / "search.json").read_text())["teacher"]["seconds"]
    words = shlex.split(advice)[1:-1]
    second = hksd(*words, (teacher + SECONDS) / HOUR, "--json", cwd=tmp_path)
    assert second.process.returncode == 0, second.err
    told = second.json()
    assert told["ended"] == "max_device_hours"
    assert 0 < told["trials"]["complete"] < 400
    assert told["device_s"] > SECONDS
    assert "is reached" in second.err
    assert Path(tmp_path / told["export"]).is_dir()
    found = facts(tmp_path / "runs", "capped")
    found.must_agree()
    assert found.parent.info.status == "FINISHED"
    assert found.parent.data.tags["hksd.ended"] == "max_device_hours"
