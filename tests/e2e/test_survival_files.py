"""Files of a search that are cut off, or taken away, in the middle: it says what it can mend, and goes on."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hksd.fit import RESULT_FILE
from hksd.run import checkpoint
from hksd_search.report.sections import TABLE_FILE
from hksd_search.study.reading import FACTS_FILE
from hksd_search.study.records import STUDY_FILE, read_records, trial_folder
from hksd_search.study.storage import GONE
from hksd_search.tracking.tracker import RUNS_FILE

Make = Callable[..., Any]


def cut(path: Path, chance: random.Random) -> None:
    """Leave the beginning of a file, as a power cut does."""
    os.truncate(path, chance.randrange(path.stat().st_size))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_search_whose_files_are_cut_off_goes_on_and_its_books_agree(
    seed: int, tmp_path: Path, write_space: Make, hksd: Make, start: Make, facts: Make
) -> None:
    chance, folder = random.Random(seed), tmp_path / "runs" / "cut"
    write_space(
        tmp_path / "space.yaml",
        train={"epochs": 20, "batch_size": 16},
        terms={"squeeze": {"weight": 0}},
        search={"trials": 3, "arms": "none", "scheduler": "none", "concurrent": 2},
    )
    program = start("search", "space.yaml", "--name", "cut", cwd=tmp_path)
    journal = folder / STUDY_FILE
    program.wait_until(
        lambda: (
            journal.exists()
            and journal.read_text().count('"progress"') > 4
            and all(record.epoch > 1 for record in read_records(folder))
        )
    )
    program.press_ctrl_c()
    assert program.wait() == 130, program.err
    before = read_records(folder)
    (waiting, *_) = [record for record in before if record.status == "interrupted"]
    trial = trial_folder(folder, waiting.number)
    for path in (folder / FACTS_FILE, folder / TABLE_FILE, folder / RUNS_FILE, trial / checkpoint.LAST):
        cut(path, chance)
    with journal.open("ab") as file:
        file.write(b'{"op_code": 5, "worker_id": "')
    program = hksd("search", "cut", "--resume", "--json", cwd=tmp_path)
    assert program.process.returncode == 0, program.err
    assert "Traceback" not in program.err
    assert list(trial.glob("*.corrupt-1"))
    found = facts(tmp_path / "runs", "cut")
    found.must_agree()
    assert [record.status for record in found.records] == ["complete"] * 3
    assert all((trial_folder(folder, record.number) / RESULT_FILE).exists() for record in found.records)


@pytest.mark.slow
def test_a_search_whose_folder_is_taken_away_says_so_and_goes_on_when_it_is_back(
    tmp_path: Path, write_space: Make, hksd: Make, start: Make, facts: Make
) -> None:
    folder, away = tmp_path / "runs" / "gone", tmp_path / "away"
    write_space(
        tmp_path / "space.yaml",
        train={"epochs": 20, "batch_size": 16},
        terms={"squeeze": {"weight": 0}},
        search={"trials": 2, "arms": "none", "scheduler": "none", "concurrent": 2},
    )
    program = start("search", "space.yaml", "--name", "gone", cwd=tmp_path)
    journal = folder / STUDY_FILE
    program.wait_until(lambda: journal.exists() and journal.read_text().count('"progress"') > 2)
    folder.rename(away)
    assert program.wait(60) == 1, program.err
    assert "Traceback" not in program.err
    assert f"{GONE}. When it is back where it was, resume with:\n  hksd search gone --resume" in program.err
    assert program.left() == [], "processes are left"
    assert not journal.exists()
    shutil.rmtree(folder, ignore_errors=True)  # what trials began there
    away.rename(folder)
    again = hksd("search", "gone", "--resume", "--json", cwd=tmp_path)
    assert again.process.returncode == 0, again.err
    found = facts(tmp_path / "runs", "gone")
    found.must_agree()
    assert [record.status for record in found.records] == ["complete"] * 2
