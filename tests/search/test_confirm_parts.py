"""A confirmation without Ray: what a run leaves when it fails, and data that has no test split."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hksd import data as datasets
from hksd.config.run import dump, from_tree
from hksd.data.settings import DataConfig
from hksd.errors import DataError
from hksd.teacher.teacher import FAMILIAR
from hksd_search import tables
from hksd_search.backend.stop_file import STOP_FILE
from hksd_search.backend.trial import FAULT_FILE, Workplace
from hksd_search.confirm import files
from hksd_search.confirm.contenders import Contender, Run, runs_of
from hksd_search.confirm.retrain import Job, work
from hksd_search.study import openings
from hksd_search.study.records import Record

Make = Callable[..., Any]


@pytest.fixture
def make_run(make_tree: Make, tmp_path: Path) -> Callable[..., Run]:
    """make_run(**sections): a run of a contender without a teacher's knowledge."""

    def make(**sections: Any) -> Run:
        config = from_tree(make_tree(**{"terms": {"ce": {"weight": 1.0}}, **sections}))
        record = Record(7, "complete", None, dump(config), {}, 2, 0.5, 1.0, None)
        return runs_of(Contender(record, config), [1000], tmp_path / "confirm")[0]

    return make


def work_on(run: Run, digits: Any, home: Path) -> Any:
    place = Workplace(str(home / "teachers"), str(home), json.dumps(dump(run.config)))
    return work(
        Job(run.key, json.dumps(dump(run.config)), str(run.folder)), digits, place, str(run.folder.parent.parent)
    )


def test_a_run_that_ends_has_a_result_that_counts(make_run: Make, digits: Any, tmp_path: Path) -> None:
    run = make_run()
    assert work_on(run, digits, tmp_path).fault is None
    result = run.result(digits.fingerprint)
    assert result is not None
    assert result["epochs"] == 2
    assert run.failure() is None


def test_a_loss_that_is_not_finite_is_kept_as_the_end_of_the_run(make_run: Make, digits: Any, tmp_path: Path) -> None:
    run = make_run(train={"lr": 1e12, "epochs": 3})
    ended = work_on(run, digits, tmp_path)
    assert "not finite" in ended.fault
    assert run.result(digits.fingerprint) is None
    assert run.failure() == ended.fault
    assert "Traceback" in (run.folder / FAULT_FILE).read_text()
    other = make_run(train={"lr": 0.1, "epochs": 3})
    assert other.folder == run.folder
    assert other.failure() is None, "the end of another configuration"


def test_another_fault_is_tried_again(make_run: Make, digits: Any, tmp_path: Path) -> None:
    run = make_run(student={"model": "nosuch.py:net"})
    assert work_on(run, digits, tmp_path).fault
    assert run.failure() is None


def test_a_run_that_is_told_to_stop_is_saved_and_has_no_result(make_run: Make, digits: Any, tmp_path: Path) -> None:
    run = make_run()
    run.folder.mkdir(parents=True)
    stop = run.folder.parent.parent / STOP_FILE
    stop.touch()
    assert work_on(run, digits, tmp_path).fault is None
    assert run.result(digits.fingerprint) is None
    stop.unlink()
    work_on(run, digits, tmp_path)
    assert run.result(digits.fingerprint) is not None


def test_data_without_a_test_split_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(np.full((8, 8), number, np.uint8)).save(tmp_path / "train" / name / f"{number}.png")
    config = DataConfig(name="folder", root=str(tmp_path), validation=0.25)
    datasets.load(config)
    with pytest.raises(DataError, match="no test split: looked for the folders"):
        datasets.check_test(config)


def test_openings_of_a_search_are_counted_wherever_they_were_recorded(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    assert openings.count(tmp_path) == 0
    openings.note(tmp_path, "hksd confirm", ["teacher"])
    openings.note(tmp_path / "export", "hksd evaluate", ["export"])
    assert openings.count(tmp_path) == 2


def test_that_a_loaded_teacher_may_know_the_validation_images_is_told() -> None:
    assert FAMILIAR in "".join(files.loaded({"teacher": {"familiar": True}}))
    assert files.loaded({"teacher": {}}) == []


@pytest.mark.parametrize("first", tables.FORMULA)
def test_no_cell_of_the_table_is_a_formula_and_numbers_stay_numbers(first: str, tmp_path: Path) -> None:
    said = f"{first}HYPERLINK(1)"
    row = {"run": said, "seed": -1, "val_accuracy": -0.5, "reason": said, "arm": None}
    facts = {"runs": [row]}
    with pytest.raises(KeyError):  # there are no figures for the text
        files.write_files(tmp_path, facts)
    with (tmp_path / "confirm.csv").open(newline="") as file:
        (read,) = csv.DictReader(file)
    assert read == {"run": f"'{said}", "seed": "-1", "val_accuracy": "-0.5", "reason": f"'{said}", "arm": ""}
