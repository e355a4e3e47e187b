"""What `torch.save` wrote, read without running anything that is in it.

torch's weights-only reader takes tensors, numbers, texts and containers. What else stands beside the weights (the best
score as a numpy number, an `argparse.Namespace`, a path, a class of the author's) becomes an inert stand-in: nothing is
imported, called or kept.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch

from hksd.errors import UserError

# Nobody keeps these beside weights; a pickle names them to run something.
_RUNS = re.compile(
    r"(os|posix|nt|sys|subprocess|shutil|socket|importlib|runpy|pty|ctypes|webbrowser|marshal|pickle|io|_io|http|"
    r"multiprocessing|asyncio|urllib|ftplib|tempfile|pdb|bdb|timeit)\."
    r"|builtins\.(eval|exec|compile|open|__import__|input|breakpoint|globals|setattr|delattr)$"
)
# Packages whose objects beside weights need no word: numbers, dates, paths, settings.
HARMLESS = re.compile(
    r"(numpy|argparse|pathlib|datetime|collections|decimal|fractions|uuid|types|builtins|copyreg|_codecs|enum|functools|"
    r"random|time|re|torch|omegaconf|lightning|lightning_fabric|pytorch_lightning)\."
)
_MODULES = ("torch.nn.modules.", "torch.nn.parallel.", "torch.optim.swa_utils.", "torch._dynamo.", "torch.fx.")
_TENSORS = re.compile(r"collections\.OrderedDict|torch\._utils\.|torch\.\w+Storage")
_FILLED = re.compile(r"Can only (SETITEMS?|append|extend) .*got <class '([^']+)'>")
_FAULTS = (pickle.UnpicklingError, TypeError, ValueError, KeyError, AttributeError, IndexError)


class StandIn:
    """Stands for an object of a foreign class: takes everything and does nothing.

    Attributes:
        name: of the class, with its module.
    """

    name = ""

    def __setstate__(self, state: object) -> None:
        """Forget the state."""


def load(path: Path) -> tuple[Any, set[str]]:
    """Read the object in a file.

    Returns:
        The object, and the names of all classes and functions for which stand-ins were made.

    Raises:
        UserError: something in it cannot be read safely; has its name, and the cure.
        Exception: the file is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _read(path), set()
        except pickle.UnpicklingError:  # something foreign in it
            return _load_past(path, _names_in(path))


def _load_past(path: Path, named: Sequence[str]) -> tuple[Any, set[str]]:
    """Read a file with stand-ins for all that is foreign among these names; see `load`."""
    if running := [name for name in named if _RUNS.match(name)]:
        raise UserError(
            f"{path}: holds a call of {', '.join(running)}, which has no place beside weights and would run when "
            "another program opens the file; it was not opened. Take the weights from another source"
        )
    forms: dict[str, type] = {name: list if name == "collections.deque" else object for name in named}
    for _ in range(len(named) + 1):
        seen: set[str] = set()
        stand_ins: list[Any] = [(_stand_in(name, form, seen), name) for name, form in forms.items()]
        try:
            with torch.serialization.safe_globals(stand_ins):
                return _read(path), seen
        except _FAULTS as error:
            name, form = _container(str(error))
            if form is object or forms.get(name) is not object:
                break
            forms[name] = form
    raise UserError(f"{path}: {_unreadable(path, named)}")


def _read(path: Path) -> Any:
    with path.open("rb") as file:  # by its path alone, torch goes by the ending of the name
        return torch.load(file, map_location="cpu", weights_only=True)


def _container(fault: str) -> tuple[str, type]:
    """The class that torch refuses to fill, and what it would fill; it fills nothing but real dicts and lists."""
    found = _FILLED.search(fault)
    return ("", object) if found is None else (found[2], list if found[1] in ("append", "extend") else OrderedDict)


def _unreadable(path: Path, named: Sequence[str]) -> str:
    strange = [name for name in named if not HARMLESS.match(name)] or [n for n in named if not _TENSORS.match(n)]
    what = f"objects of {', '.join(strange[:5])}, which cannot be read safely"
    if any(map(is_module, named)):
        cure = line(f"{unsafe(path)}.state_dict()")
        return f"holds a whole network and no state dict, {what}; if you trust the file: `{cure}`"
    if any("DTensor" in name or "ShardedTensor" in name for name in named):
        state = f"{{k: getattr(v, 'full_tensor', lambda: v)() for k, v in {unsafe(path)}.items()}}"
        return (
            "holds tensors that are spread over processes (FSDP), which cannot be read here; gather them before they "
            f"are saved, or in a process group of as many processes: `{line(state)}`"
        )
    cure = line(unsafe(path))
    return f"holds {what}; if you trust the file: `{cure}`, with the key of the weights if they stand under one"


def is_module(name: str) -> bool:
    """Whether a class is one of torch's modules, losses left out: they stand in every whole network."""
    return name.startswith(_MODULES) and not name.startswith("torch.nn.modules.loss.")


def line(value: str, imports: str = "torch") -> str:
    """The line of Python that writes the state dict `value` to a file of its own."""
    return f"import {imports}; torch.save({value}, 'weights.pt')"


def unsafe(path: Path) -> str:
    """The call that reads a file whatever is in it, for messages."""
    return f"torch.load('{path}', 'cpu', weights_only=False)"


def _names_in(path: Path) -> list[str]:
    """Names of all classes and functions in a file, as torch knows them, in its order."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):  # torch before 1.6
            file.seek(0)
            for _ in range(3):  # its magic number, the version, the system
                _names(path, file)
            return _names(path, file)
    with zipfile.ZipFile(path) as archive:
        entry = next(name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
        with archive.open(entry) as record:
            return _names(path, record)


def _names(path: Path, file: IO[bytes]) -> list[str]:
    """Names in one pickle; the file then stands behind it."""
    found: dict[str, None] = {}
    for operation, argument, _ in pickletools.genops(file):
        if operation.name == "PROTO" and argument != 2:
            raise UserError(
                f"{path}: written with pickle protocol {argument}, which cannot be read safely (2 can); "
                f"if you trust the file: `{line(unsafe(path))}`"
            )
        if operation.name == "GLOBAL" and isinstance(argument, str):
            module, name = argument.split(" ", 1)  # as Python 2 called them
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            found[f"{module}.{name}"] = None
    return list(found)


def _stand_in(name: str, form: type, seen: set[str]) -> Any:
    def make(cls: type, *_: object, **__: object) -> object:
        seen.add(name)
        return object.__new__(cls) if form is object else form()

    module, _, own = name.rpartition(".")
    return type(own, (StandIn,), {"__new__": make, "__module__": module, "name": name})
