"""The kernels: what torch computes, to its precision, and torch itself wherever they do not apply."""

from __future__ import annotations

import copy
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hksd import models
from hksd.device import memory
from hksd.kernels import Layers, branch, native, norm_act
from hksd.kernels import norm as normalisation
from hksd.kernels.maps import aligned, average, blend, compare, energy

LAST = torch.channels_last
Child = Callable[..., subprocess.Popen[str]]
QUICK = tuple(flag.replace("-O3", "-O0") for flag in native.FLAGS)
needs_kernels = pytest.mark.skipif(native.library() is None, reason="there is no C compiler for the kernels")


def maps(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, far: float = 0.0) -> Tensor:
    """Random channels_last maps with mean `far`."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + far
    return values.to(dtype).contiguous(memory_format=LAST).requires_grad_()


def norm(channels: int, *, training: bool = True, dtype: torch.dtype = torch.float32) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels).train(training)
    with torch.no_grad():
        draw = torch.Generator().manual_seed(channels)
        layer.weight.uniform_(0.5, 2, generator=draw)
        layer.bias.normal_(generator=draw)
        layer.running_mean.normal_(generator=draw)
    return layer.to(dtype)


def exactly(layer: nn.BatchNorm2d, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """The reference: torch's operations in double precision."""
    y = layer(x)
    y = y if residual is None else y + residual
    return y.relu() if relu else y


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / (expected.double().norm() + 1e-9)).item()


@needs_kernels
@pytest.mark.parametrize("channels", [1, 3, 12, 16, 64, 100, 130, 1023])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["batch", "running"])
def test_values_gradients_and_statistics_are_those_of_torch(channels: int, dtype: torch.dtype, training: bool) -> None:
    near = 1e-5 if dtype == torch.float32 else 5e-3
    for size in [(2, 3, 3), (3, 5, 7), (16, 8, 8)]:
        for with_residual, relu in [(False, False), (False, True), (True, False), (True, True)]:
            shape = (size[0], channels, *size[1:])
            x, residual, slope = (maps(*shape, dtype=dtype, seed=i, far=far) for i, far in enumerate((3, 3, 0)))
            inputs = [x, residual] if with_residual else [x]
            exact_inputs = [part.detach().double().requires_grad_() for part in inputs]
            layer, exact = norm(channels, training=training), norm(channels, training=training).double()
            y = norm_act(layer, *inputs, relu=relu)
            expected = exactly(exact, exact_inputs[0], exact_inputs[1] if with_residual else None, relu)
            assert type(y.grad_fn).__name__ == "_NormActBackward"
            assert (y.dtype, y.is_contiguous(memory_format=LAST)) == (dtype, True)
            assert relative(y, expected) < near
            # Where the result is as good as 0, rounding decides the gate: take the gradient of what was computed.
            gate = (y > 0).double() if relu else torch.ones(shape, dtype=torch.float64)
            y.backward(slope.detach())
            exactly(exact, exact_inputs[0], exact_inputs[1] if with_residual else None, False).backward(
                slope.detach().double() * gate
            )
            for found, wanted in zip(inputs, exact_inputs, strict=True):
                assert relative(found.grad, wanted.grad) < near
            for name, wanted in exact.named_parameters():
                assert relative(layer.get_parameter(name).grad, wanted.grad) < near
            once = norm(channels, training=training).double()  # the reference ran twice
            exactly(once, exact_inputs[0], None, False)
            for name, wanted in once.named_buffers():
                assert relative(layer.get_buffer(name), wanted) < 1e-5


@needs_kernels
def test_the_variance_of_values_far_from_0_is_not_drowned() -> None:
    layer = norm(16)
    x = maps(32, 16, 8, 8, far=1000.0)
    norm_act(layer, x)
    expected = x.detach().double().var((0, 2, 3)) * 0.1 + 0.9
    assert relative(layer.running_var, expected) < 1e-5


@needs_kernels
def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x, layer = maps(64, 12, 16, 16, dtype=torch.bfloat16), norm(12)
            y = norm_act(layer, x)
            y.square().sum().backward()
            results.append((y.detach(), x.grad, layer.weight.grad, layer.running_var))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@needs_kernels
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_not_a_number_stays_visible(relu: bool, dtype: torch.dtype) -> None:
    x = maps(2, 4, 3, 3, dtype=dtype).detach()
    x[1, 2, 0, 0] = torch.nan
    y = norm_act(norm(4), x, relu=relu)
    assert y[:, 2].isnan().all()
    assert y[:, [0, 1, 3]].isfinite().all()
    assert norm_act(norm(4, training=False), x, relu=relu).isnan().sum() == 1


@needs_kernels
def test_gradients_reach_only_what_wants_them() -> None:
    layer, residual = norm(4).requires_grad_(False), maps(2, 4, 3, 3)
    norm_act(layer, maps(2, 4, 3, 3).detach(), residual).sum().backward()
    assert residual.grad is not None
    assert layer.weight.grad is None
    with torch.no_grad():
        assert not norm_act(layer, maps(2, 4, 3, 3)).requires_grad


@needs_kernels
def test_a_gradient_in_another_order_or_type_is_taken() -> None:
    x, again = maps(2, 4, 3, 3, dtype=torch.bfloat16), maps(2, 4, 3, 3, dtype=torch.bfloat16)
    slope = torch.randn(2, 4, 3, 3)
    norm_act(norm(4), x).float().mul(slope).sum().backward()
    norm_act(norm(4), again).backward(slope.bfloat16().contiguous(memory_format=LAST))
    assert torch.equal(x.grad, again.grad)


@needs_kernels
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_gradients_can_be_differentiated_again(training: bool, residual: bool) -> None:
    def penalty(x: Tensor, run: Callable[..., Tensor]) -> Tensor:
        layer = norm(4, training=training, dtype=x.dtype)
        extra = [x.square()] if residual else []
        slope = torch.autograd.grad(run(layer, x, *extra).square().sum(), x, create_graph=True)[0]
        return torch.autograd.grad(slope.square().sum(), x)[0]

    x = maps(3, 4, 3, 3)
    expected = penalty(
        x.detach().double().requires_grad_(), lambda layer, x, extra=None: exactly(layer, x, extra, True)
    )
    assert relative(penalty(x, norm_act), expected) < 1e-4


UNFIT: dict[str, Callable[[], tuple[nn.BatchNorm2d, Tensor]]] = {
    "images_first": lambda: (norm(4), torch.randn(2, 4, 3, 3)),
    "double": lambda: (norm(4, dtype=torch.float64), maps(2, 4, 3, 3).double()),
    "no_statistics": lambda: (nn.BatchNorm2d(4, track_running_stats=False), maps(2, 4, 3, 3)),
    "no_parameters": lambda: (nn.BatchNorm2d(4, affine=False), maps(2, 4, 3, 3)),
    "average_of_all": lambda: (nn.BatchNorm2d(4, momentum=None), maps(2, 4, 3, 3)),
}


@pytest.mark.parametrize("name", UNFIT)
def test_torch_computes_what_the_kernel_does_not(name: str) -> None:
    layer, x = UNFIT[name]()
    expected = exactly(copy.deepcopy(layer), x, None, True)
    y = norm_act(layer, x)
    assert type(y.grad_fn).__name__ == "ReluBackward0"
    assert torch.equal(y, expected)


def test_one_value_per_channel_is_torchs_error() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_act(norm(4), maps(1, 4, 1, 1))


@needs_kernels
def test_a_hook_on_the_normalisation_still_runs_and_a_map_of_functions_still_works() -> None:
    layer, seen = norm(4), []
    layer.register_forward_hook(lambda *_: seen.append(1))
    norm_act(layer, maps(2, 4, 3, 3))
    assert seen == [1]
    fixed = norm(4, training=False)
    several = torch.stack([maps(2, 4, 3, 3, seed=i).detach() for i in range(3)])
    mapped = torch.func.vmap(lambda x: norm_act(fixed, x))(several)
    torch.testing.assert_close(mapped, torch.stack([norm_act(fixed, x) for x in several]))


NETWORKS = [
    "resnet8",
    "wrn_16_2",
    "vgg8",
    "cifar_mobilenet_v2",
    "cifar_shufflenet_v1",
    "cifar_shufflenet_v2",
    "cifar_resnet50",
]


@needs_kernels
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_the_same_with_and_without_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = models.build(name, in_channels=3, classes=5, width=0.5, image_size=16)
    memory.lay_out(network, LAST)
    twin, images = copy.deepcopy(network), torch.randn(4, 3, 16, 16).contiguous(memory_format=LAST)
    fast = network(images)
    monkeypatch.setattr(normalisation, "library", lambda: None)
    slow = twin(images)
    torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-4)
    for (path, one), two in zip(network.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4, msg=path)


def test_layers_are_a_sequential_with_the_same_names() -> None:
    parts = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)]
    ours, theirs = Layers(*copy.deepcopy(parts)), nn.Sequential(*parts)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = maps(2, 3, 4, 4)
    torch.testing.assert_close(ours(x), theirs(x))


def test_an_exported_student_has_no_operation_of_ours() -> None:
    network = models.build("resnet8", in_channels=3, classes=5, width=0.25).eval()
    program = torch.export.export(network, (torch.zeros(2, 3, 32, 32).contiguous(memory_format=LAST),))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called
    assert all(name.startswith("aten.") for name in called)


# --- reductions of maps


def by_torch(name: str, x: Tensor, vectors: tuple[Tensor, Tensor]) -> Tensor:
    key, weights = vectors
    items = x.flatten(2)
    if name == "average":
        return x.mean((2, 3))
    if name == "energy":
        return x.square().mean(1)
    if name == "aligned":
        return x * 1
    return torch.einsum("nf,nfp->np", key, items) if name == "compare" else torch.einsum("nfp,np->nf", items, weights)


def by_us(name: str, x: Tensor, vectors: tuple[Tensor, Tensor]) -> Tensor:
    if name in ("average", "energy", "aligned"):
        return {"average": average, "energy": energy, "aligned": aligned}[name](x)
    return compare(x.flatten(2), vectors[0]) if name == "compare" else blend(x.flatten(2), vectors[1])


reductions = pytest.mark.parametrize("name", ["average", "energy", "compare", "blend", "aligned"])


@reductions
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=["images_first", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_reductions_are_those_of_torch_and_their_gradients_have_the_order_of_the_maps(
    name: str, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(3, 5, 4, 6, generator=draw).to(dtype).contiguous(memory_format=layout)
    vectors = tuple(torch.randn(3, n, generator=draw).to(dtype) for n in (5, 24))
    x, exact = values.clone().requires_grad_(), values.double().requires_grad_()
    found, expected = by_us(name, x, vectors), by_torch(name, exact, tuple(v.double() for v in vectors))
    near = 1e-12 if dtype == torch.float64 else 1e-2
    assert relative(found, expected) < near
    slope = torch.randn(expected.shape, generator=draw)
    orders = []
    x.register_hook(lambda grad: orders.append(grad.is_contiguous(memory_format=layout)))
    found.backward(slope.to(found.dtype))
    expected.backward(slope.double())
    assert relative(x.grad, exact.grad) < near
    assert orders == [True] or (layout != LAST and name == "average")


@reductions
def test_gradients_of_reductions_are_right_and_differentiable(name: str) -> None:
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64).contiguous(memory_format=LAST).requires_grad_()
    vectors = (torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: by_us(name, x, vectors), (x,))
    assert torch.autograd.gradgradcheck(lambda x: by_us(name, x, vectors), (x,))


# --- how the library comes about


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder; what was loaded before is forgotten for the test. Compiling is quick, the code slow."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "FLAGS", QUICK)
    native.library.cache_clear()
    yield tmp_path / "cache"
    native.library.cache_clear()


def compiler(folder: Path, code: str) -> Path:
    """A folder for PATH with a `cc` that runs `code`."""
    folder.mkdir()
    script = folder / "cc"
    script.write_text(f"#!/bin/sh\n{code}\n")
    script.chmod(stat.S_IRWXU)
    return folder


@needs_kernels
def test_the_library_is_compiled_once_into_the_cache(fresh: Path) -> None:
    assert native.library() is not None
    (made,) = (fresh / "hksd").glob("*.so")
    before = made.stat().st_mtime_ns
    native.library.cache_clear()
    assert native.library() is not None
    assert made.stat().st_mtime_ns == before


@pytest.mark.parametrize("code", ["exit 1", "echo broken; test $1 = --version", "kill -9 $$"])
def test_a_broken_compiler_leaves_torchs_operations(
    code: str, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(compiler(tmp_path / "bin", code)), prepend=os.pathsep)
    assert native.library() is None
    y = norm_act(norm(4), maps(2, 4, 3, 3))
    assert type(y.grad_fn).__name__ == "ReluBackward0"


def test_no_compiler_and_the_switch_leave_torchs_operations(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setenv("PATH", str(fresh))
        assert native.library() is None
    native.library.cache_clear()
    monkeypatch.setenv(native.SWITCH, "0")
    assert native.library() is None
    assert not fresh.exists()


@needs_kernels
def test_a_cache_that_cannot_be_written_is_replaced_by_a_folder_of_the_process(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh.write_text("a file where the folder should be")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert native.library() is not None
    assert list(tmp_path.glob("hksd-*/*.so"))


@needs_kernels
def test_a_damaged_library_in_the_cache_is_made_again(fresh: Path) -> None:
    assert native.library() is not None
    (made,) = (fresh / "hksd").glob("*.so")
    made.unlink()
    made.write_bytes(b"no library")
    native.library.cache_clear()
    assert native.library() is not None


@needs_kernels
def test_two_processes_may_compile_at_once(child: Child, fresh: Path) -> None:
    code = f"""
import os
from hksd.kernels import native
native.FLAGS = {QUICK}
os.fork()  # both have imported, and start at the same moment
os.write(1, f"{{native.library() is not None}} ".encode())
os._exit(0)
"""
    assert child(code).communicate()[0].split() == ["True", "True"]
    assert len(list((fresh / "hksd").glob("*.so"))) == 1
    assert not list((fresh / "hksd").glob(".*"))


@needs_kernels
def test_kernels_bring_no_openmp_runtime_of_their_own(child: Child) -> None:
    code = """
import torch
from hksd.kernels import native
assert native.library() is not None
print(len({line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}))
"""
    assert child(code).communicate()[0].strip() == "1"


# --- two convolutions of the same maps


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("size", "stride"), [((8, 8), 2), ((7, 9), 2), ((7, 7), 3)], ids=str)
def test_a_branch_is_its_two_convolutions(size: tuple[int, int], stride: int, dtype: torch.dtype) -> None:
    main, side = nn.Conv2d(5, 6, 3, stride, 1, bias=False), nn.Conv2d(5, 7, 1, stride, bias=False)
    exact = [copy.deepcopy(conv).double() for conv in (main, side)]
    x = maps(3, 5, *size, dtype=dtype)
    wide = x.detach().double().requires_grad_()
    found, expected = branch(main.to(dtype), side.to(dtype), x), [conv(wide) for conv in exact]
    for one, two in zip(found, expected, strict=True):
        assert relative(one, two) < (1e-5 if dtype == torch.float32 else 1e-2)
    slopes = [torch.randn(part.shape) for part in expected]
    torch.autograd.backward(found, [slope.to(dtype) for slope in slopes])
    torch.autograd.backward(expected, [slope.double() for slope in slopes])
    assert relative(x.grad, wide.grad) < (1e-5 if dtype == torch.float32 else 1e-2)
    assert x.grad.is_contiguous(memory_format=LAST)


@needs_kernels
def test_a_branch_leaves_what_its_maps_came_from_and_other_uses_of_them_alone() -> None:
    main, side = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1, 2)
    x, again = maps(2, 4, 6, 6), maps(2, 4, 6, 6)
    before = x.detach().clone()
    sum(part.sum() for part in (*branch(main, side, x), x.square())).backward()
    sum(part.sum() for part in (main(again), side(again), again.square())).backward()
    assert torch.equal(x.detach(), before)
    torch.testing.assert_close(x.grad, again.grad)
