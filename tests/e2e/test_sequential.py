"""One trial at a time: a search repeats draw by draw, epoch by epoch, stop by stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hksd_search.study.records import Record, read_records

Make = Callable[..., Any]


def told(record: Record) -> tuple[Any, ...]:
    """What of a record does not depend on the clock."""
    return record.number, record.status, record.arm, record.config, record.costs, record.accuracies, record.reason


@pytest.mark.slow
def test_with_one_trial_at_a_time_a_search_repeats_draw_by_draw(tmp_path: Path, hksd: Make, write_space: Make) -> None:
    write_space(
        tmp_path / "space.yaml",
        search={"trials": 9, "sampler": "tpe", "concurrent": 1, "scheduler": {"asha": {"grace_epochs": 1}}},
    )
    searches = []
    for name in ("first", "second"):
        program = hksd("search", "space.yaml", "--name", name, cwd=tmp_path)
        assert program.process.returncode == 0, program.err
        searches.append([told(record) for record in read_records(tmp_path / "runs" / name)])
    assert searches[0] == searches[1]
    assert {status for _, status, *_ in searches[0]} >= {"complete", "pruned"}
