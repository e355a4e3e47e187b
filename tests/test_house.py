"""The floor plan in the README, the paths in the documentation and the packages in pyproject.toml match the tree."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = [README, ROOT / "spaces" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PRESENT = [path for path in DOCS if path.name != "LOG.md"]  # the log is history: old paths are right there
HOUSES = ("hksd", "search/hksd_search")
MADE_UP = {"hksd/terms/energy.py"}  # files that examples make

PATH = re.compile(r"(?<![\w/.~-])(?:hksd|search|tests|spaces|benchmarks|docs)/[\w./-]*")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
IMPORT = re.compile(r"^ *from (hksd[\w.]*) import ([\w, ]+)$", re.MULTILINE)

Drawing = Mapping[str, list[str] | None]
Tree = Mapping[str, set[str]]


def block_of(text: str) -> str:
    """The first block of code below the heading "The house"."""
    section = text.partition("\n## The house\n")[2].partition("\n## ")[0]
    return section.split("```")[1].strip("\n")


def drawn(block: str) -> Drawing:
    """Read the floor plan.

    A line without indentation names files or folders of the repository; one that is indented by two spaces names files
    or folders of the line without indentation above it; one that is indented further goes on with the line above it.
    Names end with two spaces, or where a name ends the line; the rest is words. A folder ends with a slash, and what
    follows a colon in its words are its modules, without ".py".

    Returns:
        What is drawn, by its path: of a folder the modules listed, None where it lists none; of a file None.
    """
    lines: list[str] = []
    for line in block.splitlines():
        if line.startswith("   "):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line.rstrip())
    found: dict[str, list[str] | None] = {}
    house = ""
    for line in lines:
        names, _, words = line.strip().partition("  ")
        above = house if line.startswith("  ") else ""
        for name in names.split():
            assert above + name not in found, f"{above + name} is drawn twice"
            colon = name.endswith("/") and ":" in words
            found[above + name] = words.rpartition(":")[2].split() if colon else None
        if not above:
            house = names.split()[0]
    return found


def tree_of(house: Path) -> Tree:
    """Names of the modules in each folder with a module, by its path below the repository ("hksd/run/")."""
    found: dict[str, set[str]] = {}
    for path in house.rglob("*.py"):
        modules = found.setdefault(path.parent.relative_to(ROOT).as_posix() + "/", set())
        modules |= {path.stem} - {"__init__"}
    return found


def faults(plan: Drawing, tree: Tree, houses: tuple[str, ...] = HOUSES) -> list[str]:
    """Where plan and tree differ. A folder of a house lists all of its modules or none; a house lists its files."""
    files = {f"{folder}{name}.py" for folder, names in tree.items() for name in names}
    inside = [path for path in plan if path.startswith(tuple(f"{house}/" for house in houses))]
    found = [f"{path} is drawn and not there" for path in inside if path not in files | tree.keys()]
    for folder, names in tree.items():
        listed = plan.get(folder)
        own = {path for path in plan if path.endswith(".py") and path.rpartition("/")[0] + "/" == folder}
        if folder.rstrip("/") in houses:
            found += [f"{folder}{name}.py has no place" for name in names if f"{folder}{name}.py" not in own]
        elif folder not in plan:
            found.append(f"{folder} has no place")
        elif listed is not None:
            found += [f"{folder}{name}.py has no place" for name in names - set(listed)]
            found += [f"{folder}{name}.py is drawn and not there" for name in set(listed) - names]
            found += [f"{folder}{name}.py is drawn twice" for name, count in Counter(listed).items() if count > 1]
    return sorted(found)


TREE: Tree = {path: names for house in HOUSES for path, names in tree_of(ROOT / house).items()}


def test_every_module_has_its_place_in_the_drawing_and_every_name_there_is_in_the_tree() -> None:
    assert faults(drawn(block_of(README.read_text(encoding="utf-8"))), TREE) == []


def test_whatever_else_the_drawing_names_is_there() -> None:
    plan = drawn(block_of(README.read_text(encoding="utf-8")))
    assert {f"{house}/" for house in HOUSES} <= plan.keys()
    assert [path for path in plan if not (ROOT / path).exists() or (ROOT / path).is_dir() != path.endswith("/")] == []


SKETCH = """
den/            a house
  top.py low.py   the words: of files are words
  run/          under way: loop
                tally
  terms/        one file each
data/           no code
""".strip("\n")
ROOMS: Tree = {"den/": {"top", "low"}, "den/run/": {"loop", "tally"}, "den/terms/": {"a", "b"}}


def test_the_drawing_is_read_as_it_stands() -> None:
    plan = {"den/": None, "den/top.py": None, "den/low.py": None, "den/run/": ["loop", "tally"], "den/terms/": None}
    assert drawn(SKETCH) == {**plan, "data/": None}
    assert faults(drawn(SKETCH), ROOMS, ("den",)) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda text: text.replace("top.py low.py", "top.py"), "den/low.py has no place"),
        (lambda text: text.replace("low.py", "low.py high.py"), "den/high.py is drawn and not there"),
        (lambda text: text.replace(" tally", ""), "den/run/tally.py has no place"),
        (lambda text: text.replace("tally", "tally count"), "den/run/count.py is drawn and not there"),
        (lambda text: text.replace("tally", "tally loop"), "den/run/loop.py is drawn twice"),
        (lambda text: text.replace("  terms/        one file each\n", ""), "den/terms/ has no place"),
        (lambda text: text.replace("  terms/", "  modes/  \n  terms/"), "den/modes/ is drawn and not there"),
    ],
)
def test_a_drawing_that_differs_is_noticed(change: Callable[[str], str], fault: str) -> None:
    assert faults(drawn(change(SKETCH)), ROOMS, ("den",)) == [fault]


def test_what_is_installed_are_the_packages_of_the_tree() -> None:
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs tomllib, of Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = [file.parent for house in HOUSES for file in (ROOT / house).rglob("__init__.py")]
    names = [".".join(folder.relative_to(ROOT).parts).removeprefix("search.") for folder in folders]
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted([*names, "hksd_search.spaces"])


@pytest.mark.parametrize("doc", PRESENT, ids=lambda path: path.relative_to(ROOT).as_posix())
class TestDocument:
    """Each page leads where it says."""

    def test_every_path_that_it_names_is_there(self, doc: Path) -> None:
        named = {found.rstrip(".") for found in PATH.findall(doc.read_text(encoding="utf-8"))} - MADE_UP
        assert [path for path in sorted(named) if not (ROOT / path).exists()] == []

    def test_every_link_to_a_file_leads_to_one(self, doc: Path) -> None:
        targets = [link for link in LINK.findall(doc.read_text(encoding="utf-8")) if "://" not in link]
        assert [link for link in targets if not (doc.parent / link).exists()] == []

    def test_every_import_that_it_shows_works(self, doc: Path) -> None:
        for module, names in IMPORT.findall(doc.read_text(encoding="utf-8")):
            found = import_module(module)
            assert [name for name in names.split(", ") if not hasattr(found, name)] == [], module


def test_a_path_is_found_wherever_it_stands_in_a_page() -> None:
    text = "See `hksd/x.py`, (`spaces/paper/`), python benchmarks/y.py; not ~/z/hksd/x or a-search/b. tests/t.py."
    assert [path.rstrip(".") for path in PATH.findall(text)] == [
        "hksd/x.py",
        "spaces/paper/",
        "benchmarks/y.py",
        "tests/t.py",
    ]
