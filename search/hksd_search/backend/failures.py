"""Why a worker of Ray was lost, in one line: the fault that ended it, or that its process died."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

DIED = "the worker process died (killed, out of memory, or crashed)"
NODE = "its machine is gone"
MEMORY = "its machine ran out of memory, and Ray ended it"
_FAULT = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt|Timeout)\b(?:: .*)?$", re.MULTILINE)
_EXIT = re.compile(r"^.*Worker exits with an exit code (?!None)(.+?)\.?$", re.MULTILINE)  # of sys.exit, not of a kill
_NODE = re.compile(r"\bnode (?:has died|was (?:dead|preempted|terminated))")
_ADDRESS = re.compile(r"(?:^\s*ip|[Nn]ode IP): ([^\s,]+)", re.MULTILINE)
_ACTOR = re.compile(r"\bactor(?:_id:| ID)? ([0-9a-f]{32})\b", re.IGNORECASE)
_NODE_ID = re.compile(r"\bnode ID: ([0-9a-f]{56})\b", re.IGNORECASE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Failure:
    """How a worker was lost.

    Attributes:
        reason: in one line.
        fault: an exception in the worker, outside of any trial (an import that fails, a file that is not there), which
            every worker of that machine would meet. Otherwise its process or its machine is gone.
        node: Ray's id of the node, where it tells.
        address: of the machine, where it tells.
        actor: Ray's id of the worker, where it tells.
    """

    reason: str
    fault: bool
    node: str | None = None
    address: str | None = None
    actor: str | None = None


def failure(error: BaseException | str) -> Failure:
    """Read what Ray says of a worker that is lost.

    Args:
        error: an exception of Ray, or its text.
    """
    text = _COLOUR.sub("", str(error))
    node, address, actor = (form.search(text) for form in (_NODE_ID, _ADDRESS, _ACTOR))
    return replace(_read(text), node=node and node[1], address=address and address[1], actor=actor and actor[1])


def _read(text: str) -> Failure:
    if "low on memory" in text:  # Ray names an exception too, but nobody else need meet this
        return Failure(MEMORY, fault=False)
    if _NODE.search(text):
        return Failure(NODE, fault=False)
    if found := _FAULT.findall(text):  # of a chain of exceptions the last one was there first in a worker
        return Failure(str(found[-1]).removeprefix("ray.exceptions."), fault=True)
    if code := _EXIT.search(text):
        if code[1].isdecimal():
            return Failure(f"the worker process ended itself (exit code {code[1]})", fault=False)
        return Failure(f"SystemExit: {code[1]}", fault=True)
    return Failure(DIED, fault=False)


def told_by_tune(file: str | None) -> Failure | None:
    """Why a trial's worker was lost, from the file in which Tune keeps its errors; None where there is none.

    Args:
        file: `error_file` of the trial of Tune; the newest error is its last.
    """
    try:
        text = Path(file or "").read_text(errors="replace")
    except OSError:
        return None
    return failure(text.rpartition("\nFailure # ")[2])


def last_line(error: BaseException) -> str:
    """An exception in one line: what it says, or of many lines the last that says something."""
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    return lines[-1] if len(lines) > 1 else (lines[0] if lines else type(error).__name__)
