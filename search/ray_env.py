"""Settings that Ray reads from the environment when it is imported; call `prepare` before the first import of ray."""

from __future__ import annotations

import os
import secrets
import sys

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: finish the epoch, save
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the study and MLflow have it all
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0 the old reporter is silent, the new one still prints a banner
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that is stopped inside its first epoch has nothing to report
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # the study is what a search resumes from; a snapshot has all trials in it
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without a GPU of its own must not see one
}


def prepare(address: str | None) -> None:
    """Set Ray's environment for a private Ray (no address) or a cluster; what the user set himself stays.

    A private Ray binds its node address to loopback, but its ports still listen on every interface. It therefore gets
    token authentication with a fresh token that only this process and its children know; no token file is written.
    A cluster's mode and token are the cluster's own (RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH).
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if address is None and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
