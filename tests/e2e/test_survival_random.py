"""A search that is killed again and again, at random times and in random ways, ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hksd.errors import UserError
from hksd.fit import RESULT_FILE, WEIGHTS_FILE
from hksd_search.study.records import STUDY_FILE, Record, read_records, trial_folder

Make = Callable[..., Any]
EPOCHS = 12
WAYS = ("driver", "worker", "raylet", "SIGTERM", "SIGINT", "torn journal")
LONGEST = 15.0  # seconds until a round is ended


def children(pid: int) -> list[int]:
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in file.read_text().split()]
    return found


def named(pids: list[int], word: str) -> list[int]:
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{pid}/comm").read_text():
                found.append(pid)
    return found


def strike(program: Any, way: str, chance: random.Random) -> None:
    """End something; what is not there is not ended."""
    raylets = named(children(program.process.pid), "raylet")
    workers = [pid for raylet in raylets for pid in named(children(raylet), "ray::")]
    victims = {"raylet": raylets, "worker": workers}.get(way, [program.process.pid])
    number = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}.get(way, signal.SIGKILL)
    if victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(victims), number)


def finished(folder: Path) -> dict[int, tuple[Record, bytes]]:
    """The complete trials with their weights; fails where the study cannot be read or two trials have a number."""
    with contextlib.suppress(UserError, KeyError):
        records = read_records(folder)
        assert [record.number for record in records] == list(range(len(records)))
        complete = [record for record in records if record.status == "complete"]
        return {r.number: (r, (trial_folder(folder, r.number) / WEIGHTS_FILE).read_bytes()) for r in complete}
    return {}


def tear(folder: Path, chance: random.Random) -> None:
    """Leave the beginning of a record at the end of the journal, as a power cut does."""
    journal = folder / STUDY_FILE
    if journal.exists():
        *_, last = journal.read_bytes().splitlines()
        with journal.open("ab") as file:
            file.write(last[: chance.randrange(1, len(last))])


def survive(rounds: int, seed: int, place: Path, start: Make, facts: Make, hksd: Make) -> None:
    """Start and kill a search that many times, let it end, and look at its books."""
    print(f"seed {seed}")
    chance, folder = random.Random(seed), place / "runs" / "random"
    before: dict[int, tuple[Record, bytes]] = {}
    for turn in range(rounds):
        begun = (folder / STUDY_FILE).exists() or (folder / "space.yaml").exists()
        words = ["random", "--resume"] if begun else ["space.yaml", "--name", "random"]
        program, way = start("search", *words, cwd=place), chance.choice(WAYS)
        with contextlib.suppress(Exception):
            program.process.wait(chance.uniform(1.0, LONGEST))
        if program.process.poll() is None:
            strike(program, way, chance)
            with contextlib.suppress(Exception):
                program.process.wait(chance.uniform(5.0, LONGEST))
            if program.process.poll() is None:
                program.process.kill()
        program.wait()
        assert "Traceback" not in program.err, f"seed {seed}, round {turn}, {way}: {program.err}"
        if way == "torn journal":
            tear(folder, chance)
        after = finished(folder)
        assert {number: after[number] for number in before} == before, f"seed {seed}, round {turn}, {way}"
        before = after
    begun = (folder / "space.yaml").exists()
    words = ["random", "--resume"] if begun else ["space.yaml", "--name", "random"]
    program = start("search", *words, "--json", cwd=place)
    assert program.wait(400) == 0, f"seed {seed}: {program.err}"
    found = facts(place / "runs", "random")
    found.must_agree()
    trained = [record for record in found.trained if record.status == "complete"]
    assert {n: (r, w) for n, (r, w) in finished(folder).items() if n in before} == before
    for record in trained[:: max(1, len(trained) // 3)]:  # alone, in one go
        config = trial_folder(folder, record.number) / "config.yaml"
        again = hksd("train", config, "--out", place / f"again-{record.number}", "--json", cwd=place)
        assert again.json()["val_accuracy"] == record.val_accuracy, f"seed {seed}, trial {record.number}"
        result = json.loads((trial_folder(folder, record.number) / RESULT_FILE).read_text())
        assert result["val_accuracy"] == record.val_accuracy
    lost = [record for record in found.records if record.status == "failed"]
    assert all("times, the last time: the worker process died" in str(record.reason) for record in lost)
    assert len(trained) + len(lost) == trials(rounds)


def trials(rounds: int) -> int:
    """Trials of a search that is to be caught at work in that many rounds."""
    return 5 + rounds // 2


@pytest.fixture
def place(rounds: int, tmp_path: Path, write_space: Make) -> Path:
    write_space(
        tmp_path / "space.yaml",
        train={"epochs": EPOCHS, "batch_size": 32},
        terms={"squeeze": {"weight": 0}},
        search={"trials": trials(rounds), "arms": "none", "scheduler": "none", "concurrent": 2},
    )
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [5, 50])
def test_a_search_survives_any_end_at_any_time(rounds: int, place: Path, start: Make, facts: Make, hksd: Make) -> None:
    seed = int(os.environ.get("HKSD_TEST_SEED", time.time_ns() % 10**6))
    survive(rounds, seed, place, start, facts, hksd)
