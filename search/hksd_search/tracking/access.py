"""Where MLflow is: the address of a store, without its secrets, and how people look at it."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from filelock import FileLock

from hksd.errors import UserError

SQLITE = "sqlite:///"
WEB = ("http", "https")
VARIABLE = "MLFLOW_TRACKING_URI"
SECRET = re.compile(r"pass|pwd|token|secret|key|credential", re.IGNORECASE)  # names of parts of an address


def store_uri(uri: str | None, runs: Path) -> str:
    """The tracking store: `uri`, else a SQLite file below `runs`. SQLite paths are made absolute for MLflow."""
    uri = uri or f"{SQLITE}{runs / 'mlflow.db'}"
    path, mark, query = uri.removeprefix(SQLITE).partition("?")
    if not uri.startswith(SQLITE) or path in ("", ":memory:"):
        return uri
    return SQLITE + str(Path(path).resolve()) + mark + query


def sqlite_file(uri: str) -> Path:
    """The file of a SQLite store."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0])


def scheme_of(uri: str) -> str:
    """``http``, ``sqlite``, ..., without the name of a driver; empty where there is none."""
    return uri.partition("://")[0].partition("+")[0].lower() if "://" in uri else ""


def without_secrets(uri: str) -> str:
    """An address as it may be written down: without password and token, of a web address without the user too.

    A user in a web address hides the user and password that MLflow takes from the environment.
    """
    try:
        parts = urlsplit(uri)
        place = parts.netloc.rpartition("@")[2]
        if parts.username and parts.scheme.partition("+")[0] not in WEB:
            place = f"{parts.username}@{place}"
        query = [(key, value) for key, value in parse_qsl(parts.query, True) if not SECRET.search(key)]
        changed = place != parts.netloc or len(query) != len(parse_qsl(parts.query, True))
    except ValueError:  # no address at all; whatever stands before an @ is kept to ourselves
        head, at, tail = uri.rpartition("@")
        return f"{head.partition('://')[0]}://{tail}" if at else uri
    return urlunsplit(parts._replace(netloc=place, query=urlencode(query))) if changed else uri


def has_secrets(uri: str) -> bool:
    """Whether something in an address is not to be written down."""
    return without_secrets(uri) != uri


def same_store(one: str, other: str) -> bool:
    """Whether two addresses lead to one store, whoever knocks."""
    return _normal(one) == _normal(other)


def _normal(uri: str) -> str:
    plain = without_secrets(uri)
    if scheme_of(plain) == "sqlite" or "://" not in plain:
        return plain
    scheme, _, rest = plain.partition("://")
    place, slash, path = rest.partition("/")
    place = place.rpartition("@")[2].lower().removesuffix({"http": ":80", "https": ":443"}.get(scheme.lower(), ":"))
    return f"{scheme.lower()}://{place}{slash}{path}".rstrip("/")


def how_to_look(uri: str, mlflow: str, experiment: str | None) -> list[str]:
    """What to type and open to see a store in the browser, on loopback.

    Args:
        uri: the store.
        mlflow: how to call the mlflow program.
        experiment: id of the experiment, when it is known.
    """
    page = f"/#/experiments/{experiment}/runs?workflowType=machine_learning" if experiment else ""
    if uri.startswith(SQLITE):
        return [f"compare the trials: {mlflow} ui --backend-store-uri {uri}", f"then open http://127.0.0.1:5000{page}"]
    return [f"compare the trials: open {_without_password(uri)}{page}"]


def quiet_environment() -> None:
    """Fail fast and keep quiet: our own loop retries, and nothing is sent to anybody else."""
    for name, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is ours
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",  # a connection that is kept sees a deleted file as it was
    }.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs with its trace what it raises too


def make_whole(uri: str) -> None:
    """Make the SQLite file of a store that is not there yet: whole or not at all, once, whoever else makes it.

    MLflow takes seconds for it, table by table. A process that is killed meanwhile would leave a file to which nobody
    can write any more: it looks like that of an older MLflow, and some of its changes cannot be made twice.

    Raises:
        OSError: there is no room for it.
    """
    file = sqlite_file(uri)
    if not uri.startswith(SQLITE) or uri.removeprefix(SQLITE) in ("", ":memory:") or "?" in uri or file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        if file.exists():
            return
        part = file.with_name(f".{file.name}.part")
        for left in file.parent.glob(f"{part.name}*"):  # of one that was killed, with its journal
            left.unlink(missing_ok=True)
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        SqlAlchemyStore(f"{SQLITE}{part}", (file.parent / "mlflow-artifacts").as_uri()).engine.dispose()
        part.replace(file)


def check(uri: str) -> str:
    """Connect to a store and say what is there.

    Raises:
        UserError: it cannot be reached, with the reason.
    """
    quiet_environment()
    try:
        from mlflow.tracking import MlflowClient

        count = len(MlflowClient(tracking_uri=uri).search_experiments(max_results=100))
    except Exception as error:
        raise UserError(f"MLflow store {_without_password(uri)} cannot be used: {reason_of(error, uri)}") from None
    return f"{_without_password(uri)}: {count} experiment(s)"


def reason_of(error: Exception, uri: str) -> str:
    """The first line of an error, without what is secret in the address of the store, and not too long."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    for secret in _secrets(uri):
        text = text.replace(secret, "***")
    return text if len(text) <= 300 else text[:297] + "..."


def _secrets(uri: str) -> list[str]:
    try:
        parts = urlsplit(uri)
        found = [value for key, value in parse_qsl(parts.query, True) if SECRET.search(key)]
        lonely = parts.username if parts.scheme in WEB and not parts.password else None  # a token
        found += [parts.password or "", lonely or ""]
    except ValueError:
        head, at, _ = uri.rpartition("@")
        found = [head.partition("://")[2]] if at else []
    return [secret for secret in dict.fromkeys([*found, *map(unquote, found)]) if secret]


def _without_password(uri: str) -> str:
    for secret in _secrets(uri):
        uri = uri.replace(secret, "***")
    return uri
