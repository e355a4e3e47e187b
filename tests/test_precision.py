"""Arithmetic of training: chosen by what the device can do, near to single precision, leaving nothing behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hksd import models
from hksd.config.run import config_hash
from hksd.data import DataSet
from hksd.device import memory, precision
from hksd.device.precision import Precision
from hksd.errors import UserError
from hksd.fit import fit
from hksd.models.taps import Out
from tests.conformance.test_terms import Case, MakeTaps, every_form, leaves

Make = Callable[..., Any]
CPU = torch.device("cpu")


def cpu_with(monkeypatch: pytest.MonkeyPatch, *units: str) -> None:
    """Pretend that this CPU has exactly these bfloat16 units."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: "amx" in units)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: "avx512_bf16" in units)


@pytest.fixture
def coarse() -> Precision:
    """bfloat16 also on a machine where it is slow."""
    return Precision("cpu", torch.bfloat16, "for a test")


def test_float32_is_what_was_asked_for_everywhere() -> None:
    found = precision.resolve("float32", CPU)
    assert (found.dtype, found.half, found.tf32) == (torch.float32, False, False)


def test_auto_is_float32_and_bfloat16_an_error_on_a_cpu_without_its_instructions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu_with(monkeypatch)
    found = precision.resolve("auto", CPU)
    assert found.dtype == torch.float32
    assert "no bfloat16 instructions" in found.reason
    with pytest.raises(UserError, match=r"train\.precision=bfloat16.*use auto or float32"):
        precision.resolve("bfloat16", CPU)


def test_a_map_narrower_than_a_stride_is_trained_in_float32(
    coarse: Precision, caplog: pytest.LogCaptureFixture
) -> None:
    def suited(model: str, image_size: int, name: precision.PrecisionName = "auto") -> Precision:
        shape = {"in_channels": 1, "image_size": image_size}
        network = models.build(model, classes=10, width=0.25, **shape).train()
        found = precision.suited(coarse, name, network, **shape)
        assert network.training
        return found

    assert suited("resnet8", 8) is coarse
    assert suited("mobilenet_v3_small", 64) is coarse
    assert not caplog.records
    narrow = suited("mobilenet_v3_small", 8)
    assert "training in float32" in caplog.text
    assert not narrow.half
    assert "narrower than a stride (network.features" in narrow.reason
    with pytest.raises(UserError, match=r"train\.precision=bfloat16: .*use auto, float32 or larger images"):
        suited("mobilenet_v3_small", 8, "bfloat16")


def test_a_run_over_such_maps_ends_the_same_whatever_the_memory_held(make_config: Make, make_data: Make) -> None:
    config = make_config(student={"model": "mobilenet_v3_small"}, teacher=None, terms={"ce": {}}, train={"epochs": 1})
    data: DataSet = make_data(train=64, validation=40)
    ends = []
    for _ in range(3):
        dirty = [torch.full((n,), torch.nan) for n in (100, 1000, 5000, 20000, 100000) for _ in range(50)]
        del dirty
        result = fit(config, data=data)
        ends.append(torch.cat([p.detach().flatten() for p in result.student.parameters()]))
    assert result.precision.startswith("float32, since")
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("unit", ["amx", "avx512_bf16"])
def test_auto_is_bfloat16_where_cpu_and_onednn_have_it(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch, unit)
    supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert precision.resolve("auto", CPU).half == supported


def test_the_precision_as_written_takes_part_in_the_hash(make_config: Make) -> None:
    hashes = {config_hash(make_config(train={"precision": name})) for name in ("auto", "float32", "bfloat16")}
    assert len(hashes) == 3


def test_a_run_in_bfloat16_ends_near_the_one_in_float32(
    make_config: Make, digits: DataSet, coarse: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(train={"epochs": 4, "precision": "float32"})
    exact = fit(config, data=digits)
    monkeypatch.setattr(precision, "resolve", lambda *_: coarse)
    near = fit(config, data=digits)
    assert near.history[-1].train_loss != exact.history[-1].train_loss
    assert near.history[-1].train_loss == pytest.approx(exact.history[-1].train_loss, rel=0.1)


def test_a_run_in_bfloat16_repeats_bit_for_bit_and_gives_a_plain_float32_student(
    make_config: Make, digits: DataSet, coarse: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "resolve", lambda *_: coarse)
    config = make_config(terms={"ce": {}, "attention_transfer": {"weight": 10}, "adversarial": {"warmup_epochs": 0}})
    first, second = fit(config, data=digits).student.state_dict(), fit(config, data=digits).student.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    floating = [tensor for tensor in first.values() if tensor.is_floating_point()]
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in floating)


def as_trained(case: Case, taps: Out, coarse: Precision) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients of a term as the loop computes them, for taps in single or half precision."""
    case.student = dataclasses.replace(taps, images=case.student.images, index=case.index)
    torch.manual_seed(2)
    with coarse.autocast(fixed_weights=False):
        value = case.term(case.student, case.teacher, case.target)
    value.backward()
    return value.detach(), [leaf.grad for leaf in leaves(taps) if leaf.grad is not None]


def rounded(out: Out) -> Out:
    """The maps of `out` in bfloat16, logits and embedding as they are."""
    blocks = [[block.detach().bfloat16().requires_grad_() for block in stage] for stage in out.blocks]
    logits, embedding = (x.detach().clone().requires_grad_() for x in (out.logits, out.embedding))
    return Out(logits, embedding, [stage[-1] for stage in blocks], blocks)


@every_form
def test_terms_keep_value_and_direction_of_the_gradient_in_bfloat16(
    name: str, knobs: dict[str, Any], make_taps: MakeTaps, coarse: Precision
) -> None:
    case = Case(make_taps, name, knobs, batch=8)
    exact_taps = case.student
    value, slopes = as_trained(case, rounded(exact_taps), coarse)
    exact, exact_slopes = as_trained(case, exact_taps, Precision("cpu", torch.float32, ""))
    assert value.item() == pytest.approx(exact.item(), rel=0.03, abs=0.01)
    both = [torch.cat([part.float().flatten() for part in parts]) for parts in (slopes, exact_slopes)]
    assert torch.cosine_similarity(*both, dim=0).item() > 0.98


def test_a_weight_that_a_term_changes_between_two_uses_is_read_anew(coarse: Precision) -> None:
    layer, ones = torch.nn.Linear(1, 1, bias=False), torch.ones(1, 1)
    with coarse.autocast(fixed_weights=False):
        before = layer(ones).item()
        with torch.no_grad():
            layer.weight += 1
        assert layer(ones).item() == pytest.approx(before + 1, abs=0.02)


@pytest.fixture
def cuda_flags() -> Iterator[Callable[[], tuple[bool, bool]]]:
    """Reads the two switches of TF32, which exist without a GPU too; they are restored afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    yield lambda: (matmul.allow_tf32, cudnn.allow_tf32)
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.parametrize("tf32", [True, False])
def test_rounding_of_gpu_products_is_set_for_the_run_and_restored_also_after_a_fault(
    tf32: bool, cuda_flags: Callable[[], tuple[bool, bool]]
) -> None:
    before = cuda_flags()
    with pytest.raises(KeyError), Precision("cuda", torch.float32, "", tf32=tf32).matmul():
        assert cuda_flags() == (tf32, tf32)
        raise KeyError
    assert cuda_flags() == before


def test_laying_filters_out_changes_neither_values_nor_names_and_comes_back() -> None:
    network = models.build("resnet8", width=0.25, in_channels=3, classes=5)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    memory.lay_out(network, torch.channels_last)
    filters = [p for p in network.parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in filters)
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    memory.lay_out(network, torch.contiguous_format)
    assert all(p.is_contiguous() for p in filters)
