"""What a stranger's code says when it fails, in one line, and where in it that was."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent.parent  # the core
LONGEST = 200  # characters of a reason; torch's go on with hints for its own developers


def reason(error: BaseException) -> str:
    """The first line of what an error says, shortened; with its type where that says more."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if not isinstance(error, RuntimeError) or not line:
        line = f"{type(error).__name__}: {line}" if line else type(error).__name__
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def place_in(error: BaseException) -> str:
    """Where in the user's own code an error comes from: ``line 16 of nets.py``; empty where it does not."""
    libraries = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")]
    libraries += [HERE, Path(torch.__file__).resolve().parent, Path(sys.prefix).resolve() / "lib"]
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        if file.exists() and not any(file.resolve().is_relative_to(folder) for folder in libraries):
            found = f"line {frame.lineno} of {file.name}"
    return found


def told(error: BaseException) -> str:
    """Both in one: ``RuntimeError: no such layer (line 16 of nets.py)``, whatever the type."""
    line, kind, at = reason(error), type(error).__name__, place_in(error)
    return f"{line if line.startswith(kind) else f'{kind}: {line}'}{f' ({at})' if at else ''}"
