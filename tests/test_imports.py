"""Imports run one way, without circles: hksd_search -> hksd, and each room knows only what it should."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "hksd").rglob("*.py"))
SEARCH = sorted((ROOT / "search" / "hksd_search").rglob("*.py"))
ABOVE = {
    "ray",
    "optuna",
    "mlflow",
    "typer",
    "rich",
    "pandas",
    "plotly",
    "scipy",
    "hksd_search",
    "search",
    "spaces",
    "tests",
    "benchmarks",
}
# What the modules of a folder of the search must not know.
BLIND = {
    "space": {"ray", "mlflow"},
    "strategy": {"ray", "mlflow"},
    "study": {"ray"},
    "tracking": {"ray"},
    "report": {"ray", "mlflow"},
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "search" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """Names of all modules that a file imports, by statement or by `import_module("...")`.

    Also inside functions and under ``if TYPE_CHECKING``.
    """
    package = name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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


def arrows(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which files import which; ``from package import module`` is an arrow to the module, not to the package."""
    found: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = {f"{node.module}.{alias.name}" for alias in node.names}
                targets = modules if modules <= files.keys() else {node.module, *modules}
            else:
                continue
            found[name] |= targets & files.keys() - {name}
    return found


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The files of a circle, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_the_files_are_found_and_read() -> None:
    assert {"hksd.fit", "hksd.run.loop", "hksd.terms", "hksd.terms.squeeze"} <= {name_of(path) for path in CORE}
    assert {"hksd_search.ledger", "hksd_search.backend.tuning"} <= {name_of(path) for path in SEARCH}
    assert {"torch", "hksd.run.checkpoint"} <= set(imported(ROOT / "hksd" / "run" / "loop.py"))
    assert "hksd.data" in set(imported(ROOT / "hksd" / "fit.py"))


def test_no_file_imports_another_in_a_circle_not_even_inside_a_function_or_for_its_types() -> None:
    graph = arrows({name_of(path): path for path in [*CORE, *SEARCH]})
    assert circle(graph) == []


def test_a_circle_is_found_wherever_its_imports_stand(tmp_path: Path) -> None:
    texts = {
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import b\n",
        "b": "def late():\n    from c import x\n",
        "c": "import a\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    graph = arrows({name: tmp_path / f"{name}.py" for name in texts})
    assert set(circle(graph)) == {"a", "b", "c"}
    assert circle(graph | {"c": set()}) == []


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_knows_no_ray_no_optuna_no_mlflow_no_terminal_and_no_search(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & ABOVE


def test_inside_the_core_terms_are_below_the_configuration_and_the_loop_below_fit() -> None:
    order = list(TopologicalSorter(arrows({name_of(path): path for path in CORE})).static_order())
    for lower, upper in (
        ("hksd.errors", "hksd.schema"),
        ("hksd.terms", "hksd.config.run"),
        ("hksd.models.size", "hksd.teacher.plan"),
        ("hksd.config.run", "hksd.run.loop"),
        ("hksd.run.loop", "hksd.fit"),
        ("hksd.teacher.prepare", "hksd.fit"),
    ):
        assert order.index(lower) < order.index(upper)


@pytest.mark.parametrize("path", SEARCH, ids=name_of)
def test_each_room_of_the_search_knows_only_what_it_should(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    room = path.relative_to(ROOT / "search" / "hksd_search").parts[0]
    assert not roots & BLIND.get(room, set())
    if room != "tracking":
        assert "mlflow" not in roots


def test_rooms_that_know_no_ray_do_not_load_it_by_way_of_others(child: Callable[..., subprocess.Popen[str]]) -> None:
    mine = [name_of(path) for path in SEARCH if name_of(path).split(".")[1:2] in (["space"], ["strategy"], ["study"])]
    code = f"import importlib, sys; [importlib.import_module(name) for name in {mine!r}]\n"
    assert run(child, code + "print(*[name for name in ('ray', 'mlflow') if name in sys.modules])") == []


@pytest.mark.parametrize("path", [path for path in CORE + SEARCH if name_of(path) != "hksd_search.cli"], ids=name_of)
def test_nothing_imports_the_command_line(path: Path) -> None:
    assert "hksd_search.cli" not in set(imported(path))


def test_spaces_are_data_alone() -> None:
    found = [path for path in (ROOT / "spaces").rglob("*.py") if path != ROOT / "spaces" / "__init__.py"]
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
        "import hksd.fit, hksd.deploy.export\n"
        "print(torch.equal(state, torch.get_rng_state()), torch.get_num_threads())\n"
        f"print(*[name for name in {absent!r} if name in sys.modules])",
    )
    assert found == ["True", "3"]
