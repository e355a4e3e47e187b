"""A mark tells whether a folder is the same one elsewhere."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hksd.errors import UserError
from hksd_search.backend.shared_folder import Mark, answered, fault, mark, unmark


@pytest.fixture
def made(tmp_path: Path) -> Mark:
    return mark(tmp_path / "runs")


def test_the_same_folder_has_no_fault_and_the_answer_is_seen(made: Mark) -> None:
    assert fault(made) is None
    assert answered(made, seconds=0)


def test_a_mark_and_the_answers_to_it_are_removed_and_nothing_else_is(made: Mark) -> None:
    folder = Path(made.path).parent
    (folder / "mine").write_text("x")
    other = mark(folder)
    fault(made)
    fault(made)
    unmark(made)
    assert {path.name for path in folder.iterdir()} == {"mine", Path(other.path).name}


def test_no_answer_is_left_where_none_is_wanted(made: Mark) -> None:
    assert fault(made, write=False) is None
    assert not answered(made, seconds=0)


def test_a_folder_of_the_same_name_that_is_another_one_is_told(made: Mark) -> None:
    elsewhere = replace(made, path=made.path + "0")
    assert "is another folder" in str(fault(elsewhere, seconds=0))


def test_a_folder_that_is_not_there_is_told_by_name(made: Mark, tmp_path: Path) -> None:
    elsewhere = replace(made, path=str(tmp_path / "none" / Path(made.path).name))
    assert f"there is no {tmp_path / 'none'}" in str(fault(elsewhere, seconds=0))


def test_a_mark_of_another_text_is_another_folder(made: Mark) -> None:
    assert "has another text" in str(fault(replace(made, text="other"), seconds=0))


def test_a_folder_that_cannot_be_written_is_told(made: Mark) -> None:
    path = Path(made.path)
    long = path.rename(path.with_name("x" * 250))  # that an answer, which is longer, cannot have
    assert "cannot be written" in str(fault(replace(made, path=str(long))))
    assert fault(replace(made, path=str(long)), write=False) is None


def test_a_mark_that_appears_late_is_waited_for(made: Mark) -> None:
    path = Path(made.path)
    hidden = path.rename(path.with_name("hidden"))
    threading.Timer(1.0, hidden.rename, [path]).start()
    begun = time.monotonic()
    assert fault(made, seconds=60) is None
    assert time.monotonic() - begun < 30


def test_no_answer_means_no(made: Mark) -> None:
    assert not answered(made, seconds=0.5)


def test_a_folder_that_cannot_be_written_here_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        mark(tmp_path / "file")


def test_the_check_runs_where_there_is_no_hksd(made: Mark, child: Callable[..., subprocess.Popen[str]]) -> None:
    from ray import cloudpickle

    from hksd_search.backend import shared_folder

    cloudpickle.register_pickle_by_value(shared_folder)
    try:
        job = cloudpickle.dumps((fault, made))
    finally:
        cloudpickle.unregister_pickle_by_value(shared_folder)
    code = (
        "import pickle, sys\n"
        "sys.modules['hksd'] = sys.modules['hksd_search'] = None\n"
        f"function, mark = pickle.loads({job!r})\n"
        "print(function(mark))"
    )
    process = child(code)
    output, errors = process.communicate(timeout=120)
    assert output.split() == ["None"], errors
