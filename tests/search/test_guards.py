"""A process that hangs or leaks is ended with its reason, one that works is left alone; faults are told apart."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from hksd.errors import ConfigError, NonFiniteLossError, RunError, UserError
from hksd_search.backend import failures, guards
from hksd_search.backend.gpu import GpuMemoryError
from hksd_search.backend.guards import FLOOR, GB, MEMORY_STRIKES, STRIKES, Rules
from hksd_search.ending import Why
from hksd_search.ledger import Events
from hksd_search.study.records import STUDY_FILE, read_records
from hksd_search.study.storage import GONE, RESERVE

Make = Callable[..., Any]
# A trial: the name of the function and of the file are those of the real one, by which its thread is found.
TRIAL = """
import ctypes, os, re, signal, sys, time
from pathlib import Path
from hksd_search.backend import guards

def run_trial(what, folder, timeout, memory):
    with guards.Guard(folder, guards.Rules(timeout, memory)) as guard:
        if what == "sleeps":
            time.sleep(1e6)
        elif what == "holds the lock":
            re.match("(a+)+$", "a" * 60 + "b")
        elif what == "crashes":
            ctypes.string_at(0)
        elif what == "leaks":
            held = []
            while True:
                held.append(bytearray(b"x") * 30_000_000)
                time.sleep(0.02)
        elif what == "reports":
            for _ in range(2):
                time.sleep(0.2 * timeout)
                guard.rest()
                time.sleep(1.5 * timeout)  # the driver is slow
                guard.watch(0.2 * timeout)
        elif what == "is halted":
            if os.fork() == 0:
                time.sleep(0.5)
                os.kill(os.getppid(), signal.SIGSTOP)
                time.sleep(2 * timeout)
                os.kill(os.getppid(), signal.SIGCONT)
                os._exit(0)
            time.sleep(0.9)
            os.wait()
    time.sleep(1.5 * timeout)
    print("done")
"""
# One process imports; each case is a fork of it, and all run at once. It says exit code and output of each.
MAIN = """
import json, os, sys
from pathlib import Path
import trial

cases, pids = json.loads(sys.argv[1]), {}
for what, (timeout, memory) in cases.items():
    pids[what] = os.fork()
    if pids[what] == 0:
        os.dup2(os.open(f"{what}.txt", os.O_WRONLY | os.O_CREAT), 1)
        trial.run_trial(what, Path(what), timeout, memory)
        sys.exit()
codes = {what: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for what, pid in pids.items()}
print(json.dumps({what: [code, Path(f"{what}.txt").read_text()] for what, code in codes.items()}))
"""
CASES = {
    "sleeps": (1.5, 100 * GB),
    "holds the lock": (1.5, 100 * GB),
    "crashes": (120, 100 * GB),
    "leaks": (120, 1_200_000_000),
    "reports": (1.5, 100 * GB),
    "is halted": (1.5, 100 * GB),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the trials run; each has a folder of its name."""
    return tmp_path_factory.mktemp("trials")


@pytest.fixture(scope="module")
def live(child: Make, home: Path) -> dict[str, list[Any]]:
    """Exit code and output of the trial of each case, in a process of its own."""
    (home / "trial.py").write_text(TRIAL)
    out, complaint = child(MAIN, json.dumps(CASES), cwd=home).communicate(timeout=120)
    assert "Error" not in complaint, complaint
    found: dict[str, list[Any]] = json.loads(out)
    return found


@pytest.mark.parametrize(
    ("what", "line"),
    [("sleeps", "time.sleep(1e6)"), ("holds the lock", 're.match("(a+)+$", "a" * 60 + "b")')],
)
def test_a_trial_that_hangs_is_ended_and_the_line_is_known(
    what: str, line: str, live: dict[str, list[Any]], home: Path
) -> None:
    assert live[what] == [-signal.SIGABRT, ""]
    number = TRIAL.splitlines().index(f"            {line}") + 1
    reason = f"no epoch ended in 1.5 s (search.epoch_timeout); it hung in {home}/trial.py:{number} (run_trial)"
    assert guards.last_words(home / what) == (reason, STRIKES)


def test_a_crash_in_compiled_code_is_told_from_a_kill_and_its_place_is_known(
    live: dict[str, list[Any]], home: Path
) -> None:
    assert live["crashes"] == [-signal.SIGSEGV, ""]
    number = TRIAL.splitlines().index("            ctypes.string_at(0)") + 1
    reason = f"its process crashed in {home}/trial.py:{number} (run_trial): Segmentation fault"
    assert guards.last_words(home / "crashes") == (reason, STRIKES)


def test_a_trial_that_leaks_is_ended_before_the_machine_is_full(live: dict[str, list[Any]], home: Path) -> None:
    assert live["leaks"] == [1, ""]
    reason, strikes = guards.last_words(home / "leaks")
    held = float(reason.split()[3])
    assert 1.2 <= held < 8
    expected = f"its process held {held} GB of memory, more than the 1.2 GB that it may (search.resources.memory_gb)"
    assert (reason, strikes) == (expected, MEMORY_STRIKES)


def test_a_trial_whose_process_is_halted_has_not_hung(live: dict[str, list[Any]], home: Path) -> None:
    assert live["is halted"] == [0, "done\n"]
    assert guards.last_words(home / "is halted") == (failures.DIED, STRIKES)


def test_a_trial_that_reports_its_epochs_in_time_is_left_alone_however_slow_its_driver(
    live: dict[str, list[Any]], home: Path
) -> None:
    assert live["reports"] == [0, "done\n"]
    assert guards.last_words(home / "reports") == (failures.DIED, STRIKES)


def test_nothing_of_an_earlier_try_is_taken_for_the_reason_of_a_later_one(tmp_path: Path) -> None:
    (tmp_path / guards.LAST_WORDS).write_text("held too much")
    with guards.Guard(tmp_path, Rules()):
        assert guards.last_words(tmp_path) == (failures.DIED, STRIKES)
    assert guards.last_words(tmp_path) == (failures.DIED, STRIKES)


@pytest.mark.parametrize(
    ("timeout", "mine", "others", "seconds"),
    [
        (None, 0, 0, 600),
        (None, 0, 50, 1000),
        (None, 1, 50, 60),
        (None, 10, 0, 200),
        (7.0, 0, 0, 7),
        (7.0, 10, 50, 7),
    ],
)
def test_an_epoch_has_twenty_times_the_longest_so_far_and_never_less_than_a_minute(
    timeout: float | None, mine: float, others: float, seconds: float
) -> None:
    assert Rules(timeout).patience(mine, others) == seconds


@pytest.mark.parametrize(
    ("total", "trials", "bound"), [(100, 9, 10), (100, 1, 90), (100, 0, 90), (8, 90, 2), (1, 1, 0.9)]
)
def test_a_trial_has_its_part_of_the_memory_but_enough_to_live(total: int, trials: int, bound: float) -> None:
    assert guards.part_of_memory(total * GB, trials) == bound * GB
    assert FLOOR == 2 * GB


@pytest.mark.parametrize(
    ("file", "text", "bound"),
    [
        ("sys/fs/cgroup/memory.max", "5000000\n", 5_000_000),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "6000000\n", 6_000_000),
        ("sys/fs/cgroup/batch/memory.max", "7000000\n", 7_000_000),
        ("sys/fs/cgroup/batch/job/memory.max", "8000000\n", 8_000_000),
    ],
)
def test_a_container_or_job_has_the_memory_that_its_group_allows(
    file: str, text: str, bound: int, tmp_path: Path
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/batch/job\n")
    machine = guards.machine_memory(tmp_path)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("max\n")
    assert guards.machine_memory(tmp_path) == machine > 1e8
    (tmp_path / file).write_text(text)
    assert guards.machine_memory(tmp_path) == bound


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NonFiniteLossError(1, 2, {"ce": float("nan")}), "final"),
        (UserError("wrong"), "final"),
        (ConfigError("space.yaml", []), "final"),
        (GpuMemoryError("too little"), "final"),
        (RuntimeError("nobody knows"), "again"),
        (OSError(errno.EIO, "broken"), "again"),
        (MemoryError(), "again"),
        (torch.AcceleratorError("device lost"), "again"),
        (OSError(errno.ENOSPC, "full"), "disk full"),
        (raised(RunError("not saved"), OSError(errno.ENOSPC, "full")), "disk full"),
        (raised(UserError("not written"), OSError(errno.EDQUOT, "quota")), "disk full"),
        (raised(UserError("not read"), OSError(errno.ESTALE, "stale")), "again"),
    ],
    ids=repr,
)
def test_only_faults_that_would_come_again_are_final(error: BaseException, kind: str) -> None:
    assert guards.kind(error, "resnet8") == kind
    assert guards.kind(error, "own:net") == kind


@pytest.mark.parametrize(("error", "kind"), [("ValueError", "final"), ("OSError", "again"), ("MemoryError", "again")])
def test_an_error_that_passed_through_the_users_own_network_is_final(error: str, kind: str) -> None:
    module = ModuleType("own.layers")
    exec(f"def forward():\n    raise {error}('in a layer')", module.__dict__)
    with pytest.raises(BaseException, match="in a layer") as caught:
        module.forward()
    assert guards.kind(caught.value, "own.networks:net") == kind
    assert guards.kind(caught.value, "resnet8") == "again"
    assert guards.kind(caught.value, "other:net") == "again"


def test_a_study_whose_disk_is_full_stops_the_search_and_keeps_whole_records(
    make_space: Make, open_ledger: Make, train: Make, full_disk: Make, tmp_path: Path
) -> None:
    space = make_space(search={"trials": 6, "arms": "none"})
    heard: list[str] = []
    ledger = open_ledger(space, Events(ended=[lambda record: heard.append(record.status)]))
    train(ledger, ledger.next(), (0.1, 0.2, 0.3))
    size = (tmp_path / STUDY_FILE).stat().st_size
    assert ledger.storage.journal.trouble is None
    with full_disk(size + 1200):  # not even the reserve helps
        assignment = ledger.next()
        for _ in range(3):
            train(ledger, assignment, (0.1, 0.2, 0.3))
            assignment = ledger.next()
            if assignment is None:
                break
    assert ledger.stopping
    assert ledger.end is not None
    assert ledger.end.why is Why.FAULT
    assert ledger.end.text.startswith("the disk is full: ")
    assert ledger.next() is None
    assert (tmp_path / STUDY_FILE).read_bytes().endswith(b"\n")
    again = open_ledger(space)
    complete = [record.status for record in again.records()].count("complete")
    assert complete == heard.count("complete"), "others heard what the study does not know"
    while (assignment := again.next()) is not None:
        train(again, assignment, (0.1, 0.2, 0.3))
    assert [record.status for record in again.records()] == ["complete"] * 6


def test_a_full_disk_uses_up_the_reserve_so_that_nothing_is_lost(
    make_space: Make, open_ledger: Make, train: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger(make_space(search={"trials": 6, "arms": "none"}))
    journal, reserve = ledger.storage.journal, tmp_path / "study.reserve"
    append = journal._file.append_logs

    def full(logs: list[dict[str, Any]]) -> None:
        if reserve.exists():
            (tmp_path / STUDY_FILE).open("a").write('{"torn')
            raise OSError(errno.ENOSPC, "No space left on device")
        append(logs)

    assert reserve.stat().st_size == RESERVE
    monkeypatch.setattr(journal._file, "append_logs", full)
    train(ledger, ledger.next(), (0.1, 0.2, 0.3))
    assert not reserve.exists()
    assert ledger.next() is None
    assert ledger.end is not None
    assert ledger.end.text.endswith("No space left on device")
    assert [record.status for record in read_records(tmp_path)] == ["complete"]


@pytest.mark.parametrize("whole", [False, True], ids=["study", "folder"])
def test_a_study_that_is_taken_away_stops_the_search_and_none_begins_in_its_place(
    whole: bool, make_space: Make, open_ledger: Make, train: Make, tmp_path: Path
) -> None:
    ledger = open_ledger(make_space(search={"trials": 6, "arms": "none"}))
    assignment = ledger.next()
    away = tmp_path.with_name("away")
    if whole:
        tmp_path.rename(away)
    else:
        (tmp_path / STUDY_FILE).unlink()
    train(ledger, assignment, (0.1, 0.2, 0.3))
    assert ledger.end is not None
    assert ledger.end.why is Why.FAULT
    assert ledger.end.text == f"{tmp_path / STUDY_FILE}: {GONE}"
    assert ledger.next() is None
    assert not (tmp_path / STUDY_FILE).exists()


def test_a_full_disk_is_explained_also_where_it_came_as_a_failed_run() -> None:
    said = "the disk is full: last.ckpt cannot be written.*resume with:\n  hksd search first --resume"
    with (
        pytest.raises(RunError, match=re.compile(said, re.DOTALL)),
        guards.disk_full_explained("hksd search first --resume"),
    ):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RunError("last.ckpt cannot be written") from error
    with pytest.raises(RunError, match="the teacher is too weak"), guards.disk_full_explained("hksd search first"):
        raise RunError("the teacher is too weak")
