"""The way into Ray: its settings, a private Ray or a cluster, and out again.

Ray reads its settings from the environment when it is imported: call `prepare` before the first import of ray.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from hksd.errors import RunError, UserError
from hksd_search.backend import failures, private

T = TypeVar("T")
log = logging.getLogger(__name__)

SHUTDOWN_S = 8.0  # Ray that takes longer to end is left to the system
_home: private.Home | None = None  # of the private Ray of this process

# Ray takes a node at 127.0.0.1 for one of the machine's own address, and then listens on all interfaces, but where it
# has no clusters (macOS, Windows); this makes it believe so.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: finish the epoch, save
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the study and MLflow have it all
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0 the old reporter is silent, the new one still prints a banner
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that is stopped inside its first epoch has nothing to report
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # the study is what a search resumes from; a snapshot has all trials in it
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without a GPU of its own must not see one
}


def prepare(address: str | None, nice: int = 0) -> None:
    """Set Ray's environment for a private Ray (no address) or a cluster; what the user set himself stays.

    A private Ray listens on the loopback interface only. Whoever else is on this machine gets there, so it asks for a
    fresh token that only this process and its children know; no token file is written.
    A cluster's mode and token are the cluster's own (RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH).

    Args:
        address: of the cluster.
        nice: niceness of the workers of a private Ray, 0 to 19; Ray's own default is 15.
    """
    if address is None:
        os.environ.setdefault("RAY_worker_niceness", str(nice))
        os.environ.setdefault(LOOPBACK, "0")
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if address is None and "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def start_ray(address: str | None = None) -> None:
    """Connect to a cluster, or start a private Ray on this machine (after `prepare`).

    A private Ray that does not start, on a machine that is too busy say, is tried once more.

    Raises:
        UserError: there is no cluster at `address`.
        RunError: Ray does not start here.
        KeyboardInterrupt: stopped by a signal.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    processes = _children()
    try:
        if address is not None:
            _connect(address)
        else:
            _start_twice()
    except (SystemExit, KeyboardInterrupt):  # while it starts, Ray answers SIGTERM itself
        _give_up_start(processes)
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
    _quiet()


def _connect(address: str) -> None:
    try:
        _init(address=address)
    except ConnectionError as error:
        raise UserError(f"--address {address}: no Ray cluster answers there") from error
    except Exception as error:  # whatever a library meets in a cluster
        raise RunError(f"--address {address}: Ray cannot be used there: {failures.last_line(error)}") from error


def _start_twice() -> None:
    if other := os.environ.get("RAY_ADDRESS"):
        log.warning("RAY_ADDRESS (%s) is not looked at; a Ray of our own is started (--address auto takes it)", other)
    for last in (False, True):
        before = _children()
        try:
            _init(num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, _node_ip_address="127.0.0.1")
            return
        except Exception as error:  # Ray tells a start that took too long by exceptions of many kinds
            why = failures.last_line(error)
            _give_up_start(before)
            if last:
                raise RunError(
                    f"Ray did not start on this machine, tried twice ({why}): wait until less else runs here, see that "
                    "there are memory and space in /tmp, and try again"
                ) from error
            log.warning("Ray did not start (%s); it is tried once more", why)


def _give_up_start(before: set[int]) -> None:
    """End what a start that came to nothing has begun; Ray itself does not know of all that yet.

    Args:
        before: processes that were there before.
    """
    begun = _children() - before
    stop_ray()
    private.kill_sessions(begun)
    for process in begun & _children():  # others may have got the number of one that is gone
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)


def _init(**how: Any) -> None:
    """Call `ray.init`, so that workers find modules where every Python process would.

    By itself Ray puts the working directory before everything else on the path of each worker, where a file of the
    user's, a yaml.py or a search.py, would hide a module of Python's or of ours. Ray does not where the job has a
    working directory of its own, so the job says that it has. There is no public way but to really give it one, which
    makes a start a second longer. Trials and `at_home` go to the user's directory themselves.
    """
    global _home
    import ray
    from ray.job_config import JobConfig

    class Job(JobConfig):  # type: ignore[misc]
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    if "address" not in how:
        how["address"] = "local"  # never that of RAY_ADDRESS
        _home = private.Home()
        how["_temp_dir"] = str(_home.path)
    with private.apart():
        ray.init(job_config=Job(), log_to_driver=False, logging_level="ERROR", **how)


def _children() -> set[int]:
    """Processes below this one; none where the system does not tell."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, wave = set[int](), {os.getpid()}
    while wave:
        wave = {process for process, parent in parents.items() if parent in wave} - found
        found |= wave
    return found


@contextmanager
def pending_trials(count: int) -> Iterator[None]:
    """Let Tune start that many workers at once inside.

    All workers start together. When one starts alone and another comes free meanwhile, Tune hands that one over and
    takes the start back, over and over: with short trials only one worker ever trains.
    """
    name = "TUNE_MAX_PENDING_TRIALS_PG"
    before = os.environ.get(name)
    os.environ.setdefault(name, str(count))
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def at_home(home: str, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in the folder `home`, where this machine has it: for what a worker does outside of trials.

    Relative paths then mean what they mean to the user, and networks of his own are found.
    """
    if Path(home).is_dir():
        os.chdir(home)
    return function(*arguments)


def _quiet() -> None:
    """Keep Ray from telling of dead workers at length, on standard output too: the ledger says it in a line."""
    import ray

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    ray._private.worker._worker_logs_enabled = False  # no public switch turns this off


def stop_ray() -> None:
    """Leave the cluster, or end the private Ray with all that it has started, in a limited time."""
    global _home
    import ray

    node = ray._private.worker._global_node
    infos = [info for known in (node.all_processes if node else {}).values() for info in known]
    ending = threading.Thread(target=ray.shutdown, name="end of ray", daemon=True)
    ending.start()
    ending.join(SHUTDOWN_S)
    if ending.is_alive():
        atexit.unregister(ray.shutdown)
    for info in infos:
        with suppress(OSError):
            info.process.kill()
    private.kill_sessions({info.process.pid for info in infos})
    if _home is not None:
        _home.close()
        _home = None
