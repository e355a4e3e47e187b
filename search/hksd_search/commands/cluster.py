"""`hksd cluster`: write the file that brings up a cluster."""

from __future__ import annotations

import ipaddress
import platform
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from hksd import bounds
from hksd.errors import UserError, describe, unknown
from hksd_search.commands.options import Json, path, search_name, whole
from hksd_search.commands.output import Output

EXAMPLE = "`hksd cluster local --head 10.0.0.1 --worker 10.0.0.2 --worker 10.0.0.3 --user me --key id_ed25519`"
WORD = r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*"  # of a name that goes into a file and a shell as it is
PLACE = r"(~/|/)[A-Za-z0-9._/@+-]+"


def _address(value: str) -> str:
    """The address of a machine that others reach."""
    try:
        found = ipaddress.IPv4Address(value)
    except ValueError as error:
        raise typer.BadParameter(f"must be an address like 10.0.0.1 (got {describe(value)})") from error
    if found.is_loopback or found.is_unspecified or found.is_multicast:
        raise typer.BadParameter(f"must be an address that other machines reach (got {describe(value)})")
    return str(found)


def _spelled(form: str, what: str) -> Any:
    """A parser of texts that need no quotes in YAML and in a shell."""

    def parse(value: str) -> str:
        if not re.fullmatch(form, value) or len(value) > bounds.NAME_LENGTH:
            raise typer.BadParameter(f"must be {what} (got {describe(value)})")
        return value

    return parse


def _file(value: Any) -> Path:
    found = path(value)
    if not re.fullmatch(r"[A-Za-z0-9._/@+~-]+", str(found)):
        raise typer.BadParameter(f"must be a path of letters, digits and ._/@+~- (got {describe(str(value))})")
    return found


_on_nodes = _spelled(PLACE, "a path on the nodes, /shared/runs or ~/runs say")


def cluster(
    variant: Annotated[str, typer.Argument(metavar="aws|local|slurm|kuberay|gcp", help="Kind of cluster.")],
    head: Annotated[
        str | None, typer.Option(parser=_address, metavar="ADDRESS", help="local: the machine of Ray's head.")
    ] = None,
    worker: Annotated[
        list[str] | None,
        typer.Option(parser=_address, metavar="ADDRESS", help="local: a machine for trials; may be given many times."),
    ] = None,
    user: Annotated[
        str | None, typer.Option(parser=_spelled(WORD, "a user's name"), metavar="NAME", help="local: of SSH.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(parser=_file, metavar="PATH", help="local: private key of SSH, here.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(parser=search_name, metavar="NAME", help="local: of the cluster. slurm, kuberay: of the search."),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            parser=_spelled(r"[A-Za-z0-9._/~][A-Za-z0-9._/@+~-]*", "the name of a space, or a path"),
            metavar="SPACE",
            help="slurm, kuberay: what to search; default quickstart.",
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            parser=_spelled(WORD, "the name of an image"),
            metavar="IMAGE",
            help="aws, gcp: the machines' image. kuberay: the containers'.",
        ),
    ] = None,
    project: Annotated[
        str | None, typer.Option(parser=_spelled(WORD, "the id of a project"), metavar="ID", help="gcp: the project.")
    ] = None,
    max_workers: Annotated[
        int | None,
        typer.Option(parser=whole(1, 1000), metavar="N", help="aws, gcp, kuberay: the most workers; slurm: nodes."),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(
            parser=_spelled(r"3\.\d+\.\d+", "a version to the dot, 3.12.3 say"),
            metavar="VERSION",
            help="aws, gcp, local: of all nodes; default the image's, for local this one.",
        ),
    ] = None,
    venv: Annotated[
        str | None,
        typer.Option(
            parser=_on_nodes, metavar="PATH", help="local, slurm: Python environment on the nodes; default ~/venv."
        ),
    ] = None,
    shared: Annotated[
        str | None,
        typer.Option(
            parser=_on_nodes,
            metavar="PATH",
            help="local, slurm: folder of all runs, which all nodes see; default ~/runs.",
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(parser=_file, metavar="PATH", help="aws, gcp, local: the project's folder, or a wheel."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the file that brings up a cluster to standard output; see docs/cluster.md."""
    from hksd_search.cluster import files

    output = Output(as_json)
    if variant not in files.VARIANTS:
        raise UserError(unknown("kind of cluster", variant, files.VARIANTS))
    for option, place in (("--key", key), ("--source", source)):
        if place is not None and not place.exists():
            raise UserError(f"{option}: {place}: no such file")
    asked = files.Asked(
        head=head,
        workers=tuple(worker or ()),
        user=user,
        key=key,
        name=name,
        space=space,
        image=image,
        project=project,
        max_workers=max_workers,
        python=python,
        venv=venv,
        shared=shared,
        source=source,
    )
    text = files.compose(variant, asked, Path.cwd(), platform.python_version())
    step = files.VARIANTS[variant].next_step
    output.give({"variant": variant, "text": text, "next": step}, lambda _: typer.echo(text, nl=False))
    if not as_json:
        typer.echo(f"next: {step}", err=True)
