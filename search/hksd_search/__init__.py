"""Searches over the runs that `hksd` describes and trains: everything that knows Ray, Optuna or MLflow."""

import sys
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path


def _claim(name: str) -> None:
    """Import the package `name` of ours that lies beside this one, whatever else is called so on the path.

    Where PYTHONPATH names a folder that holds a hksd.py, Python would find that first.
    """
    here = Path(__file__).resolve()
    for folder in (here.parents[1], here.parents[2]):  # installed; in the repository
        spec = PathFinder.find_spec(name, [str(folder)])
        if spec is not None and spec.loader is not None and spec.submodule_search_locations:
            module = module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
            return
    import_module(name)


if not hasattr(sys.modules.get("hksd"), "__path__"):
    _claim("hksd")
