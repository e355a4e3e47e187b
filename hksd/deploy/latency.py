"""How long one image takes on this machine: ONNX Runtime, one image at a time.

Latency does not depend on the values of the weights, so a network is measured before it is trained.

Protocol. ONNX Runtime's CPU provider with its default graph optimisation, batch 1, float32, a stated number of threads
inside an operator, one operator at a time; timed around the call alone, the image being in memory. Warm-up until two
blocks of runs in a row agree. Then `OVERSAMPLING` x `runs` timed runs in blocks of `BLOCK` runs; the blocks with the
smallest mean, `runs` runs together, are the least disturbed ones, and median and 95th percentile are over these.
Other programs only ever make a run slower, and in bursts: choosing whole blocks leaves the bursts out and keeps the
spread that the network itself has. How well that repeats under load is in docs/LOG.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from hksd import models
from hksd.deploy import onnx as onnx_export
from hksd.deploy.export import Deployed
from hksd.models import NetworkSpec
from hksd.provenance import processor

BLOCK = 10  # runs; long enough for a mean, short against a burst of other work
OVERSAMPLING = 5
LONGEST_S = 20.0  # after that no more blocks than `runs` needs
AGREE, WARM_BLOCKS = 0.05, 30  # warm-up ends when medians of blocks differ by no more, or after that many blocks
RUNTIME = "onnxruntime"


@dataclass(frozen=True)
class Latency:
    """A measured latency.

    Attributes:
        median_ms: median time of one image, in milliseconds.
        p95_ms: 95th percentile.
        runs: timed runs that these are over.
        threads: threads inside an operator.
        runtime: name and version of the runtime.
        processor: what it was measured on.
    """

    median_ms: float
    p95_ms: float
    runs: int
    threads: int
    runtime: str
    processor: str


def measure(model: bytes, shape: tuple[int, int, int], threads: int = 1, runs: int = 100) -> Latency:
    """Measure an ONNX model of `hksd.deploy.onnx` on this machine; see the protocol above.

    Args:
        model: the model.
        shape: channels, height and width of an image.
        threads: threads inside an operator, 1 or more.
        runs: runs that count; rounded up to whole blocks of `BLOCK`.
    """
    session = onnx_export.session(model, threads)
    image = np.random.default_rng(0).random((1, *shape), dtype=np.float32)

    def run() -> None:
        session.run([onnx_export.OUTPUT], {onnx_export.INPUT: image})

    _warm_up(run)
    kept = least_disturbed(run, -(-runs // BLOCK))
    median, p95 = np.percentile(kept, [50, 95]) / 1e6
    runtime, name = where()
    return Latency(float(median), float(p95), len(kept), threads, runtime, name)


def where() -> tuple[str, str]:
    """Runtime with its version, and processor, of this machine: what a latency depends on beside the network."""
    import onnxruntime

    return f"{RUNTIME} {onnxruntime.__version__}", processor()


def untrained(spec: NetworkSpec, *, in_channels: int, classes: int, image_size: int) -> bytes:
    """A network with random weights as an ONNX model, normalisation included, as it would be deployed.

    Raises:
        UserError: it cannot be built for these images.
        RunError: it cannot be written as ONNX.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = models.make(spec, in_channels=in_channels, classes=classes, image_size=image_size)
    program = Deployed(network, (0.5,) * in_channels, (0.25,) * in_channels).eval()
    size = spec.size(image_size)
    return onnx_export.to_onnx(program, torch.zeros(2, in_channels, size, size))


def measure_untrained(spec: NetworkSpec, shape: Mapping[str, int], threads: int = 1, runs: int = 100) -> Latency:
    """Build an untrained network for images of `shape` (the keywords of `untrained`) and measure it."""
    size = spec.size(shape["image_size"])
    return measure(untrained(spec, **shape), (shape["in_channels"], size, size), threads, runs)


def _block(run: Callable[[], None]) -> list[int]:
    times = []
    for _ in range(BLOCK):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return times


def _warm_up(run: Callable[[], None]) -> None:
    before = statistics.median(_block(run))
    for _ in range(WARM_BLOCKS):
        now = statistics.median(_block(run))
        if abs(now - before) <= AGREE * before:
            return
        before = now


def least_disturbed(run: Callable[[], None], blocks: int) -> list[int]:
    """Time `run` in `OVERSAMPLING` times as many blocks; return the times of the `blocks` quickest, in nanoseconds."""
    taken: list[list[int]] = []
    end = time.monotonic() + LONGEST_S
    while len(taken) < blocks or (len(taken) < OVERSAMPLING * blocks and time.monotonic() < end):
        taken.append(_block(run))
    return [one for block in sorted(taken, key=sum)[:blocks] for one in block]
