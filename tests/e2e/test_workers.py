"""Workers that fail outside of a trial, a Ray that does not start, and files of the user's with names like ours.

One search meets one after the other, each fixture a command: Ray does not start, no worker can train, it completes;
then confirmations of it meet the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Any]
# In every worker of Ray, and nowhere else, one module of ours cannot be imported.
GONE = """
import sys

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name == "hksd_search.backend.trial":
            raise ModuleNotFoundError(f"No module named {name!r}")

if any("default_worker" in word for word in sys.orig_argv):
    sys.meta_path.insert(0, Gone())
"""
NETWORK = """
import search  # the user's own
assert search.mine
from torch import nn

def small(num_classes, in_channels, width=1.0):
    return nn.Sequential(nn.Conv2d(in_channels, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes))
"""
# No Ray starts: its first process ends at once, and is not waited for.
NO_RAY = {"RAY_gcs_storage": "nosuch", "RAY_gcs_server_port_wait_time_s": "0"}
BEST = "runs/one/export/best.yaml"
CONFIRM = ("confirm", "one", "--top", "1", "--seeds", "1")


def said(program: Any) -> str:
    """All that a command said, in one line."""
    return " ".join((program.out + program.err).split())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, write_space: Make, lay_traps: Make) -> Path:
    """A folder full of traps with a network of the user's own that imports a search.py of his own."""
    folder = tmp_path_factory.mktemp("traps")
    lay_traps(folder, python_path=True)
    (folder / "search.py").write_text("mine = True\n")
    (folder / "mine.py").write_text(NETWORK)
    student = {"model": "mine:small", "width": 1.0, "taps": ["1"], "classifier": "3"}
    terms = {"squeeze": {"weight": 0}}
    write_space(folder / "space.yaml", student=student, terms=terms, train={"epochs": 1}, search={"trials": 2})
    return folder


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that lets no worker train where the Python path names it."""
    folder = tmp_path_factory.mktemp("hooks")
    (folder / "sitecustomize.py").write_text(GONE)
    return str(folder)


@pytest.fixture(scope="module")
def without_ray(place: Path, hksd: Make) -> Any:
    """A search whose Ray did not start."""
    return hksd("search", "space.yaml", "--name", "one", cwd=place, **NO_RAY)


@pytest.fixture(scope="module")
def without_workers(without_ray: Any, place: Path, hooks: str, hksd: Make) -> Any:
    """The same search, resumed where no worker can train a trial."""
    return hksd("search", "one", "--resume", cwd=place, PYTHONPATH=hooks)


@pytest.fixture(scope="module")
def completed(without_workers: Any, place: Path, hksd: Make) -> Any:
    """The same search, resumed where nothing is in its way, with the folder of the traps on the Python path."""
    return hksd("search", "one", "--resume", cwd=place, PYTHONPATH=".")


def test_a_ray_that_does_not_start_is_tried_again_and_then_told_in_a_sentence(without_ray: Any) -> None:
    assert without_ray.process.returncode == 1, without_ray.err
    assert said(without_ray).count("it is tried once more") == 1
    assert said(without_ray).count("failed: Ray did not start on this machine, tried twice") == 1
    assert "wait until less else runs here" in said(without_ray)
    assert "hksd search one --resume" in said(without_ray)
    assert "Traceback" not in said(without_ray)


def test_a_fault_that_every_worker_meets_ends_the_search_at_once_with_its_cause(without_workers: Any) -> None:
    assert without_workers.process.returncode == 1, without_workers.err
    cause = "no worker can train a trial: ModuleNotFoundError: No module named 'hksd_search.backend.trial'"
    assert said(without_workers).count(cause) == 1
    assert said(without_workers).count("No module named") == 1
    assert "killed" not in said(without_workers)
    assert "Traceback" not in said(without_workers)
    assert "hksd search one --resume" in said(without_workers)


def test_neither_costs_a_trial_and_the_search_goes_on_later(completed: Any, place: Path, facts: Make) -> None:
    assert completed.process.returncode == 0, completed.err
    found = facts(place / "runs", "one")
    found.must_agree()
    assert [record.status for record in found.trained] == ["complete", "complete"]


def test_files_of_the_user_hide_no_module_from_a_search_where_the_python_path_names_their_folder(
    completed: Any, place: Path
) -> None:
    assert completed.process.returncode == 0, completed.err
    assert "2 complete" in completed.out
    assert (place / BEST).exists()


@pytest.mark.parametrize("path", [".", "{here}"])
def test_nor_from_a_run(path: str, completed: Any, place: Path, hksd: Make) -> None:
    done = hksd("train", BEST, cwd=place, PYTHONPATH=path.format(here=place))
    assert done.process.returncode == 0, done.err


def test_a_fault_that_every_worker_meets_ends_a_confirmation_with_its_cause(
    completed: Any, place: Path, hooks: str, hksd: Make
) -> None:
    done = hksd(*CONFIRM, cwd=place, PYTHONPATH=os.pathsep.join([hooks, str(place)]))
    assert done.process.returncode == 1
    assert "no worker can train a run: ModuleNotFoundError" in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_a_ray_that_does_not_start_ends_a_confirmation_with_a_sentence(completed: Any, place: Path, hksd: Make) -> None:
    done = hksd(*CONFIRM, cwd=place, **NO_RAY)
    assert done.process.returncode == 1
    assert "failed: Ray did not start on this machine, tried twice" in " ".join(done.err.split())
    assert "Traceback" not in done.err
