"""Whether a tracking store can be used, before anything is trained; if not, why, and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import re
import sqlite3
import tempfile
import threading
from contextlib import closing
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from urllib.parse import urlsplit

from hksd.errors import nearest
from hksd_search.tracking import access
from hksd_search.tracking.access import SQLITE, WEB, scheme_of, without_secrets

PATIENCE_S = 25.0  # a store that has not answered by then is away
DATABASES = ("postgresql", "mysql", "mssql")
DRIVERS = {
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
}  # module -> package that has it
CLOUD = ("databricks", "databricks-uc", "uc")
SCHEMES = ("http", "https", "sqlite", *DATABASES, "databricks")
FOLDER_CURE = (
    "MLflow 3 does not write to folders any more; give a SQLite file, sqlite:///{path}/mlflow.db say, into which "
    "`mlflow migrate-filestore` can move what is there"
)


class Kind(IntEnum):
    """How bad it is: nothing answers for the moment, what is there refuses, or no such store can be."""

    AWAY = 1
    REFUSES = 2
    WRONG = 3


@dataclass(frozen=True)
class Trouble:
    """Why a store cannot be used.

    Attributes:
        kind: how bad it is.
        text: what is wrong, as the rest of a sentence about the store, and the cure.
    """

    kind: Kind
    text: str


def examine(uri: str, patience: float = PATIENCE_S) -> Trouble | None:
    """Look at a store as it is now; nothing is written to it. None where it can be used, or nothing is wrong to see.

    Args:
        uri: the store, SQLite paths absolute (`access.store_uri`).
        patience: seconds that it has to answer.
    """
    scheme = scheme_of(uri)
    if uri.startswith(SQLITE) or scheme == "sqlite":
        return _sqlite(uri)
    if scheme == "file" or uri.startswith("file:") or ("://" not in uri and uri not in CLOUD):
        return _folder(uri) or _limited(uri, patience)
    if scheme in WEB:
        return _web(uri) or _limited(uri, patience)
    if scheme in DATABASES:
        return _database(uri) or _limited(uri, patience)
    if uri in CLOUD or scheme in CLOUD or _plugin(scheme):
        return _limited(uri, patience)
    near = "; did you mean postgresql://?" if scheme == "postgres" else nearest(f"{scheme}://", _known())
    return Trouble(Kind.WRONG, f"has the unknown scheme {scheme}://{near} (known: {', '.join(_known())})")


def _known() -> list[str]:
    return [f"{scheme}://" for scheme in SCHEMES]


def _plugin(scheme: str) -> bool:
    """Whether another package brings stores of that scheme."""
    from importlib.metadata import entry_points

    return any(point.name == scheme for point in entry_points(group="mlflow.tracking_store"))


def _folder(uri: str) -> Trouble | None:
    """An address without a scheme is a folder to MLflow, whatever was meant."""
    if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1"):
        return None
    path = uri.removeprefix("file://").removeprefix("file:")
    if re.fullmatch(r"(localhost|[\w-]+(\.[\w-]+)+|[\w-]+):\d+(/.*)?", path):
        return Trouble(Kind.WRONG, f"has no scheme; did you mean http://{path}?")
    if path.endswith((".db", ".sqlite", ".sqlite3")) or Path(path).is_file():
        return Trouble(Kind.WRONG, f"has no scheme; did you mean {SQLITE}{path}?")
    if head := re.match(r"(\w+):(/*)", path):
        return Trouble(Kind.WRONG, f"has no scheme; did you mean {head[1]}://{path[head.end() :]}?")
    return Trouble(Kind.WRONG, f"is a folder: {FOLDER_CURE.format(path=path.rstrip('/'))}")


# --- a file


def _sqlite(uri: str) -> Trouble | None:
    if not uri.startswith(SQLITE):
        if uri.partition("://")[0] == "sqlite":
            return Trouble(Kind.WRONG, f"is no path; did you mean {SQLITE}{uri.removeprefix('sqlite://')}?")
        return None  # with the name of a driver: MLflow knows best
    if uri.removeprefix(SQLITE).partition("?")[0] in ("", ":memory:"):
        return Trouble(Kind.WRONG, f"is no file, so nothing of it would stay; give {SQLITE}PATH")
    file = access.sqlite_file(uri)
    if file.is_dir():
        return Trouble(Kind.REFUSES, f"is a folder; give a file in it, {SQLITE}{file / 'mlflow.db'} say")
    return _no_room(file) or (_file(file, uri) if file.exists() and file.stat().st_size else None)


def _no_room(file: Path) -> Trouble | None:
    """SQLite needs a second file beside the first whenever it writes."""
    folder = next(parent for parent in file.parents if parent.exists())
    if not folder.is_dir():
        return Trouble(Kind.REFUSES, f"cannot be made: {folder} is no folder; give a file in a folder")
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        text = f"cannot be written: {folder}: {error.strerror}; make that folder writable, or give another file"
        return Trouble(Kind.REFUSES, text)


def _file(file: Path, uri: str) -> Trouble | None:
    try:
        with file.open("rb") as content:
            if content.read(16) != b"SQLite format 3\0":
                return Trouble(Kind.REFUSES, "is a file, but no SQLite database; give another file, or move it away")
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=1, isolation_level=None)) as base:
            tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and not {"experiments", "runs", "metrics"} <= tables:
                some = ", ".join(sorted(tables)[:3])
                text = f"is a database of something else (tables: {some}, ...); give a file of its own"
                return Trouble(Kind.REFUSES, text)
            row = base.execute("SELECT * FROM alembic_version").fetchone() if "alembic_version" in tables else None
            if row and (trouble := _schema(str(row[0]), uri)):
                return trouble
            base.execute("BEGIN IMMEDIATE")
            base.execute("CREATE TABLE hksd_looks (x)")  # only to see whether it could
            base.execute("ROLLBACK")
    except sqlite3.Error as error:
        if "locked" in str(error):  # somebody writes to it: it lives
            return None
        cure = "make the file and its folder writable, or give another file"
        if isinstance(error, sqlite3.DatabaseError) and "malformed" in str(error):
            cure = "restore a copy, or move it away: all runs are written again from the study"
        return Trouble(Kind.REFUSES, f"cannot be written: {error}; {cure}")
    except OSError as error:
        return Trouble(Kind.REFUSES, f"cannot be read: {error.strerror}; make it readable, or give another file")
    return None


def _schema(found: str, uri: str) -> Trouble | None:
    """MLflow itself would silently change an older database that lacks a table, under the hands of others."""
    revisions = _revisions()
    if not revisions or found == (newest := next(iter(revisions.keys() - revisions.values()))):
        return None
    if found not in revisions:
        text = f"was made by a newer MLflow (schema {found}; the one here knows up to {newest}); upgrade MLflow here"
        return Trouble(Kind.REFUSES, f"{text}, or give another file")
    text = f"was made by an older MLflow (schema {found}, here {newest}); keep a copy, then `mlflow db upgrade {uri}`"
    return Trouble(Kind.REFUSES, f"{text}, or give another file")


def _revisions() -> dict[str, str]:
    """Each schema of the MLflow that is installed, with the one before it; without importing it, which takes seconds.

    Empty where the layout of MLflow is another one: it then says itself what is wrong, later.
    """
    spec = importlib.util.find_spec("mlflow")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = {}
    for folder in folders:
        for file in (Path(folder) / "store" / "db_migrations" / "versions").glob("*.py"):
            text = file.read_text(encoding="utf-8")
            mine, before = (re.search(rf'^{name} = "?(\w+)"?', text, re.M) for name in ("revision", "down_revision"))
            if mine and before:
                found[mine[1]] = before[1]
    return found if len(found.keys() - found.values()) == 1 else {}


# --- what answers, or not


def _web(uri: str) -> Trouble | None:
    try:
        host, _ = urlsplit(uri).hostname, urlsplit(uri).port
    except ValueError as error:
        return Trouble(Kind.WRONG, f"is no web address ({error}); give http://HOST:PORT")
    return None if host else Trouble(Kind.WRONG, "names no host; give http://HOST:PORT")


def _database(uri: str) -> Trouble | None:
    """Whether the driver is here."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except ModuleNotFoundError as error:
        module = str(error.name)
        package = DRIVERS.get(module, module)
        return Trouble(Kind.WRONG, f"needs the driver {module}, which is not installed: pip install {package}")
    except (ArgumentError, ImportError) as error:
        return Trouble(Kind.WRONG, f"is no address of a database: {access.reason_of(error, uri)}")
    return None


def _limited(uri: str, patience: float) -> Trouble | None:
    """Ask MLflow, but not for ever: a server may answer a byte a second."""
    found: list[Trouble | None] = []
    asking = threading.Thread(target=lambda: found.append(_ask(uri)), name="examine", daemon=True)
    asking.start()
    asking.join(patience)
    return found[0] if found else Trouble(Kind.AWAY, f"has not answered in {patience:g} s")


def _ask(uri: str) -> Trouble | None:
    access.quiet_environment()
    from hksd_search.tracking.store import EXPERIMENT

    try:
        from mlflow.tracking import MlflowClient

        experiment = MlflowClient(tracking_uri=uri).get_experiment_by_name(EXPERIMENT)
    except Exception as error:  # the store is another program's
        return _why(error, uri)
    if experiment is not None and (experiment.name != EXPERIMENT or not experiment.experiment_id):
        return _something_else(uri, "")
    return None


def _something_else(uri: str, said: str) -> Trouble:
    text = f"is something else than MLflow{f' ({said})' if said else ''}; see the address and port of `mlflow server`"
    return Trouble(Kind.REFUSES, text)


RULES: tuple[tuple[str, Kind, str], ...] = (
    (
        r"error code 40[13]|UNAUTHENTICATED|PERMISSION_DENIED|not authenticated|[Pp]ermission denied",
        Kind.REFUSES,
        "refuses this user ({}); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
    ),
    (r"out-of-date database schema", Kind.REFUSES, "has a schema of another MLflow ({})"),
    (
        r"[Nn]ame or service not known|Failed to resolve|name resolution|nodename nor|could not translate host",
        Kind.AWAY,
        "has an unknown host ({}); see its name, and whether this machine is on line",
    ),
    (r"CERTIFICATE_VERIFY_FAILED|certificate verify", Kind.REFUSES, "has a certificate that is not trusted ({})"),
    (r"SSLError|WRONG_VERSION_NUMBER|SSL", Kind.REFUSES, "does not speak TLS ({}); is it http://?"),
    (r"BadStatusLine|InvalidHeader|LocationParseError|InvalidSchema", Kind.REFUSES, ""),
    (r"error code (5\d\d|408|429)|too many \d+ error|TEMPORARILY_UNAVAILABLE", Kind.AWAY, "is not ready ({})"),
    (r"failed with timeout|[Tt]imed out", Kind.AWAY, "does not answer in time"),
    (r"[Cc]onnection refused", Kind.AWAY, "is not there: nobody listens at that port"),
    (r"failed with error code|valid JSON|INTERNAL_ERROR: Response: |[Uu]nexpected|parse", Kind.REFUSES, ""),
)


def _why(error: Exception, uri: str) -> Trouble:
    whole, reason = str(error), access.reason_of(error, uri)
    if code := re.search(r"error code \d+", reason):
        reason = code[0]
    for pattern, kind, text in RULES:
        if re.search(pattern, whole) or re.search(pattern, str(getattr(error, "error_code", ""))):
            return Trouble(kind, text.format(_last(reason))) if text else _something_else(uri, _last(reason))
    if uri.partition("://")[0] in CLOUD:
        text = (
            f"cannot be used ({reason}); set DATABRICKS_HOST and DATABRICKS_TOKEN, or configure the Databricks client"
        )
        return Trouble(Kind.REFUSES, text)
    return Trouble(Kind.AWAY, f"cannot be used ({reason})")


def _last(reason: str) -> str:
    """The innermost of nested exceptions, which says it best."""
    found = re.findall(r"\[Errno -?\d+\] [^()'\"]+|[A-Z]\w+Error\([^()]*\)", reason)
    return (found[-1] if found else reason).strip()[:160]


def say(uri: str, trouble: Trouble) -> str:
    """The trouble with a store as one sentence."""
    return f"MLflow store {without_secrets(uri)} {trouble.text}"
