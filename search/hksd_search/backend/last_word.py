"""A process of its own that says how to go on when this one ends without a word.

Ray's library ends a process from C++ when it has lost its raylet, its store or its cluster, and the system does when
memory is short. No handler runs then; somebody else has to say it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Reads until the process is gone or takes it back by a byte. Its arguments: for people, for programs.
SPEAK = """
import os, sys
if not os.read(0, 1):
    for number, text in ((2, sys.argv[1]), (1, sys.argv[2])):
        try:
            os.write(number, text.encode("utf-8", "surrogateescape"))
        except OSError:
            pass
"""
WITHOUT_A_WORD = "the process was ended from outside (killed, out of memory) or by Ray, whose parts had died"
_speaker: subprocess.Popen[bytes] | None = None


@contextmanager
def spoken_for(command: str, as_json: bool) -> Iterator[None]:
    """Have it said how to go on, should this process end inside without a word.

    Args:
        command: what a user would type to go on.
        as_json: standard output gets one JSON object too.
    """
    global _speaker
    text = f"{WITHOUT_A_WORD}. Everything up to the last checkpoints is saved. Resume with:\n  {command}"
    for_programs = json.dumps({"error": text, "exit_code": 1}) + "\n" if as_json else ""
    words = [sys.executable, "-I", "-S", "-c", SPEAK, f"failed: {text}\n", for_programs]
    with suppress(OSError):  # without it all goes as well, but for those words
        _speaker = subprocess.Popen(words, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)
    try:
        yield
    finally:
        take_back()


def hand_on() -> list[int]:
    """Another program takes the place of this one and ends the speaker; until then it speaks for both.

    Returns:
        The number of the speaker, where there is one.
    """
    if _speaker is None or _speaker.stdin is None:
        return []
    os.set_inheritable(_speaker.stdin.fileno(), True)
    return [_speaker.pid]


def take_back() -> None:
    """This process goes on to speak for itself."""
    global _speaker
    speaker, _speaker = _speaker, None
    if speaker is not None and speaker.stdin is not None:
        with suppress(OSError):
            os.write(speaker.stdin.fileno(), b".")
            speaker.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            speaker.wait(timeout=5)
