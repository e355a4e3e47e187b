"""A process that ends another one whose work hangs; time in which that was halted (SIGSTOP, a frozen machine) is none.

From inside it cannot be told whether a process has hung while it held the interpreter's lock, or was halted. From
outside the system says. Where the system does not tell, a timer of faulthandler does without.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

# Its arguments: the process to watch. On its standard input a line each: seconds and where to leave the last words, or
# nothing to wait for nothing. SIGABRT has faulthandler, in C, write the place of every thread.
WATCH = """
import os, select, signal, sys, time
pid, left, path, last = int(sys.argv[1]), None, "", time.monotonic()
while os.getppid() == pid:
    ready = select.select([0], [], [], 0.25 if left is not None else 5)[0]
    now = time.monotonic()
    passed, last = min(now - last, 1.0), now
    if ready:
        said = os.read(0, 65536).decode().splitlines()
        if not said:
            break
        seconds, _, path = said[-1].partition(" ")
        total = left = float(seconds) if seconds else None
    elif left is not None:
        with open(f"/proc/{pid}/stat") as file:
            halted = file.read().rpartition(")")[2].split()[0] in "Tt"
        left -= 0 if halted else passed
        if left <= 0:
            hours, minutes = divmod(total // 60, 60)
            with open(path, "a") as file:
                file.write(f"Timeout ({hours:.0f}:{minutes:02.0f}:{total % 60:09.6f})!\\n")
            for number in (signal.SIGABRT, signal.SIGKILL):
                if os.getppid() == pid:
                    os.kill(pid, number)
                for _ in range(30):
                    if os.getppid() == pid:
                        time.sleep(0.1)
            break
"""


class Watchdog:
    """Ends this process when it is not told within the time that it was given that all is well."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def watch(self, seconds: float, file: IO[bytes]) -> None:
        """Give this process some time from now; `file`, for its last words, has faulthandler enabled on it."""
        if not self._tell(f"{seconds} {Path(file.name).resolve()}\n"):
            faulthandler.dump_traceback_later(seconds, file=file, exit=True)

    def rest(self) -> None:
        """Nothing is waited for."""
        faulthandler.cancel_dump_traceback_later()
        if self._process is not None:
            self._tell("\n")

    def _tell(self, line: str) -> bool:
        """Say something to the process, which begins with the first word; whether there is one."""
        if not Path("/proc/self/stat").exists():
            return False
        with contextlib.suppress(OSError):
            if self._process is None or self._process.poll() is not None or self._owner != os.getpid():
                words = [sys.executable, "-I", "-S", "-c", WATCH, str(os.getpid())]
                pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
                self._process = subprocess.Popen(words, stdin=pipe, stdout=nowhere, stderr=nowhere, bufsize=0)
                self._owner = os.getpid()
            assert self._process.stdin is not None
            self._process.stdin.write(line.encode())
            return True
        return False


watchdog = Watchdog()  # one for the life of a worker, which trains many trials
