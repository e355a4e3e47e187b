"""Where a command speaks: tables for people, or one JSON object."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console, ConsoleRenderable
from rich.logging import RichHandler
from rich.text import Text

from hksd.errors import RunError

PIPED_WIDTH = 120  # columns of tables where there is no terminal to ask


class _Lines(RichHandler):
    """Shows a warning as one line: RichHandler itself breaks it at 80 columns where there is no terminal."""

    def render(self, *, record: logging.LogRecord, traceback: Any, message_renderable: ConsoleRenderable) -> Text:
        """See rich.logging.RichHandler."""
        message = message_renderable if isinstance(message_renderable, Text) else Text(record.getMessage())
        return Text.assemble(self.get_level_text(record), " ", message)


class Output:
    """What a command prints: tables for people on standard output, or one JSON object there and the rest on stderr."""

    def __init__(self, as_json: bool):
        self.as_json = as_json
        piped = not (sys.stderr if as_json else sys.stdout).isatty()
        self.console = Console(stderr=as_json, soft_wrap=True, width=PIPED_WIDTH if piped else None)
        handler = _Lines(console=Console(stderr=True, soft_wrap=True), show_path=False, show_time=False)
        logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s", force=True)

    def give(self, data: dict[str, Any], show: Callable[[Console], None]) -> None:
        """Print `data` as JSON, or let `show` print it for people."""
        if self.as_json:
            typer.echo(json.dumps(data, default=str))
            if fault := getattr(sys.stdout, "fault", ""):
                raise RunError(f"all is done, but what came of it cannot be written to standard output: {fault}")
        else:
            show(self.console)
