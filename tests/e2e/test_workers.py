"""Workers that fail outside of a trial, a Ray that does not start, and files of the user's with names like ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Any]
HKSD = Path(sys.executable).with_name("hksd")  # as it is installed: only so the working directory is not on the path
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
TRAP = "raise SystemExit('a file of the user hides a module: ' + __file__)\n"
NETWORK = """
import search  # the user's own
from torch import nn

def small(num_classes, in_channels, width=1.0):
    return nn.Sequential(nn.Conv2d(in_channels, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes))
"""


def run(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command to its end."""
    clean = {key: value for key, value in os.environ.items() if key not in ("HKSD_RUNS", "MLFLOW_TRACKING_URI")}
    return subprocess.run(
        [HKSD, *map(str, words)], cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, write_space: Make) -> Path:
    """A folder full of traps in which a search of two trials has ended."""
    folder = tmp_path_factory.mktemp("traps")
    write_space(folder / "space.yaml", train={"epochs": 1}, search={"trials": 2})
    for name in ("search", "spaces", "hksd", "hksd_search", "hksd_spaces", "yaml", "torch", "statistics"):
        (folder / f"{name}.py").write_text(TRAP)
    for name in ("tests", "hksd.d", "optuna"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(TRAP)
    done = run("search", "space.yaml", "--name", "first", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "2 complete" in done.stdout
    return folder


def test_files_of_the_user_that_are_called_like_modules_hide_none_from_a_search(searched: Path) -> None:
    assert (searched / "runs" / "first" / "export" / "best.yaml").exists()


def test_nor_from_a_run_and_a_confirmation(searched: Path) -> None:
    done = run("train", "runs/first/export/best.yaml", cwd=searched)
    assert done.returncode == 0, done.stderr
    done = run("confirm", "first", "--top", "1", "--seeds", "1", cwd=searched)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [".", "{here}"])
def test_nor_where_the_python_path_names_the_folder(path: str, searched: Path, write_space: Make) -> None:
    for name in ("hksd_search", "yaml", "torch", "statistics"):  # these Python itself would take from there
        (searched / f"{name}.py").unlink(missing_ok=True)
    if (searched / "optuna").exists():
        (searched / "optuna" / "__init__.py").unlink()
        (searched / "optuna").rmdir()
    where = path.format(here=searched)
    if path == ".":
        (searched / "search.py").write_text("mine = True\n")
        (searched / "mine.py").write_text(NETWORK)
        student = {"model": "mine:small", "width": 1.0, "taps": ["1"], "classifier": "3"}
        write_space(searched / "own.yaml", student=student, terms={"squeeze": {"weight": 0}}, train={"epochs": 1})
        done = run("search", "own.yaml", "--trials", "2", "--name", "own", cwd=searched, PYTHONPATH=where)
        assert done.returncode == 0, done.stderr
        assert "2 complete" in done.stdout
    else:
        done = run("confirm", "first", "--top", "1", "--seeds", "2", cwd=searched, PYTHONPATH=where)
        assert done.returncode == 0, done.stderr
        done = run("train", "runs/first/export/best.yaml", cwd=searched, PYTHONPATH=where)
        assert done.returncode == 0, done.stderr


def test_a_fault_that_every_worker_meets_ends_the_search_at_once_with_its_cause_and_nothing_is_lost(
    write_space: Make, facts: Make, tmp_path: Path
) -> None:
    write_space(tmp_path / "space.yaml", train={"epochs": 1}, search={"trials": 2})
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "sitecustomize.py").write_text(GONE)
    done = run("search", "space.yaml", "--name", "one", cwd=tmp_path, PYTHONPATH=str(tmp_path / "hooks"))
    assert done.returncode == 1
    said = " ".join((done.stdout + done.stderr).split())
    cause = "no worker can train a trial: ModuleNotFoundError: No module named 'hksd_search.backend.trial'"
    assert said.count(cause) == 1
    assert said.count("No module named") == 1
    assert "killed" not in said
    assert "Traceback" not in said
    assert "hksd search one --resume" in said
    done = run("search", "one", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = facts(tmp_path / "runs", "one")
    found.must_agree()
    assert [record.status for record in found.trained] == ["complete", "complete"]

    again = run("confirm", "one", "--seeds", "1", "--top", "1", cwd=tmp_path, PYTHONPATH=str(tmp_path / "hooks"))
    assert again.returncode == 1
    assert "no worker can train a run: ModuleNotFoundError" in " ".join(again.stderr.split())
    assert "Traceback" not in again.stderr


def test_a_ray_that_does_not_start_is_tried_again_and_then_told_in_a_sentence_and_the_search_goes_on_later(
    write_space: Make, tmp_path: Path
) -> None:
    write_space(tmp_path / "space.yaml", train={"epochs": 1}, search={"trials": 1})
    impatient = {"RAY_gcs_server_port_wait_time_s": "0"}  # no start is quick enough
    done = run("search", "space.yaml", "--name", "one", cwd=tmp_path, **impatient)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, said
    assert said.count("it is tried once more") == 1
    assert said.count("failed: Ray did not start on this machine, tried twice") == 1
    assert "wait until less else runs here" in said
    assert "hksd search one --resume" in said
    assert "Traceback" not in said
    done = run("search", "one", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("confirm", "one", "--top", "1", "--seeds", "1", cwd=tmp_path, **impatient)
    assert done.returncode == 1
    assert "failed: Ray did not start on this machine, tried twice" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
