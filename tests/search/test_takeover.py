"""A process that takes the place of one whose Ray has died, and the words that are said for one that cannot speak."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hksd_search.backend import takeover

Make = Callable[..., Any]
COMMAND = "hksd search 'my first' --resume"
SPOKEN_FOR = """
import os, signal, sys
from hksd_search.backend import last_word, takeover
if os.environ.get(takeover.DIED):  # it has taken the place of the one below
    takeover.clear()
    print("in its place", file=sys.stderr)
else:
    with last_word.spoken_for(sys.argv[1], True):
        {end}
"""
TAKE_PLACE = """told = takeover.environment("raylet", last_word.hand_on(), 1, False)
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **told})"""

SLEEP = "import time; print(1, flush=True); time.sleep(600)"
LEADER = f"""
import os, signal, subprocess, sys
os.setsid()
print(subprocess.Popen([sys.executable, "-c", {SLEEP!r}], stdout=subprocess.DEVNULL).pid, flush=True)
signal.pause()
"""


def ended(how: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", SPOKEN_FOR.replace("{end}", how), COMMAND, "--json"]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("how", ["os._exit(1)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_process_that_ends_without_a_word_still_says_how_to_go_on(how: str) -> None:
    found = ended(how)
    assert found.stderr.startswith("failed: the process was ended")
    assert found.stderr.endswith(f"Resume with:\n  {COMMAND}\n")
    told = json.loads(found.stdout)
    assert told["exit_code"] == 1
    assert COMMAND in told["error"]


@pytest.mark.parametrize("how", ["pass", "sys.exit(1)", "last_word.take_back(); os._exit(1)"])
def test_nobody_speaks_for_one_that_ends_in_an_orderly_way(how: str) -> None:
    found = ended(how)
    assert (found.stdout, found.stderr) == ("", "")


def test_nobody_speaks_for_one_whose_place_is_taken() -> None:
    found = ended(TAKE_PLACE)
    assert found.returncode == 0
    assert found.stdout == ""
    assert found.stderr.splitlines() == [
        "Ray died (raylet); it is started again, and trials go on from their last checkpoints",
        "in its place",
    ]


def test_what_is_left_of_ray_is_ended_with_its_sessions_and_nothing_else(
    child: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray, other = child(LEADER), child(SLEEP)
    below = int(ray.stdout.readline())
    other.stdout.readline()
    stranger = os.getppid()  # a number that is taken by now, say, and no child
    for name, value in takeover.environment("raylet", [ray.pid, stranger], 2, True).items():
        monkeypatch.setenv(name, value)
    takeover.clear()
    assert capsys.readouterr().out == "Ray died (raylet); trials wait at their last checkpoints\n"
    with pytest.raises(ChildProcessError):
        os.waitpid(ray.pid, os.WNOHANG)
    state = Path(f"/proc/{below}/status")
    assert not state.exists() or "\nState:\tZ" in state.read_text()
    assert other.poll() is None
    assert takeover.LEFT not in os.environ
    assert os.environ[takeover.STOPPED], "the search is to know it too"
    takeover.clear()
    assert capsys.readouterr().out == ""
    other.send_signal(signal.SIGKILL)
