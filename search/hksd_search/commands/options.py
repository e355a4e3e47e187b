"""Options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from hksd.errors import UserError
from hksd.files import expanded

OK, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130  # exit codes
DEFAULT_RUNS = Path("runs")
NAME_FORM, NAME_MOST = r"[A-Za-z0-9][A-Za-z0-9._-]*", 100  # of a search; trials and runs add to it


def path(value: Any) -> Path:
    """A path of the command line: ``~`` stands for the home folder, and what cannot be a path is refused at once."""
    if isinstance(value, Path):  # a default
        return value
    try:
        return expanded(value, "PATH")
    except UserError as error:
        raise typer.BadParameter(str(error).removeprefix("PATH: ")) from error


def search_name(value: str) -> str:
    """The name of a new search, which is a folder and the name of an experiment."""
    if not re.fullmatch(NAME_FORM, value) or len(value) > NAME_MOST:
        shown = value if len(value) <= NAME_MOST else value[:NAME_MOST] + "..."
        raise typer.BadParameter(
            f"{shown!r}: use 1 to {NAME_MOST} letters, digits, '.', '_' and '-', with a letter or digit first"
        )
    return value


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; logs go to standard error.")]
Runs = Annotated[
    Path,
    typer.Option(
        "--runs",
        parser=path,
        metavar="PATH",
        envvar="HKSD_RUNS",
        help="Folder of all searches, cached teachers and images.",
    ),
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
