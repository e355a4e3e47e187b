"""ONNX and latency: the same answers in ONNX Runtime, and a measurement that other work does not spoil."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hksd import models
from hksd.deploy import latency
from hksd.deploy import onnx as onnx_export
from hksd.deploy.export import Deployed
from hksd.deploy.latency import BLOCK, OVERSAMPLING, least_disturbed
from hksd.errors import RunError
from hksd.models import NetworkSpec

IMAGE = {"in_channels": 3, "classes": 10, "image_size": 16}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    made = models.build("resnet8", width=0.25, **IMAGE)
    return Deployed(made, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)).eval()


@pytest.fixture(scope="module")
def model(network: nn.Module) -> bytes:
    return onnx_export.to_onnx(network, torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_onnx_runtime_answers_like_the_network_for_batches_of_any_size(
    batch: int, model: bytes, network: nn.Module
) -> None:
    images = torch.rand(batch, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            onnx_export.answers(onnx_export.session(model), images), network(images), rtol=1e-4, atol=1e-5
        )


def test_the_translation_to_onnx_is_silent(network: nn.Module, capfd: pytest.CaptureFixture[str]) -> None:
    onnx_export.to_onnx(network, torch.zeros(2, 3, 16, 16))
    assert capfd.readouterr() == ("", "")


def test_a_network_that_onnx_cannot_express_is_an_error_in_one_line() -> None:
    class Reads(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images if float(images.sum()) > 0 else -images

    with pytest.raises(RunError, match="the network cannot be written as ONNX: ") as caught:
        onnx_export.to_onnx(Reads(), torch.zeros(2, 3, 16, 16))
    assert "\n" not in str(caught.value)
    assert "data-dependent" in str(caught.value)


@pytest.mark.parametrize(("runs", "counted"), [(10, 10), (25, 30)])
def test_a_measurement_says_what_it_is_over(runs: int, counted: int, model: bytes) -> None:
    found = latency.measure(model, (3, 16, 16), threads=2, runs=runs)
    assert 0 < found.median_ms <= found.p95_ms
    assert (found.runs, found.threads) == (counted, 2)
    assert (found.runtime, found.processor) == latency.where()
    assert found.runtime.startswith("onnxruntime 1.")


def test_an_untrained_network_is_measured_without_a_trace_in_the_noise() -> None:
    before = torch.random.get_rng_state()
    found = latency.measure_untrained(NetworkSpec(model="resnet8", width=0.25), IMAGE, runs=10)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found.median_ms > 0


class Clock:
    """A clock that a run moves on."""

    def __init__(self, durations: Callable[[int], int]):
        self.now, self.durations, self.runs = 0, durations, itertools.count()

    def run(self) -> None:
        self.now += self.durations(next(self.runs))

    def perf_counter_ns(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / 1e9


def test_bursts_of_other_work_are_left_out_and_the_networks_own_spread_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def durations(run: int) -> int:
        own = 1_100 if run % BLOCK == 3 else 1_000
        return own * 9 if run // (2 * BLOCK) % 2 else own  # every other two blocks

    clock = Clock(durations)
    monkeypatch.setattr(latency, "time", clock)
    times = least_disturbed(clock.run, 4)
    assert sorted(times) == [1_000] * 36 + [1_100] * 4
    assert next(clock.runs) == 4 * OVERSAMPLING * BLOCK


def test_a_slow_network_is_run_no_more_often_than_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(lambda run: 2_000_000_000)
    monkeypatch.setattr(latency, "time", clock)
    assert len(least_disturbed(clock.run, 3)) == 3 * BLOCK == next(clock.runs)
