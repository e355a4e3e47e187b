"""What the tests share: a few hundred real images, small configurations, made-up taps, child processes.

Fixtures that return functions are session-scoped, so that properties checked by hypothesis may use them too.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings
from sklearn.datasets import load_digits
from torch import Tensor

from hksd.config.run import RunConfig, from_tree
from hksd.data import DataSet, Split
from hksd.models.taps import Out, TapShapes

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT.parent / "shared" / "vectors"  # reference values; not part of the repository

torch.set_num_threads(1)
# Under nohup or in the background of a script these are ignored, which the programs under test inherit and respect.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
settings.register_profile(
    "quick", deadline=None, max_examples=60, derandomize=True, phases=[Phase.explicit, Phase.generate, Phase.shrink]
)
settings.load_profile("quick")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line what this machine could not run, and why."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    if reasons:
        why = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"not run here: {sum(reasons.values())} tests: {why}")


def _split(images: np.ndarray, labels: np.ndarray, rows: slice) -> Split:
    index = np.arange(len(labels), dtype=np.int64)
    return Split(images[rows], labels[rows].astype(np.int64), index[rows])


@contextmanager
def _full_disk(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """with full_disk(size): no file of this process grows beyond `size` bytes.

    It must not stay open between tests: pytest's own output may be a file, and longer than that.
    """
    return _full_disk


@pytest.fixture(scope="session")
def make_data() -> Callable[..., DataSet]:
    """make_data(train=.., validation=..): the first digits of scikit-learn, 8x8x1."""
    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]

    def make(train: int = 240, validation: int = 100, start: int = 0) -> DataSet:
        first = _split(images, bunch.target, slice(start, start + train))
        second = _split(images, bunch.target, slice(start + train, start + train + validation))
        pixels = first.images / 255
        digest = hashlib.sha256(first.images.tobytes() + second.images.tobytes()).hexdigest()[:16]
        return DataSet(
            "digits", tuple("0123456789"), first, second, (float(pixels.mean()),), (float(pixels.std()),), digest
        )

    return make


@pytest.fixture(scope="session")
def digits(make_data: Callable[..., DataSet]) -> DataSet:
    return make_data()


BASE: Mapping[str, Mapping[str, Any]] = {
    "data": {"name": "digits"},
    "teacher": {"model": "resnet8", "width": 0.25, "epochs": 2, "batch_size": 64, "attention": {"epochs": 1}},
    "student": {"model": "resnet8", "width": 0.25},
    "train": {"epochs": 2, "batch_size": 64, "lr": 0.05, "device": "cpu"},
}


@pytest.fixture(scope="session")
def make_tree() -> Callable[..., dict[str, Any]]:
    """make_tree(train={"epochs": 3}, terms={...}, seed=1): a small run as nested mappings.

    Sections are merged into the small defaults; `terms` is taken as it is; a section given as None is left out.
    """

    def make(
        terms: Mapping[str, Any] | None = None, seed: int = 0, **sections: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        tree: dict[str, Any] = {
            name: {**defaults, **(sections.get(name) or {})}
            for name, defaults in BASE.items()
            if sections.get(name, {}) is not None
        }
        tree |= {name: section for name, section in sections.items() if name not in BASE}  # modes
        tree["terms"] = {"ce": {}} if terms is None else {name: dict(term) for name, term in terms.items()}
        return {**tree, "seed": seed}

    return make


@pytest.fixture(scope="session")
def make_config(make_tree: Callable[..., dict[str, Any]]) -> Callable[..., RunConfig]:
    """Like `make_tree`, as a configuration."""
    return lambda **sections: from_tree(make_tree(**sections))


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher cache for tests that need a teacher and do not test it."""
    return tmp_path_factory.mktemp("teachers")


@pytest.fixture(scope="session")
def make_taps() -> Callable[..., tuple[TapShapes, Out]]:
    """make_taps(channels, blocks=.., size=.., ...): shapes and random taps of a network that does not exist.

    Stage i has `blocks` maps (N, channels[i], size / 2^i, size / 2^i), all requiring gradients like the logits.
    """

    def make(
        channels: Sequence[int] = (4, 8, 12),
        blocks: int = 2,
        size: int = 8,
        batch: int = 3,
        embedding: int = 6,
        classes: int = 5,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[TapShapes, Out]:
        draw = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()

        maps = [
            [random(batch, count, size >> stage, size >> stage) for _ in range(blocks)]
            for stage, count in enumerate(channels)
        ]
        shapes = TapShapes(classes, embedding, tuple(channels), tuple((count,) * blocks for count in channels))
        return shapes, Out(random(batch, classes), random(batch, embedding), [stage[-1] for stage in maps], maps)

    return make


@pytest.fixture(scope="session")
def child() -> Callable[..., subprocess.Popen[str]]:
    """child(code, *arguments, cwd=..): a Python process that can import what this one can; the caller waits for it."""

    def start(
        code: str, *arguments: object, cwd: Path | None = None, flags: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        # Threads that wait sleep: spinning takes the processor away from the other tests.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        return subprocess.Popen(
            [sys.executable, *flags, "-c", code, *map(str, arguments)],
            cwd=cwd,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh SQLite store of MLflow, to be copied; making one takes seconds, so that all workers share it."""
    from hksd_search.tracking import access

    base = tmp_path_factory.getbasetemp()
    file = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "empty-mlflow.db"
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            access.check(f"sqlite:///{file}.part")
            Path(f"{file}.part").replace(file)
    return file


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Folder of the reference vectors."""
    if not VECTORS.is_dir():
        pytest.skip("the reference vectors are not here (they are no part of the repository)")
    return VECTORS
