"""What a command imports: starting fast means leaving out what the command does not need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SAY = """
import json, sys
from hksd_search import cli
sys.argv = ["hksd", *sys.argv[1:]]
try:
    cli.main()
finally:
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
RUN = """
data: {name: digits, limit: 200}
teacher: {model: resnet8, width: 0.25, epochs: 1}
student: {model: resnet8, width: 0.25}
terms: {ce: {weight: 0.1}, kd: {weight: 0.9}}
train: {epochs: 1, device: cpu}
"""
CORE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {"ray", "optuna", "mlflow", "onnxruntime", "onnxscript"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from hksd_search import cli
sys.argv = ["hksd", *sys.argv[1:]]
cli.main()
"""
SEARCHING = {"ray", "optuna", "mlflow", "sqlalchemy"}
EXPORTING = {"onnx", "onnxscript", "onnxruntime"}


def imported(*words: object, cwd: Path) -> set[str]:
    """Top-level modules that `hksd` with these words has imported at its end."""
    command = [sys.executable, "-c", SAY, *map(str, words)]
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return set(json.loads(ended.stdout.splitlines()[-1]))


@pytest.mark.parametrize("words", [["--help"], ["search", "--help"], ["train", "--help"]])
def test_help_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    heavy = SEARCHING | EXPORTING | {"torch", "torchvision", "numpy", "sklearn", "scipy", "pyarrow"}
    assert imported(*words, cwd=tmp_path) & heavy == set()


def test_a_run_with_its_teacher_and_its_evaluation_need_nothing_of_a_search(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    unwanted = SEARCHING | EXPORTING | {"torchvision"}
    for words in (["teacher", "run.yaml"], ["train", "run.yaml", "--out", "out"], ["evaluate", "out"]):
        found = imported(*words, cwd=tmp_path)
        assert "torch" in found
        assert found & unwanted == set(), words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["search", "quickstart"], "error: optuna is not installed: pip install 'hksd[search]'"),
        (["space", "quickstart"], "error: optuna is not installed: pip install 'hksd[search]'"),
        (["train", "kd", "--set", "train.epochs=x"], "error:"),
    ],
)
def test_where_only_the_core_is_installed_a_command_that_needs_more_names_the_install_line(
    words: list[str], said: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", CORE, *words]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
