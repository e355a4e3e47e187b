"""Measured latencies of students, kept between searches.

A latency is measured once for an architecture, a shape of images, a runtime, a processor and a protocol, and stored in
`runs/latency/`, where every later search finds it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hksd.cache import LockError, made_once
from hksd.config.networks import StudentConfig, TeacherConfig
from hksd.config.run import dump
from hksd.deploy import latency
from hksd.deploy.latency import Latency
from hksd.errors import RunError, UserError
from hksd.files import write_atomically
from hksd.models.size import size_of
from hksd_search.space.settings import LOCAL, LatencySettings, SearchConfig

FOLDER = "latency"  # below the runs folder
log = logging.getLogger(__name__)


class Latencies:
    """Latencies on one target.

    Args:
        runs: folder of all searches.
        settings: target and protocol.
        shape: `in_channels`, `classes` and `image_size` of the data.
        elsewhere: elsewhere(target, function, *arguments) calls a function on a target that is not this machine.
    """

    def __init__(self, runs: Path, settings: LatencySettings, shape: Mapping[str, int], elsewhere: Callable[..., Any]):
        self.folder, self.settings, self.shape = runs / FOLDER, settings, dict(shape)
        self.elsewhere = elsewhere
        self.known: dict[str, Latency] = {}
        self._place: tuple[str, str] | None = None

    def get(self, network: StudentConfig | TeacherConfig) -> Latency:
        """Latency of a network, measured only where no search has done so.

        Raises:
            UserError: no node has the target, or the network cannot be built or written as ONNX.
            RunError: the target did not answer.
        """
        facts = self._depends(network)
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        if key not in self.known:
            self.known[key] = self._look_up(network, facts, self.folder / f"{key}.json")
        return self.known[key]

    def facts(self) -> dict[str, Any]:
        """Where and how it measures: target, threads, runs, runtime and processor."""
        if self._place is None:
            self._place = self._call(latency.where)
        runtime, processor = self._place
        return {**dump(self.settings), "runtime": runtime, "processor": processor}

    def _depends(self, network: StudentConfig | TeacherConfig) -> dict[str, Any]:
        """What a latency depends on. Sizes stand for the code of a network, which its name does not tell."""
        spec = {key: value for key, value in dataclasses.asdict(network.spec()).items() if key != "place"}
        if (
            spec["image_size"] is None
        ):  # most networks see what the data has, and earlier measurements say nothing of it
            del spec["image_size"]
        return {
            "network": {**spec, "taps": list(spec["taps"])},
            "shape": self.shape,
            "size": dataclasses.asdict(size_of(network.spec(), **self.shape)),
            **self.facts(),
        }

    def _look_up(self, network: StudentConfig | TeacherConfig, facts: dict[str, Any], path: Path) -> Latency:
        def measure() -> Latency:
            found = self._measure(network)
            content = json.dumps({"of": facts, "latency": dataclasses.asdict(found)}, indent=1)
            try:
                write_atomically(path, content.encode())
            except OSError as error:
                raise UserError(f"{path}: cannot be written: {error.strerror}") from error
            return found

        lock = self.folder / f".{self.settings.target}.lock"  # one for all networks: measuring at once would disturb
        try:
            return made_once(lock, lambda: read(path, facts), measure)[0]
        except LockError as error:
            raise UserError(f"{self.folder}: cannot be written: {error.strerror}") from error

    def _measure(self, network: StudentConfig | TeacherConfig) -> Latency:
        size = network.spec().size(self.shape["image_size"])
        try:
            model = latency.untrained(network.spec(), **self.shape)
        except RunError as error:
            raise UserError(f"student.model {network.model}: its latency cannot be measured: {error}") from error
        arguments = (model, (self.shape["in_channels"], size, size), self.settings.threads, self.settings.runs)
        measured: Latency = self._call(latency.measure, *arguments)
        return measured

    def _call(self, function: Any, *arguments: Any) -> Any:
        """Call a function on the target."""
        if self.settings.target == LOCAL:
            return function(*arguments)
        return self.elsewhere(self.settings.target, function, *arguments)


def latencies_of(
    settings: SearchConfig, runs: Path, shape: Mapping[str, int], elsewhere: Callable[..., Any]
) -> Latencies | None:
    """What measures latency for a search; None where latency is neither an objective nor a limit."""
    return Latencies(runs, settings.latency, shape, elsewhere) if settings.asks_latency else None


def read(path: Path, facts: Mapping[str, Any]) -> Latency | None:
    """Read a stored latency of exactly these facts; None where there is none, or the file is damaged."""
    try:
        content = json.loads(path.read_text())
        found = Latency(**content["latency"])
        if content["of"] == facts and 0 < found.median_ms <= found.p95_ms < math.inf:
            return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    log.warning("%s: damaged; the latency is measured again", path)
    return None
