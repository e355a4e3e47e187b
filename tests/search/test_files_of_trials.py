"""A trial is complete when its student is on disk: not before, and not when that is gone again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from hksd import data as datasets
from hksd.errors import UserError
from hksd.fit import RESULT_FILE, WEIGHTS_FILE, unfinished
from hksd.run import checkpoint
from hksd_search.backend import trial as trials
from hksd_search.backend.tuning import LedgerSearcher
from hksd_search.ending import Why
from hksd_search.export import export_trial
from hksd_search.ledger import Events, Ledger
from hksd_search.study import trial_files
from hksd_search.study.reading import SearchFolder
from hksd_search.study.records import read_records, trial_folder

Make = Callable[..., Any]
EPOCHS = 2


class Tune:
    """Trains what a ledger hands out, in this process, and tells it what Tune would tell.

    Attributes:
        at: called with each report before the ledger hears of it.
    """

    def __init__(self, ledger: Ledger, cache_dir: Path, monkeypatch: pytest.MonkeyPatch):
        self.ledger, self.cache_dir, self.searcher = ledger, cache_dir, LedgerSearcher(ledger, ledger.folder, {})
        self.at: Callable[[dict[str, Any]], object] = lambda _: None
        self.reports: list[dict[str, Any]] = []
        monkeypatch.setattr(trials.tune, "report", self.report)

    def report(self, told: dict[str, Any]) -> None:
        self.at(told)
        self.reports.append(told)
        self.searcher.on_trial_result("one", told)

    def train(self, limit: Any = None) -> bool:
        """Train one trial, where it is to be with a disk of that many bytes."""
        given = self.searcher.suggest("one")
        if not isinstance(given, dict):
            return False
        self.reports = []
        shared, data = given["config"], datasets.load(self.ledger.space.middle({}).data)
        with limit or nullcontext():
            trials.run_trial(
                given,
                data=data,
                search=str(self.ledger.folder),
                cache_dir=str(self.cache_dir),
                home=str(Path.cwd()),
                shared=shared,
            )
        self.searcher.on_trial_complete("one", self.reports[-1])
        return True


@pytest.fixture
def begin(
    make_space: Make, open_ledger: Make, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Tune]]:
    """begin(): the search of this test as a process would find it, that goes on where the one before stopped."""
    space = make_space(
        data={"name": "digits", "limit": 100},
        student={"model": "resnet8", "width": 0.25},
        terms={"ce": {"weight": 1.0}},
        train={"epochs": EPOCHS, "lr": {"log_uniform": [0.01, 0.1]}, "device": "cpu"},
        search={"trials": 2, "arms": "none", "scheduler": "none"},
    )

    def go(tidy: bool = False) -> Tune:
        ended = [lambda record: trial_files.tidy(tmp_path, record)] if tidy else []
        return Tune(open_ledger(space, Events(ended=ended)), cache_dir, monkeypatch)

    yield go


def statuses(folder: Path) -> list[str]:
    return [record.status for record in read_records(folder)]


def test_a_trial_whose_student_finds_no_room_is_not_complete_and_becomes_so_without_training_again(
    begin: Make, full_disk: Make, tmp_path: Path
) -> None:
    search, trial = begin(tidy=True), trial_folder(tmp_path, 0)

    def fill(report: dict[str, Any]) -> None:
        if report["epoch"] == EPOCHS and "fault" not in report:  # its checkpoint is written, its student is not
            limit.__enter__()

    limit, search.at = full_disk(5000), fill
    try:
        search.train()
    finally:
        limit.__exit__(None, None, None)
    assert "cannot be written" in search.reports[-1]["fault"]
    assert search.ledger.end.why is Why.FAULT
    assert "the disk is full: " in search.ledger.end.text
    assert WEIGHTS_FILE in search.ledger.end.text
    assert statuses(tmp_path) == ["interrupted"]
    assert unfinished(trial) == f"{WEIGHTS_FILE} is missing"

    again = begin(tidy=True)
    assert again.train()
    assert [report["epoch"] for report in again.reports] == [EPOCHS], "it was trained again"
    assert again.train()
    assert not again.train()
    assert statuses(tmp_path) == ["complete"] * 2
    for number in (0, 1):
        trial = trial_folder(tmp_path, number)
        assert unfinished(trial) is None
        assert not list(trial.glob("*.ckpt")), "checkpoints stay beside a student that is whole"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda trial: cut(trial / WEIGHTS_FILE), "student.safetensors is damaged"),
        (lambda trial: (trial / WEIGHTS_FILE).write_bytes(b""), "student.safetensors is damaged"),
        (lambda trial: (trial / WEIGHTS_FILE).unlink(), "student.safetensors is missing"),
        (lambda trial: cut(trial / RESULT_FILE), "result.json is damaged"),
        (lambda trial: (trial / RESULT_FILE).write_text("[]"), "result.json is damaged"),
        (lambda trial: (trial / RESULT_FILE).unlink(), "result.json is missing"),
    ],
    ids=["half a student", "no bytes", "no student", "half a result", "another result", "no result"],
)
def test_what_is_wrong_with_the_files_of_a_run_is_said(
    damage: Callable[[Path], object], fault: str, whole_trial: Path, tmp_path: Path
) -> None:
    for name in (WEIGHTS_FILE, RESULT_FILE):
        (tmp_path / name).write_bytes((whole_trial / name).read_bytes())
    assert unfinished(tmp_path) is None
    damage(tmp_path)
    assert unfinished(tmp_path) == fault


@pytest.fixture(scope="module")
def whole_trial(tmp_path_factory: pytest.TempPathFactory, make_config: Make, make_data: Make) -> Path:
    """Folder of a run that has ended."""
    from hksd.fit import fit

    folder = tmp_path_factory.mktemp("whole")
    fit(make_config(teacher=None, train={"epochs": 1}), data=make_data(40, 20), out_dir=folder)
    return folder


@pytest.mark.parametrize("kept", [False, True], ids=["from scratch", "from its checkpoint"])
def test_a_complete_trial_whose_student_is_gone_is_trained_again_under_its_number_to_the_same_student(
    kept: bool, begin: Make, tmp_path: Path
) -> None:
    search, trial = begin(tidy=not kept), trial_folder(tmp_path, 0)
    while search.train():
        pass
    before, weights = read_records(tmp_path), load_file(trial / WEIGHTS_FILE)
    assert (trial / checkpoint.LAST).exists() is kept
    cut(trial / WEIGHTS_FILE)
    found = SearchFolder("one", tmp_path, before, {"arms": "none"})
    with pytest.raises(UserError, match=r"student.safetensors is damaged; `hksd search .* --resume` trains it again"):
        export_trial(found, 0)

    gone = trial_files.mend(tmp_path)
    assert gone == {0: f"{WEIGHTS_FILE} is damaged"}
    assert "trial 0 (student.safetensors is damaged); trained again" in trial_files.told(gone)
    assert statuses(tmp_path) == ["interrupted", "complete"]
    assert not trial_files.mend(tmp_path)
    assert not list(trial_folder(tmp_path, 1).glob("*.ckpt")), "what a process that died had left"

    if not kept:  # stopped while it is trained again, it is not complete
        stopped = begin()
        given = stopped.searcher.suggest("one")
        stopped.ledger.report(given["number"], {**before[0].__dict__, "epoch": 1, "seconds": 1.0})
        stopped.ledger.stop(Why.INTERRUPTED)
        stopped.ledger.finish(given["number"])
        assert statuses(tmp_path) == ["interrupted", "complete"]

    again = begin()
    assert again.train()
    assert [report["epoch"] for report in again.reports] == ([EPOCHS] if kept else [1, 2])
    assert not again.train(), "more was trained than what was gone"
    after = read_records(tmp_path)
    assert [(r.number, r.status, r.config, r.val_accuracy) for r in after] == [
        (r.number, r.status, r.config, r.val_accuracy) for r in before
    ]
    assert (after[0].seconds > before[0].seconds) is not kept, "what it took counts"
    assert all((value == weights[name]).all() for name, value in load_file(trial / WEIGHTS_FILE).items())
    assert json.loads((trial / RESULT_FILE).read_text())["val_accuracy"] == after[0].val_accuracy


def test_a_search_that_has_not_begun_has_nothing_to_mend(tmp_path: Path) -> None:
    assert trial_files.mend(tmp_path) == {}
