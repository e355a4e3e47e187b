"""The `hksd` command. Heavy imports are inside the commands, so that `hksd --help` answers at once.

Exit codes: 0 ok, 1 the run failed, 2 the user can mend it, 130 interrupted. With --json, standard output carries one
JSON object and nothing else; everything for people goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperGroup

from hksd.errors import RunError, Stopped, UserError
from hksd_search import streams
from hksd_search.backend import takeover
from hksd_search.commands import (
    cluster,
    confirm,
    doctor,
    estimate,
    evaluate,
    export,
    import_study,
    logs,
    methods,
    report,
    search,
    space,
    status,
    sync,
    teacher,
    train,
)
from hksd_search.commands.options import FAILED, INTERRUPTED, USAGE_ERROR, USER_ERROR, Command, install_line

NO_MEMORY = "can't allocate memory"  # in PyTorch's words, which are a plain RuntimeError
LESS_MEMORY = "lower data.image_size, the width of networks or batch_size, or stream the images (data.streaming)"


@contextlib.contextmanager
def _exit_codes(as_json: bool) -> Iterator[None]:
    """Turn errors into messages and exit codes; an error of ours keeps its stack trace."""

    def stop(message: str, code: int, facts: Mapping[str, Any] = {}) -> None:
        streams.mute_dead()
        typer.echo(message, err=True)
        if as_json:
            typer.echo(json.dumps({"error": message, "exit_code": code, **facts}))
        sys.stdout.flush()
        sys.exit(code)

    try:
        yield
    except UserError as error:
        stop(f"error: {error}" if "\n" not in str(error) else f"error:\n{error}", USER_ERROR, error.facts)
    except USAGE_ERROR as error:  # of the options, which typer would draw into a box, also with --json
        whose = error.ctx.command_path if error.ctx else "hksd"
        stop(f"error: {error.format_message().rstrip('.')}; see `{whose} --help`", USER_ERROR)
    except ModuleNotFoundError as error:
        if (mend := install_line(error)) is None:
            raise
        stop(f"error: {mend}", USER_ERROR)
    except MemoryError as error:
        stop(f"error: the memory of this machine is not enough ({error or 'no more said'}); {LESS_MEMORY}", USER_ERROR)
    except RuntimeError as error:
        if isinstance(error, RunError):
            stop(f"failed: {error}", FAILED, error.facts)
        if NO_MEMORY not in str(error):
            raise
        stop(f"error: the memory of this machine is not enough; {LESS_MEMORY}", USER_ERROR)
    except KeyboardInterrupt as error:
        stop(str(error) or "interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:  # of a disk that is away or read-only, where nobody nearer knew more
        if error.filename is None:
            raise
        stop(f"failed: {error.filename}: {error.strerror}", FAILED)
    except Stopped as error:
        stop(f"stopped; everything is saved. Resume with:\n  {error}", INTERRUPTED, error.facts)


class Commands(TyperGroup):
    """The group of commands; sees errors and Ctrl-C before typer does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what stands before the command: nothing but --help."""
        if not args:
            return super().parse_args(ctx, args)  # it is help that is wanted
        with _exit_codes("--json" in sys.argv[1:]):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        streams.heed_signals()
        with _exit_codes("--json" in sys.argv[1:]):
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    name="hksd",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Search for the best small student of a teacher network.\n\nStart with `hksd search quickstart`.",
)

for _command in (
    doctor,
    methods,
    space,
    teacher,
    train,
    estimate,
    search,
    status,
    logs,
    confirm,
    report,
    export,
    evaluate,
    import_study,
    sync,
    cluster,
):
    _name = _command.__name__.rpartition(".")[2]
    app.command(_name.replace("_", "-"), cls=Command, epilog=f"Example: {_command.EXAMPLE}")(getattr(_command, _name))


def main() -> None:
    """Entry point of the `hksd` command."""
    streams.make_last()
    takeover.clear()
    app(prog_name="hksd")  # also where Python was started with -m


if __name__ == "__main__":
    main()
