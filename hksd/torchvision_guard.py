"""Import torchvision's data sets and models even where its compiled part cannot load.

A CPU build of torch beside the CUDA wheel of torchvision is what pip installs on many machines without a GPU. There
torchvision's ``_C`` library misses the CUDA runtime, torchvision goes on without it, and then stops at its own Python
registration of an operator that only the library declares: ``operator torchvision::nms does not exist``. Data sets,
transforms and models need none of these operators, so declaring the two schemas is enough. A torchvision that imports
is left as it is.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType
from typing import Any

# The operators that torchvision registers from Python without looking whether its library was loaded.
_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_datasets() -> ModuleType:
    """Return ``torchvision.datasets``; raises as `_import` does."""
    return _import("torchvision.datasets")


def import_models() -> ModuleType:
    """Return ``torchvision.models``; raises as `_import` does."""
    return _import("torchvision.models")


def _import(module: str) -> ModuleType:
    """Import a module of torchvision.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: torchvision cannot be imported for another reason than the two operators.
    """
    before = set(sys.modules)
    try:
        return importlib.import_module(module)
    except RuntimeError as error:
        # Trying is the only sure test: the names of torchvision's libraries differ between releases and systems.
        if "operator torchvision::" not in str(error):
            raise
    # The failed import leaves submodules behind; the second one must start from nothing.
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "torchvision":
            del sys.modules[name]
    declare_missing_operators()
    return importlib.import_module(module)


@functools.cache
def declare_missing_operators() -> Any:
    """Declare the schemas of torchvision's operators that nobody has declared; without a kernel, calling them fails.

    Returns:
        The library that owns the declarations. The cache keeps it alive: torch withdraws them with it.
    """
    import torch

    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in _OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + _SCHEMA)
    return library
