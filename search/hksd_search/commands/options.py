"""Options that several commands share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from hksd.bounds import NAME_LENGTH
from hksd.errors import UserError, describe, key_path, nearest, readable
from hksd.files import expanded
from hksd.scalars import plain
from hksd.yaml import Override, override

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


def stored_name(value: str) -> str:
    """The name of a search that is there, which is no path."""
    if re.fullmatch(NAME_FORM, value) and len(value) <= NAME_LENGTH:
        return value
    found = Path(value).name if "/" in value else ""
    if re.fullmatch(NAME_FORM, found):
        raise typer.BadParameter(
            f"{readable(value)} is a path; give the name, {readable(found)}, and the folder by --runs"
        )
    raise typer.BadParameter(f"no search has such a name (got {describe(value)})")


def whole(least: int, most: int) -> Callable[[Any], int]:
    """A parser of whole numbers, which are spelled as in a configuration, within bounds."""

    def parse(value: Any) -> int:
        if isinstance(value, int):  # a default
            return value
        found = _number(value)
        if not math.isfinite(found) or found != int(found) or not least <= found <= most:
            raise typer.BadParameter(f"must be a whole number from {least:,} to {most:,} (got {describe(value)})")
        return int(found)

    return parse


def number(of: str = "") -> Callable[[Any], float]:
    """A parser of numbers, which are spelled as in a configuration, of a unit; the section they go to has bounds."""

    def parse(value: Any) -> float:
        found = _number(value)
        if not math.isfinite(found):
            raise typer.BadParameter(f"must be a number{f' of {of}' if of else ''} (got {describe(value)})")
        return float(found)

    return parse


def _number(text: str) -> float:
    """A number; not a number (NaN) for whatever else stands there."""
    try:
        found = plain(text)
    except ValueError:  # of too many digits
        return math.inf
    return found if isinstance(found, int | float) and not isinstance(found, bool) else math.nan


def one_of(*known: str) -> Callable[[Any], str]:
    """A parser of one of some words."""

    def parse(value: Any) -> str:
        if value not in known:
            raise typer.BadParameter(f"must be {' or '.join(known)}{nearest(value, known)} (got {describe(value)})")
        return str(value)

    return parse


def text(value: Any) -> str:
    """A text of the command line that says something."""
    if not str(value).strip() or not str(value).isprintable():
        raise typer.BadParameter(f"must be a text of printed characters (got {describe(value)})")
    return str(value)


def changes(
    overrides: Sequence[str] | None, options: Mapping[str, Any] | None = None, section: tuple[str, ...] = ("search",)
) -> list[Override]:
    """What the command line changes of a configuration: by --set, and by options of their own.

    Args:
        overrides: ``a.b=value``.
        options: option -> value, or None where it was not given; named like the key of `section` that it sets.
        section: key path of that section.

    Raises:
        UserError: one of them is malformed, or loses what another one before it says.
    """
    given = [override(one) for one in overrides or []]
    for option, value in (options or {}).items():
        if value is not None:
            key = option.removeprefix("--").replace("-", "_")
            given.append(Override((*section, key), value, option))
    for place, later in enumerate(given):
        for before in given[:place]:
            if before.path[: len(later.path)] == later.path and before != later:
                raise UserError(
                    f"{before.option} {key_path(before.path)}={describe(before.value)} is lost, for {later.option} "
                    f"{key_path(later.path)}={describe(later.value)} comes after it; give one of them"
                )
    return given


class Command(TyperCommand):
    """A command that takes each of its options once, but those that are lists; its errors know whose they are."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See `TyperCommand.parse_args`.

        Raises:
            UserError: an option stands twice, with other values.
        """
        options = {name: one for one in self.params for name in one.opts if one.param_type_name == "option"}
        found: dict[str, str] = {}
        rest = iter(args)
        for word in rest:
            name, equals, value = word.partition("=")
            option = options.get(name)
            if word == "--":
                break
            if option is None or getattr(option, "is_flag", False) or getattr(option, "multiple", False):
                if option is not None and not equals and not getattr(option, "is_flag", False):
                    next(rest, None)
                continue
            if not equals:
                value = next(rest, found.get(name, ""))  # one without its value is told below
            if found.setdefault(name, value) != value:
                raise UserError(f"{name} stands twice ({readable(found[name])} and {readable(value)}); give it once")
        try:
            return super().parse_args(ctx, args)
        except USAGE_ERROR as error:
            error.ctx = error.ctx or ctx
            raise


USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # of click, or of the copy of it inside typer

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
Name = Annotated[str, typer.Argument(parser=stored_name, metavar="NAME", help="Name of a search.")]
Address = Annotated[
    str | None,
    typer.Option(parser=text, metavar="TEXT", help="Ray cluster (auto, or host:port); default a private Ray."),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        parser=text,
        metavar="URI",
        help="MLflow store; default the search's own, else $MLFLOW_TRACKING_URI, else SQLite in --runs.",
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
