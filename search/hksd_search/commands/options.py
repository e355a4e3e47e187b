"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OK, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130  # exit codes
DEFAULT_RUNS = Path("runs")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; logs go to standard error.")]
Runs = Annotated[
    Path, typer.Option("--runs", envvar="HKSD_RUNS", help="Folder of all searches, cached teachers and images.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change a value; may be given many times."),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a search.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster (auto, or host:port); default a private Ray.")]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        metavar="URI", help="MLflow store; default the search's own, else $MLFLOW_TRACKING_URI, else SQLite in --runs."
    ),
]
# Packages that only some commands need, and the extra that brings them.
EXTRAS = {
    **dict.fromkeys(("ray", "optuna", "mlflow", "scipy"), "search"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "onnx"),
}


def install_line(error: BaseException) -> str | None:
    """What to install, where an error is the lack of a package of an extra; else None."""
    package = str(getattr(error, "name", None)).partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package not in EXTRAS:
        return None
    return f"{package} is not installed: pip install 'hksd[{EXTRAS[package]}]'"
