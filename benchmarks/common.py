"""What the benchmarks share: two sides in processes of their own that take turns, medians, intervals, the JSON file."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import shlex
import statistics
import sys
import threading
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from scipy.stats import t

from hksd.provenance import provenance

# What makes the reference a plain PyTorch process.
STOCK = {"HKSD_KERNELS": "0"}
START = "spawn"  # how processes start; a test may fork instead, which spares it the imports of every process
Sample = dict[str, float]
_starting = threading.Lock()


def cpu_seconds() -> float:
    """CPU time of this process, all threads, and of its children, living (Linux) or ended."""
    ended = os.times()
    living = sum(_cpu_of(child.pid) for child in multiprocessing.active_children() if child.pid)
    return time.process_time() + ended.children_user + ended.children_system + living


def _cpu_of(pid: int) -> float:
    try:  # the name of the process, in brackets, may hold spaces: fields are counted behind it
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Turns:
    """A side's view of the alternation: it works, gives a sample, and sleeps until it is its turn again."""

    def __init__(self, pipe: Connection):
        self.pipe, self.cpu = pipe, cpu_seconds()

    def begin(self) -> None:
        """Start the clock anew, so that what was prepared until here is in no sample."""
        self.cpu = cpu_seconds()

    def __call__(self, images: int, seconds: float) -> bool:
        """Give a sample and wait.

        Args:
            images: training images since the last sample.
            seconds: wall-clock time that they took.

        Returns:
            True when no further sample is wanted.
        """
        spent = cpu_seconds() - self.cpu
        self.pipe.send({"images_per_s": images / seconds, "images_per_cpu_s": images / spent, "cpu_s": spent})
        ended = self.pipe.recv() == "end"
        self.cpu = cpu_seconds()
        return ended


class Side:
    """One side of a comparison: a process that works only while a sample of it is asked for.

    Args:
        name: for messages.
        work: module-level function; its first argument is a `Turns`.
        arguments: the others, picklable.
        environment: variables that the process shall have from its start.
    """

    def __init__(self, name: str, work: Callable[..., None], *arguments: Any, environment: Mapping[str, str] = {}):
        self.name = name
        self.process, self.pipe = _start(_take_turns, (work, arguments), environment)

    def sample(self) -> Sample:
        """Let the side work until its next sample; the first one includes what it has to prepare."""
        self.pipe.send("go")
        return _received(self.name, self.pipe)

    def close(self) -> None:
        """End the process."""
        if self.process.is_alive():
            self.pipe.send("end")
            self.process.join(10)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


def interleaved(sides: Sequence[Side], rounds: int, warm: Mapping[str, int]) -> dict[str, list[Sample]]:
    """Samples of all sides in turns, the order reversed every other round; warm-up samples (1, or `warm`) come first.

    Returns:
        ``warm-up samples + rounds`` samples by name of the side.
    """
    samples: dict[str, list[Sample]] = {side.name: [] for side in sides}
    with ExitStack() as stack:
        for side in sides:
            stack.callback(side.close)
            samples[side.name] += [side.sample() for _ in range(warm.get(side.name, 1))]
        for turn in range(rounds):
            for side in sides if turn % 2 == 0 else reversed(sides):
                samples[side.name].append(side.sample())
    return samples


def alone(work: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] = {}) -> Any:
    """Call a module-level function in a fresh process and return its result; may be called from several threads."""
    process, pipe = _start(_call, (work, arguments), environment)
    try:
        return _received(work.__name__, pipe)
    finally:
        process.join()


def _start(
    main: Callable[..., None], arguments: tuple[Any, ...], environment: Mapping[str, str]
) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context(START)
    mine, theirs = context.Pipe()
    process = context.Process(target=main, args=(theirs, *arguments))  # not a daemon: it may have loader workers
    with _starting:  # a child takes over the environment as it is when it starts
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
    theirs.close()
    return process, mine


def _take_turns(pipe: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    try:
        if pipe.recv() == "go":
            work(Turns(pipe), *arguments)
    except EOFError:  # the benchmark itself has ended
        return
    except Exception:
        pipe.send(RuntimeError(traceback.format_exc()))


def _call(pipe: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        pipe.send(work(*arguments))
    except Exception:
        pipe.send(RuntimeError(traceback.format_exc()))


def _received(name: str, pipe: Connection) -> Any:
    try:
        result = pipe.recv()
    except EOFError:
        raise SystemExit(f"{name}: its process died (out of memory?)") from None
    if isinstance(result, Exception):
        raise SystemExit(f"{name}: failed\n{result}")
    return result


def ratio(ours: Sequence[Sample], theirs: Sequence[Sample], key: str) -> float:
    """Median over the rounds of ours / theirs; both samples of a round lie close together in time."""
    return statistics.median(a[key] / b[key] for a, b in zip(ours, theirs, strict=True))


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (None for one value) and n."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "std": spread, "n": len(values)}


def paired(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Mean of first - second, pair by pair, with half the width of its 95 % interval (Student's t)."""
    found = summary([a - b for a, b in zip(first, second, strict=True)])
    n = found["n"]
    return {**found, "half_95": t.ppf(0.975, n - 1) * found["std"] / math.sqrt(n) if n > 1 else None}


def rounded(value: Any) -> Any:
    """Numbers to five significant digits, in nested lists and mappings: more would be noise."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def save(options: Namespace, **content: Any) -> None:
    """Write ``options.out``: the command, hardware, versions, load of the machine at the end, then `content`."""
    facts = {"command": command(), **provenance(), "load_average": os.getloadavg()[0]}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**facts, **rounded(content)}, indent=1) + "\n")


def without_places(tree: Any) -> Any:
    """Nested values with absolute paths taken out: they are of no use elsewhere."""
    if isinstance(tree, Mapping):
        return {key: without_places(value) for key, value in tree.items()}
    return "PATH" if isinstance(tree, str) and tree.startswith("/") else tree


def command() -> str:
    """The command line, without places of this machine."""
    words = [f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    return shlex.join(["python", *(re.sub(r"(^|=)/.*", r"\1PATH", word) for word in words)])
