"""A teacher's cache sees edits of the code behind a factory: what counts as that code, and what does not."""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hksd.config.run import RunConfig
from hksd.data import DataSet
from hksd.device import precision
from hksd.models import user_code
from hksd.models.user import source_hash
from hksd.teacher import plan

NUMBERS = itertools.count()

FACTORIES = """
import functools
import json
import torch
from torch import nn
from {m}_blocks import Net
from {m}_pack.heads import Head as Other
import {m}_lone, {m}_lib.tool

def decorated(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*args, **kwargs)
    return call

def bare(function):
    return lambda classes: function(classes)

class Maker:
    def __init__(self): self.features = 4
    def make(self, classes): return Net(classes)
    def __call__(self, classes): return Net(classes)
    @classmethod
    def of_the_class(cls, classes): return Net(classes)

small = functools.partial(Net, features=3)
nested = functools.partial(small, classes=7)
table = {{"a": lambda classes: Net(classes)}}
from_a_dict = table["a"]
wrapped = decorated(Net)
hidden = bare(Net)
method = Maker().make
instance = Maker()
of_the_class = Maker.of_the_class

def late(classes):
    import importlib
    from {m}_late import head
    return importlib.import_module("{m}_named").head
"""
FILES = {
    "{m}": FACTORIES,
    "{m}_blocks": "from {m}_deeper import width\nfrom torch import nn\nclass Net(nn.Module):\n    pass\n",
    "{m}_deeper": "import {m}_blocks\nwidth = 3\n",
    "{m}_pack/__init__": "",
    "{m}_pack/heads": "from .parts import *\nfrom . import more\nclass Head:\n    pass\n",
    "{m}_pack/parts": "from .inner.leaf import a\n",
    "{m}_pack/more": "",
    "{m}_pack/inner/leaf": "a = 1\n",
    "{m}_lone": "",
    "{m}_lib/tool": "",
    "{m}_late": "head = 1\n",
    "{m}_named": "",
}
CODE = tuple(FILES)
KINDS = ("Net", "small", "nested", "from_a_dict", "wrapped", "hidden", "method", "instance", "of_the_class", "late")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of a module in the working directory that imports others of the user's own."""
    name, known = f"coded{next(NUMBERS)}", set(sys.modules)
    texts = {path.format(m=name): text for path, text in FILES.items()}
    for path, text in {**texts, f"{name}_unused": ""}.items():
        file = tmp_path / f"{path}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(m=name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for other in set(sys.modules) - known:
        if other.startswith("coded"):
            del sys.modules[other]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_factory_stands_on_the_users_own_files(kind: str, module: str, tmp_path: Path) -> None:
    before = source_hash(f"{module}:{kind}")
    assert source_hash(f"{module}:{kind}") == before
    (tmp_path / f"{module}_blocks.py").open("a").write("# edited\n")
    assert source_hash(f"{module}:{kind}") != before


@pytest.mark.parametrize("path", CODE)
def test_an_edit_of_any_file_that_is_imported_however_deep_is_seen(path: str, module: str, tmp_path: Path) -> None:
    before = source_hash(f"{module}:small")
    (tmp_path / f"{path.format(m=module)}.py").open("a").write("# edited\n")
    assert source_hash(f"{module}:small") != before


def test_what_is_not_imported_or_not_the_users_does_not_count(module: str, tmp_path: Path) -> None:
    before = source_hash(f"{module}:small")
    (tmp_path / f"{module}_unused.py").write_text("# edited\n")
    (tmp_path / "json.py").write_text("# hidden by Python's own\n")
    assert source_hash(f"{module}:small") == before
    assert set(user_code._files([module])) == {
        *(name.format(m=module).replace("/", ".").removesuffix(".__init__") for name in CODE)
    }


def test_an_installed_package_counts_by_its_own_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"coded{next(NUMBERS)}"
    place = tmp_path / ".venv" / "site-packages"
    (place / name).mkdir(parents=True)
    (place / name / "__init__.py").write_text("")
    (place / name / "nets.py").write_text(f"import {name}_other\nfrom . import parts\n")
    (place / name / "parts.py").write_text("")
    (place / f"{name}_other.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(place)
    assert set(user_code._files([f"{name}.nets"])) == {name, f"{name}.nets", f"{name}.parts"}


def test_one_file_alone_has_the_hash_of_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"coded{next(NUMBERS)}"
    (tmp_path / f"{name}.py").write_text("import torch\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert user_code.code_hash([name]) == hashlib.sha256(b"import torch\n").hexdigest()


def test_a_stored_view_of_the_same_weights_in_edited_code_is_another_view(
    module: str, make_config: Callable[..., RunConfig], digits: DataSet, tmp_path: Path
) -> None:
    weights = SimpleNamespace(model=nn.Linear(2, 2))
    full = precision.resolve("float32", torch.device("cpu"))

    def address(model: str) -> str:
        config = make_config(terms={"kd": {}}, teacher={"model": model, "width": 1})
        return plan._address(config, digits, weights, full)  # type: ignore[arg-type]

    before, ours = address(f"{module}:small"), address("resnet8")
    (tmp_path / f"{module}_deeper.py").open("a").write("# edited\n")
    assert address(f"{module}:small") != before
    assert address("resnet8") == ours
