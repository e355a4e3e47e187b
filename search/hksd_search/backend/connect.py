"""The way into Ray: its settings, a private Ray or a cluster, and out again.

Ray reads its settings from the environment when it is imported: call `prepare` before the first import of ray.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from typing import Any

from hksd.errors import UserError

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


def start_ray(address: str | None = None) -> None:
    """Connect to a cluster, or start a private Ray on this machine (after `hksd_search.backend.connect.prepare`).

    Raises:
        UserError: there is no cluster at `address`.
        KeyboardInterrupt: stopped by a signal.
    """
    import ray

    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            cores = len(os.sched_getaffinity(0))
            ray.init(num_cpus=cores, include_dashboard=False, _node_ip_address="127.0.0.1", **common)
        else:
            ray.init(address=address, **common)
    except ConnectionError as error:
        if address is None:
            raise
        raise UserError(f"--address {address}: no Ray cluster answers there") from error
    except SystemExit:  # while it starts, Ray answers SIGTERM itself
        raise KeyboardInterrupt from None
    _quiet()


def _quiet() -> None:
    """Keep Ray from telling of dead workers at length, on standard output too: the ledger says it in a line."""
    import ray

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    ray._private.worker._worker_logs_enabled = False  # no public switch turns this off


def stop_ray() -> None:
    """Leave the cluster, or end the private Ray."""
    import ray

    ray.shutdown()
