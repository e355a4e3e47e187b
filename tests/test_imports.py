"""Imports run one way: search -> hksd, and inside hksd from the terms up to the training."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "hksd").rglob("*.py"))
SEARCH = sorted((ROOT / "search").rglob("*.py"))
ABOVE = {
    "ray",
    "optuna",
    "mlflow",
    "typer",
    "rich",
    "pandas",
    "plotly",
    "scipy",
    "search",
    "spaces",
    "tests",
    "benchmarks",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, *, for_types: bool = True, late: bool = True) -> Iterator[str]:
    """Names of all modules that a file imports, by statement or by `import_module("...")`, also inside functions.

    Args:
        path: the file.
        for_types: with those under ``if TYPE_CHECKING``.
        late: with those inside functions.
    """
    package = name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not for_types:
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not late:
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) + 1 - node.level], *([node.module] if node.module else [])])
            source = base if node.level else node.module or ""
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and "import" in ast.dump(node.func) and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value
        for below in ast.iter_child_nodes(node):
            yield from walk(below)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")))


def test_the_files_are_found_and_read(tmp_path: Path) -> None:
    assert {"hksd.train", "hksd.loop", "hksd.terms", "hksd.terms.squeeze"} <= {name_of(path) for path in CORE}
    assert {"torch", "hksd.checkpoint"} <= set(imported(ROOT / "hksd" / "loop.py"))
    assert "hksd.data" in set(imported(ROOT / "hksd" / "train.py"))


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_knows_no_ray_no_optuna_no_mlflow_no_terminal_and_no_search(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & ABOVE


def test_modules_of_the_core_do_not_import_each_other_in_a_circle() -> None:
    names = {name_of(path) for path in CORE}
    # A package is not below its own modules: it only lists them.
    graph = {
        name_of(path): {
            name for name in imported(path, for_types=False, late=False) if name in names and name != name_of(path)
        }
        for path in CORE
    }
    for module, needed in graph.items():
        parent = module.rpartition(".")[0]
        needed.discard(parent if parent in graph and module in graph[parent] else "")
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle
    for lower, upper in (
        ("hksd.errors", "hksd.schema"),
        ("hksd.terms", "hksd.config"),
        ("hksd.config", "hksd.loop"),
        ("hksd.loop", "hksd.train"),
        ("hksd.teacher", "hksd.train"),
    ):
        assert order.index(lower) < order.index(upper)


@pytest.mark.parametrize("path", SEARCH, ids=name_of)
def test_only_the_tracking_imports_mlflow(path: Path) -> None:
    if name_of(path) != "search.tracking":
        assert "mlflow" not in {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", [path for path in CORE + SEARCH if name_of(path) != "search.cli"], ids=name_of)
def test_nothing_imports_the_command_line_other_than_for_its_types(path: Path) -> None:
    found = set(imported(path, for_types=False))
    assert not [name for name in found if name == "search.cli" or name.startswith("search.cli.")]


def test_spaces_are_data_alone() -> None:
    found = [path for path in (ROOT / "spaces").rglob("*.py") if path.name != "__init__.py"]
    assert not found


def run(child: Callable[..., subprocess.Popen[str]], code: str) -> list[str]:
    process = child(code)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output.split()


def test_importing_hksd_alone_loads_next_to_nothing(child: Callable[..., subprocess.Popen[str]]) -> None:
    absent = ["torch", "torchvision", "numpy", "ray", "optuna", "mlflow", "pydantic"]
    assert run(child, f"import sys, hksd; print(*[name for name in {absent!r} if name in sys.modules])") == []


def test_importing_the_core_loads_no_search_and_leaves_noise_and_threads_alone(
    child: Callable[..., subprocess.Popen[str]],
) -> None:
    absent = [*ABOVE, "torchvision", "sklearn", "onnx"]
    found = run(
        child,
        "import sys, torch; torch.manual_seed(5); torch.set_num_threads(3); state = torch.get_rng_state()\n"
        "import hksd.train, hksd.export\n"
        "print(torch.equal(state, torch.get_rng_state()), torch.get_num_threads())\n"
        f"print(*[name for name in {absent!r} if name in sys.modules])",
    )
    assert found == ["True", "3"]
