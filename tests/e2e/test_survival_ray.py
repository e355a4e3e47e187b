"""The processes of Ray are killed under a running search: it starts them again and goes on where its trials stood."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hksd.errors import UserError
from hksd_search.backend import ray_watch
from hksd_search.backend.ray_watch import NEEDED, TRIES, Restart
from hksd_search.backend.takeover import COUNT
from hksd_search.study.records import Record, read_records

Make = Callable[..., Any]
EPOCHS = 20


def records(folder: Path) -> list[Record]:
    with contextlib.suppress(UserError, KeyError):
        return read_records(folder)
    return []


def epochs(folder: Path) -> int:
    return sum(record.epoch for record in records(folder))


def children(program: Any) -> dict[int, str]:
    """Names of the processes that a search has started, by their number."""
    found = {}
    for file in Path(f"/proc/{program.process.pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= {int(pid): Path(f"/proc/{pid}/comm").read_text().strip() for pid in file.read_text().split()}
    return found


@pytest.mark.slow
def test_a_search_whose_ray_is_killed_goes_on_by_itself_and_loses_nothing(
    tmp_path: Path, write_space: Make, start: Make, facts: Make
) -> None:
    write_space(
        tmp_path / "space.yaml",
        train={"epochs": EPOCHS, "batch_size": 32},
        terms={"squeeze": {"weight": 0}},
        search={"trials": 4, "arms": "none", "scheduler": "none", "concurrent": 2},
    )
    folder = tmp_path / "runs" / "killed"
    program = start("search", "space.yaml", "--name", "killed", "--json", cwd=tmp_path)
    earlier: set[int] = set()
    for name in NEEDED:
        program.wait_until(lambda: set(NEEDED) <= {n for pid, n in children(program).items() if pid not in earlier})
        seen = epochs(folder)
        program.wait_until(lambda seen=seen: epochs(folder) >= seen + 2)
        now = children(program)
        (pid,) = [pid for pid in now if now[pid] == name]
        os.kill(pid, signal.SIGKILL)
        earlier.update(now)
    assert program.wait(300) == 0, program.err
    for name in NEEDED:
        assert f"Ray died ({name}); it is started again" in program.err
    assert "Traceback" not in program.err
    assert program.json()["trials"]["complete"] == 4
    assert program.left(ignoring="Agent") == []
    found = facts(tmp_path / "runs", "killed")
    found.must_agree()
    assert [record.status for record in found.records] == ["complete"] * 4
    resumed = [json.loads(file.read_text())["resumed_at"] for file in folder.glob("trials/*/result.json")]
    assert len(resumed) == 4
    assert any(resumed)
    journal = (folder / "study.journal").read_text()
    assert "strikes" not in journal, "the death of Ray was held against a trial"


class Gone(Exception):  # noqa: N818 - no error
    """What stands for the end of this process."""


@pytest.fixture
def put_in_place(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be put in the place of this process."""
    placed: list[Any] = []

    def take(*what: Any) -> None:
        placed.append(what)
        raise Gone

    monkeypatch.setattr(ray_watch.os, "execve", take)
    monkeypatch.setattr(ray_watch.os, "_exit", take)
    return placed


@pytest.mark.parametrize("progress", [False, True])
def test_ray_is_not_started_again_for_ever_unless_trials_get_on(
    progress: bool, put_in_place: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(TRIES + 1):
        restart = Restart("hksd search first --runs 'my runs' --resume", ["--json"])
        if progress:
            restart.progress(0, {"epoch": 1})
        with pytest.raises(Gone):
            restart("raylet")
        *_, last = put_in_place[-1]
        if isinstance(last, dict):
            monkeypatch.setenv(COUNT, last[COUNT])
    words = put_in_place[0][1]
    assert words[-6:] == ["search", "first", "--runs", "my runs", "--resume", "--json"]
    given_up = put_in_place[-1] == (1,)
    assert given_up is not progress
    err = capsys.readouterr().err
    assert ("Resume with:\n  hksd search first --runs 'my runs' --resume" in err) is not progress
