"""Where MLflow is: the address of a store, whether it answers, how people look at it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from urllib.parse import urlsplit

from hksd.errors import UserError

SQLITE = "sqlite:///"


def store_uri(uri: str | None, runs: Path) -> str:
    """The tracking store: `uri`, else a SQLite file below `runs`. SQLite paths are made absolute for MLflow."""
    uri = uri or f"{SQLITE}{runs / 'mlflow.db'}"
    return SQLITE + str(Path(uri.removeprefix(SQLITE)).resolve()) if uri.startswith(SQLITE) else uri


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
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",  # a connection that is kept sees a deleted file as it was
    }.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


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
    """The first line of an error, without the password of the store."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    password = urlsplit(uri).password
    return text.replace(password, "***") if password else text


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    return uri.replace(f":{parts.password}@", ":***@") if parts.password else uri
