"""Several trials on one GPU: shares, memory that runs out, turns. The GPU is a stand-in, since there may be none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hksd.config.run import RunConfig
from hksd.errors import RunError
from hksd.schema import check
from hksd_search.backend import gpu, packing
from hksd_search.backend.gpu import GIB, GpuMemoryError, Turns, guarded
from hksd_search.backend.packing import MOST, Packing, Usage, decide, proposed
from hksd_search.space.settings import Resources

Make = Callable[..., Any]


class Cuda:
    """What `torch.cuda` does for one GPU of 80 GiB, as a list of calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.share = 1.0

    def is_available(self) -> bool:
        return True

    def set_per_process_memory_fraction(self, share: float) -> None:
        self.share = share
        self.calls.append(("share", share))

    def empty_cache(self) -> None:
        self.calls.append(("empty", None))

    def reset_peak_memory_stats(self) -> None: ...

    def max_memory_reserved(self) -> int:
        return 70 * GIB

    def mem_get_info(self) -> tuple[int, int]:
        return 10 * GIB, 80 * GIB

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(uuid="GPU-0")


@pytest.fixture
def config(make_config: Make) -> RunConfig:
    made: RunConfig = make_config()
    return made


def needs(share: float, cuda: Cuda) -> Callable[[], None]:
    """A training that wants that share of the memory."""

    def train() -> None:
        if cuda.share < share:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return train


@pytest.mark.parametrize(
    ("has", "wants", "shares"), [(0.25, 0.2, [0.25]), (0.25, 0.3, [0.25, 1.0]), (1.0, 0.9, [1.0]), (2.0, 1.0, [1.0])]
)
def test_a_trial_has_its_share_and_one_for_which_it_is_too_little_is_trained_once_more_with_all(
    has: float, wants: float, shares: list[float], config: RunConfig, tmp_path: Path
) -> None:
    cuda = Cuda()
    guarded(needs(wants, cuda), config, has, cuda, tmp_path)
    assert [value for name, value in cuda.calls if name == "share"] == shares
    assert cuda.calls[-1] == ("empty", None)  # for the trials beside it


@pytest.mark.parametrize(("share", "tries"), [(0.25, 2), (1.0, 1)])
def test_what_does_not_fit_at_all_fails_with_what_it_was_and_what_helps(
    share: float, tries: int, config: RunConfig, tmp_path: Path
) -> None:
    cuda = Cuda()
    with pytest.raises(GpuMemoryError) as failed:
        guarded(needs(9, cuda), config, share, cuda, tmp_path)
    assert isinstance(failed.value, RunError)
    text = str(failed.value)
    for part in ("resnet8", "width 0.25", "batch size 64", "70.0 GiB of 80.0 GiB", "halve train.batch_size"):
        assert part in text
    assert ("search.resources.gpu" in text) == (share < 1)
    assert [name for name, _ in cuda.calls] == ["share", "empty"] * tries


def test_the_tensors_of_a_failed_trial_are_let_go(config: RunConfig, tmp_path: Path) -> None:
    class Big:
        alive = 0

        def __init__(self) -> None:
            Big.alive += 1

        def __del__(self) -> None:
            Big.alive -= 1

    counted: list[int] = []

    class Watched(Cuda):
        def empty_cache(self) -> None:
            counted.append(Big.alive)

    def train() -> None:
        big = [Big()]
        try:
            raise ValueError("one fault")
        except ValueError:
            raise torch.OutOfMemoryError(f"another, with {len(big)}") from None

    with pytest.raises(GpuMemoryError):
        guarded(train, config, 1.0, Watched(), tmp_path)
    assert counted == [0]


def test_other_faults_pass_and_without_a_gpu_nothing_is_guarded(config: RunConfig, tmp_path: Path) -> None:
    cuda, done = Cuda(), list[int]()

    def broken() -> None:
        raise ValueError("no memory problem")

    with pytest.raises(ValueError, match="no memory"):
        guarded(broken, config, 0.5, cuda, tmp_path)
    cuda.calls.clear()
    guarded(lambda: done.append(1), config, 0.0, cuda, tmp_path)
    assert (done, cuda.calls) == ([1], [])


def test_a_trial_that_waits_to_be_alone_waits_for_those_before_it_and_nobody_overtakes_it(tmp_path: Path) -> None:
    said: list[str] = []
    first_is_in, first_may_go, alone_waits = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with Turns("x", tmp_path).together():
            first_is_in.set()
            first_may_go.wait(10)
            said.append("first ends")

    def alone() -> None:
        alone_waits.set()
        with Turns("x", tmp_path).alone():
            said.append("alone")

    def late() -> None:
        with Turns("x", tmp_path).together():
            said.append("late")

    threads = [threading.Thread(target=function) for function in (first, alone, late)]
    threads[0].start()
    assert first_is_in.wait(10)
    with Turns("x", tmp_path).together():
        said.append("beside")  # many may be in at once
    threads[1].start()
    assert alone_waits.wait(10)
    while not _gate_is_taken(tmp_path):
        pass
    threads[2].start()
    first_may_go.set()
    for thread in threads:
        thread.join(10)
    assert said == ["beside", "first ends", "alone", "late"]


def _gate_is_taken(folder: Path) -> bool:
    import fcntl

    (path,) = folder.glob("*.gate")
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


# --- how many trials share a GPU


@pytest.mark.parametrize(
    ("usage", "cpus", "count", "bound"),
    [
        (Usage(2 * GIB, 80 * GIB, 0.10), 64, 10, "time"),
        (Usage(20 * GIB, 80 * GIB, 0.01), 64, 3, "memory"),
        (Usage(1 * GIB, 80 * GIB, 0.01), 4, 4, "processor cores"),
        (Usage(1 * GIB, 80 * GIB, 0.0), 64, MOST, "time"),
        (Usage(90 * GIB, 80 * GIB, 1.0), 64, 1, "memory"),
        (Usage(1 * GIB, 80 * GIB, 0.9), 0, 1, "processor cores"),
    ],
)
def test_as_many_trials_share_a_gpu_as_memory_time_and_cores_allow(
    usage: Usage, cpus: int, count: int, bound: str
) -> None:
    found = proposed(usage, cpus)
    assert int(1 / found.gpu + 1e-9) == count
    assert count * found.gpu <= 1
    assert f"{count} trial(s) per GPU, bounded by {bound}" in found.reason


def test_a_number_is_taken_as_it_is_and_auto_tries_out_only_where_a_gpu_is_wanted() -> None:
    def unwanted() -> Usage:
        raise AssertionError

    assert decide(0.5, True, lambda: 4, unwanted) == Packing(0.5)
    assert decide("auto", False, lambda: 4, unwanted) == Packing(0.0)
    assert decide("auto", True, lambda: 8, lambda: Usage(GIB, 80 * GIB, 0.05)).gpu == 1 / 8


def test_without_a_dry_run_a_trial_has_a_gpu_and_the_reason_is_said() -> None:
    def broken() -> Usage:
        raise RuntimeError("no kernel image\nmore")

    found = decide("auto", True, lambda: 16, broken)
    assert found == Packing(1.0, "1 trial per GPU, since a dry run was not possible: no kernel image")


def test_a_dry_run_leaves_no_trace_and_says_what_was_taken(
    make_config: Make, digits: Any, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = SimpleNamespace(
        start=lambda: None, stop=lambda: None, key_averages=lambda: [SimpleNamespace(self_device_time_total=1.0)]
    )
    monkeypatch.setattr(torch.profiler, "profile", lambda **_: profile)
    monkeypatch.setattr(packing, "STEPS", 2)
    cuda = SimpleNamespace(
        synchronize=lambda: None,
        reset_peak_memory_stats=lambda: None,
        max_memory_reserved=lambda: 3,
        mem_get_info=lambda: (1, 9),
    )
    config = make_config(terms={"ce": {}, "kd": {}})
    before = {path for path in cache_dir.rglob("*") if path.suffix == ".ckpt"}
    usage = packing.measured(config, digits, cache_dir, cuda)
    assert (usage.peak, usage.total) == (3, 9)
    assert 0 < usage.busy < 1
    assert {path for path in cache_dir.rglob("*") if path.suffix == ".ckpt"} == before


def test_no_share_is_no_limit() -> None:
    cuda = Cuda()
    gpu.set_share(0.0, cuda)
    assert cuda.calls == []


@pytest.mark.parametrize("value", ["2.5x", -1, None, True, float("nan"), float("inf")])
def test_a_share_of_a_gpu_is_auto_or_a_number_and_the_message_says_so(value: Any) -> None:
    found, problems = check(Resources, {"gpu": value})
    assert found is None
    (said,) = [str(problem).split(" (got")[0] for problem in problems]
    assert said == "gpu: must be 'auto', 0 or a number from 0.0001 to 1000"
