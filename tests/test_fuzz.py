"""Whatever stands in a file, `hksd space` answers it: exit code 0 or 2, in words, and soon."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hksd.schema import section_fields
from hksd.yaml import read_yaml
from hksd_search.cli import main
from hksd_search.space import space as spaces

SECONDS = 10  # of this process for one file; machines that are shared count no others
LONG = 80.0  # of the clock for each kind of file in the long run, so that it is through in about four minutes
BASE: dict[str, Any] = read_yaml(spaces.find("quickstart")).tree


def answer(path: Path, *words: str) -> tuple[int, str, float]:
    """Exit code, what was printed, and the seconds of `hksd space PATH`, run in this process."""
    said, argv, start = io.StringIO(), sys.argv, time.process_time()
    sys.argv = ["hksd", "space", str(path), "--samples", "1", *words]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.argv = argv
    return code, said.getvalue(), time.process_time() - start


def answered(path: Path, *words: str) -> None:
    code, said, seconds = answer(path, *words)
    assert code in (0, 2), said
    assert "Traceback" not in said
    assert said.strip()
    assert seconds < SECONDS


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in below for place in places(value, (*path, key)))]


def keys(kind: Any, depth: int = 4) -> set[str]:
    """All keys that the schema knows below a section."""
    if depth == 0:
        return set()
    fields = section_fields(kind)
    return set(fields) | {key for inner in fields.values() for key in keys(inner, depth - 1)}


def known_keys() -> list[str]:
    from hksd.config.run import RunConfig
    from hksd_search.space.settings import SearchConfig

    return sorted({*keys(RunConfig), *keys(SearchConfig), "one_of", "choice", "uniform", "log_uniform", "int", "off"})


NUMBERS = (
    st.sampled_from(
        [
            0,
            1,
            -1,
            2,
            0.5,
            1e-9,
            1e-320,
            1e9,
            1e30,
            10**30,
            2**63,
            2**70,
            -(10**20),
            math.inf,
            -math.inf,
            math.nan,
            True,
            0.999999999999,
        ]
    )
    | st.integers()
    | st.floats()
)
TEXTS = st.text(max_size=8) | st.sampled_from(
    [
        "",
        "6",
        "true",
        "1:30",
        "~nouser/x",
        "~",
        "a" * 300,
        "a" * 5000,
        "no:such",
        "resnet8",
        "resnet20",
        "resnet18",
        "folder",
        "imagenet",
        "a.b:c",
        "../..",
        "/dev/zero",
        "tpe",
        "grid",
        "pbt",
        "hyperband",
        "[",
        "\x85",
        "\u2028",
        "=x",
        "nan",
    ]
)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS


def trees() -> st.SearchStrategy[Any]:
    names = st.sampled_from(known_keys()) | st.text(max_size=6)
    ranges = st.one_of(
        st.fixed_dictionaries({"choice": st.lists(SCALARS, max_size=4)}),
        st.fixed_dictionaries(
            {"uniform": st.lists(NUMBERS, min_size=2, max_size=2)}, optional={"step": NUMBERS, "off": NUMBERS}
        ),
        st.fixed_dictionaries({"log_uniform": st.lists(NUMBERS, min_size=2, max_size=2)}),
        st.fixed_dictionaries({"int": st.lists(NUMBERS, min_size=2, max_size=2)}, optional={"step": NUMBERS}),
    )
    return st.recursive(
        SCALARS | ranges,
        lambda below: st.lists(below, max_size=4) | st.dictionaries(names, below, max_size=4),
        max_leaves=8,
    )


def mutated(data: st.DataObject, tree: dict[str, Any]) -> Any:
    """A good space with a few nodes replaced, taken away or added; mostly at a key that the schema knows."""
    tree = copy.deepcopy(tree)
    for _ in range(data.draw(st.integers(1, 3))):
        *above, last = data.draw(st.sampled_from([place for place in places(tree) if place] or [("data",)]))
        node = tree
        for key in above:
            node = node[key]
        what = data.draw(st.sampled_from(["replace", "add", "remove"]))
        if what == "remove":
            del node[last]
        elif what == "add" and isinstance(node, dict):
            node[data.draw(st.sampled_from(known_keys()))] = data.draw(trees())
        else:
            node[last] = data.draw(trees())
    return tree


def fuzz_trees(file: Path, data: st.DataObject) -> None:
    tree = mutated(data, BASE)
    for network in (tree.get("student"), tree.get("teacher")):  # a large one is slow, not wrong
        if isinstance(network, dict) and isinstance(network.get("width"), int | float) and network["width"] > 4:
            network["width"] = 4
    if isinstance(tree.get("data"), dict):
        tree["data"].pop("download", None)
    file.write_text(yaml.safe_dump(tree, allow_unicode=True, sort_keys=False), encoding="utf-8", errors="surrogatepass")
    answered(file)


def fuzz_bytes(file: Path, data: st.DataObject) -> None:
    content = bytearray(spaces.find("quickstart").read_bytes())
    pieces = st.binary(max_size=6) | st.sampled_from(
        [
            b"!!int ",
            b"&a ",
            b"*a",
            b"[",
            b"{",
            b"}",
            b"]",
            b"? ",
            b": ",
            b"- ",
            b"\n",
            b"\n---\n",
            b"'",
            b'"',
            b"|",
            b">",
            b"<<: ",
            b"%",
            b"\t",
            b"\0",
            b"#",
            b"[" * 200,
            b"!!python/name:os.system ",
            b"\xff\xfe",
            b"1:30",
            b"9" * 500,
            b"~",
        ]
    )
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 12))] = data.draw(pieces)
    file.write_bytes(content)
    answered(file)


def fuzz_override(file: Path, data: st.DataObject) -> None:
    file.write_bytes(spaces.find("quickstart").read_bytes())
    path = data.draw(st.sampled_from([".".join(map(str, place)) for place in places(BASE) if place]) | TEXTS)
    value = data.draw(
        TEXTS | trees().map(lambda tree: yaml.safe_dump(tree, default_flow_style=True, width=10**6).strip())
    )
    if "width" in path or "download" in path or "image_size" in path:
        return
    answered(file, f"--set={path}={value}")


FUZZERS = [fuzz_trees, fuzz_bytes, fuzz_override]
QUICK = settings(
    max_examples=6,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("fuzzer", FUZZERS, ids=lambda fuzzer: fuzzer.__name__)
def test_any_file_is_answered_in_words(tmp_path: Path, fuzzer: Any) -> None:
    QUICK(given(st.data())(lambda data: fuzzer(tmp_path / "tried.yaml", data)))()


@pytest.mark.slow
@pytest.mark.parametrize("fuzzer", FUZZERS, ids=lambda fuzzer: fuzzer.__name__)
def test_very_many_files_are_answered_in_words(tmp_path: Path, fuzzer: Any) -> None:
    """As many as come in `LONG` seconds, other ones each time; some 500 where two cores are idle."""
    few = settings(QUICK, max_examples=25, derandomize=False, database=None)
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        few(given(st.data())(lambda data: fuzzer(tmp_path / "tried.yaml", data)))()
