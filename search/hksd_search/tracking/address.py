"""Which store a search writes to: what the user says, what the search remembers, what the environment has.

A search stays with its store. Its address is remembered in the folder of the search, without password or token; those
come from the command line or the environment each time, and are never written down.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hksd.errors import RunError, UserError
from hksd_search.tracking import access, examine, known
from hksd_search.tracking.access import VARIABLE, same_store, store_uri, without_secrets
from hksd_search.tracking.examine import Kind

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """A store as it is opened.

    Attributes:
        uri: where, with the secrets that the user gave.
        default: the SQLite file below the runs folder.
        before: the store that the search leaves for this one, without secrets; None where it stays.
    """

    uri: str
    default: bool = False
    before: str | None = None

    @property
    def plain(self) -> str:
        """The address without secrets."""
        return without_secrets(self.uri)


def choose(
    folder: Path, given: str | None, move: bool = False, environment: Mapping[str, str] | None = None
) -> Address:
    """The store of the search in `folder`.

    A new search takes the address that was given, else that of the environment (MLFLOW_TRACKING_URI), else the SQLite
    file below the runs folder. One that goes on stays where it is.

    Args:
        folder: of the search; nothing is remembered of one that is not there yet.
        given: ``--tracking-uri``.
        move: another address than the remembered one is meant.
        environment: where the environment's is looked up; None for that of this process.

    Raises:
        UserError: another address than the remembered one, and nobody said that it moves; or no address to move to; or
            an empty one.
    """
    if given is not None and not given.strip():  # of a variable of the shell that is not set, most likely
        raise UserError("--tracking-uri is empty: give an address (http://HOST:PORT, sqlite:///FILE), or leave it out")
    runs = folder.parent
    found = (os.environ if environment is None else environment).get(VARIABLE) or None
    if given and found and same_store(store_uri(given, runs), store_uri(found, runs)):
        given = max(given, found, key=access.has_secrets)
    before = known.read(folder)
    if before is None or before.uri == known.DAMAGED:
        if before is not None and not given:
            log.warning(
                "%s is damaged, so the store of this search is not known any more; taken is %s",
                folder / known.RUNS_FILE,
                without_secrets(store_uri(found, runs)),
            )
        return Address(store_uri(given or found, runs), default=not (given or found))
    remembered = store_uri(None, runs) if before.default else before.uri
    if move and not (given or found):
        raise UserError(f"--move-tracking: where to? give --tracking-uri (now {remembered})")
    wanted = given or (found if move else None)
    if wanted is not None:
        uri = store_uri(wanted, runs)
        if before.leads_to(uri, runs):
            return Address(uri, before.default)
        if not move:
            raise UserError(
                f"--tracking-uri {without_secrets(uri)}: this search is tracked in {remembered}; leave the option out "
                "to stay there, or add --move-tracking: then all is written to the new store, and it stays with that"
            )
        return Address(uri, same_store(uri, store_uri(None, runs)), before=remembered)
    if found and before.leads_to(store_uri(found, runs), runs):
        return Address(store_uri(found, runs), before.default)  # it may have the password
    if found:
        log.warning(
            "%s is %s, but this search stays in its store %s (--move-tracking moves it)",
            VARIABLE,
            without_secrets(store_uri(found, runs)),
            remembered,
        )
    return Address(remembered, before.default)


def remember(folder: Path, address: Address) -> None:
    """Write down where a search is tracked, from its first moment on; what it knows of its runs there stays.

    Raises:
        UserError: it cannot be written.
    """
    before = known.read(folder)
    if before is None:
        try:
            known.write(folder, known.Known(address.plain, address.default))
        except OSError as error:
            raise UserError(f"{folder / known.RUNS_FILE}: cannot be written: {error.strerror}") from error


def must_be_usable(address: Address, folder: Path, later: bool, going_on: bool) -> None:
    """Refuse a store that would take nothing, before anything is trained.

    Args:
        address: the store.
        folder: of the search.
        later: go on although it cannot be used now.
        going_on: an earlier search goes on, for which a store that is away for now is waited for.

    Raises:
        UserError: it cannot be used.
    """
    trouble = examine.examine(address.uri)
    if trouble is None:
        return
    text = examine.say(address.uri, trouble)
    if trouble.kind is Kind.WRONG or not (later or (going_on and trouble.kind is Kind.AWAY)):
        way = "" if trouble.kind is Kind.WRONG else "; or add --tracking-later: records are kept, and sent later"
        raise UserError(f"{text}{way}")
    log.warning("%s; records are kept in %s and sent when it can be used (`hksd sync`)", text, _spool(folder))


def must_answer(address: Address) -> None:
    """For one who only wants to send what was kept.

    Raises:
        UserError: the store cannot be used.
        RunError: it is away.
    """
    trouble = examine.examine(address.uri)
    if trouble is not None:
        kind = RunError if trouble.kind is Kind.AWAY else UserError
        raise kind(f"{examine.say(address.uri, trouble)}; nothing was sent, and all that was kept is kept")


@contextmanager
def secrets_hidden() -> Iterator[None]:
    """Inside, the environment, which every process that is started inherits, has no address with secrets."""
    found = os.environ.get(VARIABLE)
    secret = found if found and access.has_secrets(found) else None
    if secret:
        del os.environ[VARIABLE]
    try:
        yield
    finally:
        if secret:
            os.environ[VARIABLE] = secret


def off_the_command_line(uri: str | None) -> None:
    """Where an address with secrets stands in the command of this process, for everybody to see, go on without.

    The process is replaced by one that has the secrets in its environment, before anything else is done.
    """
    if uri is None or not access.has_secrets(uri):
        return
    try:
        shown = uri.encode() in Path("/proc/self/cmdline").read_bytes()
    except OSError:
        return
    if shown:
        log.warning("secrets in a command can be read by others; put the address into %s", VARIABLE)
        words = [word.replace(uri, without_secrets(uri)) for word in sys.orig_argv[1:]]
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *words], {**os.environ, VARIABLE: uri})


def _spool(folder: Path) -> Path:
    return folder / known.SPOOL_FILE
