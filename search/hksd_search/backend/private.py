"""The processes and the folder of a private Ray: signals do not reach them, others do not read them, they go with it.

A signal to a whole process group, or to every process of a service as systemd sends it, is for the driver alone: it
has the trials save, closes the books and then ends Ray. So Ray's processes begin in sessions of their own, with SIGTERM
and SIGHUP blocked, which their children inherit.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FOLDER = "hksd-ray-"  # in /tmp: the paths of Ray's sockets may not be long
LONGEST = 24  # characters of the folder around it, for the same reason
LOCK = ".lock"  # held by the driver for as long as it lives
DEAF_TO = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def apart() -> Iterator[None]:
    """Begin Ray's processes apart from this one (see the module); Ray has no public way for it."""
    from ray._private import services

    plain: Any = services.ConsolePopen

    class Apart(plain):  # type: ignore[misc]
        def __init__(self, *arguments: Any, preexec_fn: Callable[[], None] | None = None, **named: Any):
            def begin() -> None:
                if preexec_fn is not None:
                    preexec_fn()
                os.setsid()
                signal.pthread_sigmask(signal.SIG_BLOCK, DEAF_TO)

            super().__init__(*arguments, preexec_fn=begin, **named)

        def terminate(self) -> None:
            self.kill()  # it would not hear of SIGTERM

    services.ConsolePopen = Apart
    try:
        yield
    finally:
        services.ConsolePopen = plain


class Home:
    """The folder in which a private Ray keeps its session, for this user alone; removed when it closes.

    What processes that died have left is removed first.

    Attributes:
        path: what Ray is given.
    """

    def __init__(self) -> None:
        root = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()))
        if len(str(root)) > LONGEST or not os.access(root, os.W_OK):
            root = Path("/tmp")
        remove_left(root)
        while True:
            self.folder = Path(tempfile.mkdtemp(prefix=FOLDER, dir=root))  # for this user alone
            with suppress(FileNotFoundError):
                self._lock = (self.folder / LOCK).open("w")
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                if (self.folder / LOCK).exists():  # another process may have taken it for one that was left
                    break
        self.path = self.folder / "r"  # Ray lets everybody write into what it is given

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def remove_left(root: Path) -> None:
    """Remove the folders below `root` whose process is dead."""
    for folder in root.glob(f"{FOLDER}*"):
        with suppress(OSError), (folder / LOCK).open("r+") as file:  # not that of another user
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def kill_sessions(leaders: set[int]) -> None:
    """End what is left of the sessions that some processes began: workers and agents that outlive their raylet."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) in leaders:
                os.kill(int(entry.name), signal.SIGKILL)
