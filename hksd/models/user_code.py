"""The source files that a network of the user's own stands on: its module, and what that imports of the user's own.

Read from the text of the files, so nothing runs, and the answer is the same in every process.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

INSTALLED = {"site-packages", "dist-packages"}  # folders of what is installed and does not change under a name
OURS = ("hksd", "hksd_search")
_STANDARD = tuple(Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "platstdlib"))


def code_hash(modules: Iterable[str]) -> str | None:
    """Hash of the files of `modules` and of all that they import of the user's own, however deep; None without a file.

    What is the user's own lies below the working directory or below the folder that holds the first module's package,
    is not installed, and belongs neither to Python nor to hksd. Of a compiled module the file itself counts.
    """
    files = _files(list(dict.fromkeys(modules)))
    if len(files) == 1:  # the same key as before imports were followed
        return hashlib.sha256(next(iter(files.values())).read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(f"{name}:{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest() if files else None


def _files(modules: list[str]) -> dict[str, Path]:
    """File of every module, by its name."""
    importlib.invalidate_caches()
    roots = [Path.cwd().resolve(), *_root(modules[0])]
    found: dict[str, Path] = {}
    waiting, seen = [*modules], set(modules)
    while waiting:
        name = waiting.pop()
        spec = _spec(name)
        file = Path(spec.origin).absolute() if spec is not None and spec.origin and spec.has_location else None
        if spec is None:
            continue
        if file is not None and file.is_file() and (name == modules[0] or _own(file, roots)):
            found[name] = file
        elif spec.origin is not None:  # not the user's; what is left is a folder without a file of its own
            continue
        package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
        for other in [*_parents(name), *(_imported(file, package) if file is not None else ())]:
            if other not in seen and other.partition(".")[0] not in OURS:
                seen.add(other)
                waiting.append(other)
    return found


def _root(name: str) -> list[Path]:
    """The folder that holds the top package of a module; for an installed one, that package alone."""
    top = name.partition(".")[0]
    spec = _spec(top)
    if spec is None:
        return []
    places = spec.submodule_search_locations
    where = Path(next(iter(places))) if places else Path(spec.origin).parent if spec.origin else None
    if where is None:
        return []
    inside = places is None or not INSTALLED & set(where.resolve().parts)
    return [where.resolve().parent if places and inside else where.resolve()]


def _own(file: Path, roots: Iterable[Path]) -> bool:
    """Whether a file, or what a link points to, lies below one of the folders, and not in an installation below it."""
    if any(file.resolve().is_relative_to(folder) for folder in _STANDARD):
        return False
    return any(
        path.is_relative_to(root) and not INSTALLED & set(path.relative_to(root).parts)
        for path in (file, file.resolve())
        for root in roots
    )


def _spec(name: str) -> ModuleSpec | None:
    """Where a module would be imported from; nothing is imported."""
    top, *deeper = name.split(".")
    if top in sys.builtin_module_names:
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # the latter: a module without a spec, as __main__
        return None
    for count in range(1, len(deeper) + 1):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join((top, *deeper[:count])), spec.submodule_search_locations)
    return spec


def _parents(name: str) -> Iterator[str]:
    """The packages that are imported with a module."""
    while name := name.rpartition(".")[0]:
        yield name


def _imported(file: Path, package: str) -> Iterator[str]:
    """Names of modules that a source file imports anywhere in it; of ``from a import b`` both a and a.b."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # a compiled module
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):  # also one inside a function
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from filter(None, (base, *(f"{base}.{alias.name}" for alias in node.names)))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value
