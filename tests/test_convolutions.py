"""Convolutions by our kernels: torch's results and gradients, and torch itself wherever the kernels do not apply."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hksd import models
from hksd.device import memory
from hksd.kernels import conv as convolution
from hksd.kernels import convolve

LAST = torch.channels_last
OURS = "_ConvolveBackward"
needs_kernels = pytest.mark.skipif(not convolution.available(), reason="no kernels for convolutions on this processor")


def half() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def maps(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.bfloat16().contiguous(memory_format=LAST).requires_grad_()


def layer(f_in: int, f_out: int, stride: int = 1) -> nn.Conv2d:
    torch.manual_seed(f_in * 1000 + f_out)
    return nn.Conv2d(f_in, f_out, 3, stride, 1, bias=False).to(memory_format=LAST)


def exactly(conv: nn.Conv2d, x: Tensor) -> tuple[nn.Conv2d, Tensor]:
    """The same in double precision, with filters rounded as the multiplication sees them."""
    exact = copy.deepcopy(conv).to(torch.bfloat16).double()
    return exact, x.detach().double().requires_grad_()


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / (expected.norm() + 1e-9)).item()


@needs_kernels
@pytest.mark.parametrize("images", [1, 4, 5, 19], ids=lambda n: f"{n} images")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("f_in", "f_out"), [(2, 2), (4, 12), (12, 20), (16, 16), (34, 8), (32, 64), (64, 100)], ids=lambda n: str(n)
)
def test_values_and_gradients_are_those_of_torch(f_in: int, f_out: int, stride: int, images: int) -> None:
    for size in [(2, 2), (3, 2), (4, 4), (7, 5), (6, 9), (8, 8), (5, 17), (32, 32)]:
        if images < 4 and size[1] < 4 * stride:
            continue
        conv, x = layer(f_in, f_out, stride), maps(images, f_in, *size)
        exact, wide = exactly(conv, x)
        with half():
            y = convolve(conv, x)
        expected = exact(wide)
        assert type(y.grad_fn).__name__ == OURS
        assert (y.dtype, y.shape, y.is_contiguous(memory_format=LAST)) == (torch.bfloat16, expected.shape, True)
        slope = maps(*y.shape, seed=1).detach()
        y.backward(slope)
        expected.backward(slope.double())
        assert relative(y, expected) < 3e-3, size
        assert relative(x.grad, wide.grad) < 3e-3, size
        assert relative(conv.weight.grad, exact.weight.grad) < 1e-5, size
        assert conv.weight.grad.dtype == torch.float32


@needs_kernels
def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found = []
            for stride, size in [(1, 16), (2, 16), (1, 2)]:
                conv, x = layer(12, 24, stride), maps(70, 12, size, size)
                with half():
                    y = convolve(conv, x)
                y.backward(maps(*y.shape, seed=1).detach())
                found += [y.detach(), x.grad, conv.weight.grad]
            results.append(found)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@needs_kernels
def test_images_do_not_touch_each_other() -> None:
    """Also where several of them are summed together: what is not a number stays in its image, and stays visible."""
    for size in (2, 8):
        conv, x = layer(8, 16), maps(20, 8, size, size).detach()
        x[7, 3, 0, 0] = torch.nan
        with half():
            y = convolve(conv, x)
        assert y[7].isnan().any()
        assert y[:7].isfinite().all()
        assert y[8:].isfinite().all()


@needs_kernels
def test_gradients_reach_only_what_wants_them() -> None:
    conv, x = layer(4, 4).requires_grad_(False), maps(4, 4, 8, 8)
    with half():
        convolve(conv, x).sum().backward()
    assert x.grad is not None
    assert conv.weight.grad is None
    conv.requires_grad_(True)
    with half():
        convolve(conv, x.detach()).sum().backward()
        assert conv.weight.grad is not None
        with torch.no_grad():
            assert not convolve(conv, x).requires_grad


@needs_kernels
def test_a_gradient_in_another_order_or_type_is_taken() -> None:
    found, slope = [], torch.randn(4, 6, 8, 8).bfloat16().float()
    for layout in (torch.contiguous_format, LAST):
        conv, x = layer(4, 6), maps(4, 4, 8, 8)
        with half():
            y = convolve(conv, x)
        y.float().mul(slope.contiguous(memory_format=layout)).sum().backward()
        found.append((x.grad, conv.weight.grad))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@needs_kernels
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_can_be_differentiated_again(stride: int) -> None:
    def penalty(conv: nn.Conv2d, x: Tensor, run: Callable[[nn.Conv2d, Tensor], Tensor]) -> tuple[Tensor, ...]:
        with half():
            y = run(conv, x)
        slope = torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]
        return torch.autograd.grad(slope.square().sum(), (x, conv.weight))

    conv, x = layer(4, 6, stride), maps(4, 4, 8, 8)
    exact, wide = exactly(conv, x)
    expected = penalty(exact, wide, lambda conv, x: nn.functional.conv2d(x, conv.weight, stride=stride, padding=1))
    for one, two in zip(penalty(conv, x, convolve), expected, strict=True):
        assert relative(one, two) < 2e-2


def _hooked(conv: nn.Conv2d) -> nn.Conv2d:
    conv.register_forward_hook(lambda *_: None)
    return conv


UNFIT: dict[str, Callable[[], tuple[nn.Conv2d, Tensor]]] = {
    "odd_channels": lambda: (layer(3, 4), maps(4, 3, 8, 8)),
    "odd_results": lambda: (layer(4, 3), maps(4, 4, 8, 8)),
    "bias": lambda: (nn.Conv2d(4, 4, 3, 1, 1).to(memory_format=LAST), maps(4, 4, 8, 8)),
    "groups": lambda: (nn.Conv2d(4, 4, 3, 1, 1, groups=2, bias=False).to(memory_format=LAST), maps(4, 4, 8, 8)),
    "no_border": lambda: (nn.Conv2d(4, 4, 3, bias=False).to(memory_format=LAST), maps(4, 4, 8, 8)),
    "reflected": lambda: (
        nn.Conv2d(4, 4, 3, 1, 1, bias=False, padding_mode="reflect").to(memory_format=LAST),
        maps(4, 4, 8, 8),
    ),
    "one_by_one": lambda: (nn.Conv2d(4, 4, 1, bias=False).to(memory_format=LAST), maps(4, 4, 8, 8)),
    "stride_3": lambda: (layer(4, 4, 3), maps(4, 4, 8, 8)),
    "wide": lambda: (layer(256, 256), maps(4, 256, 4, 4)),
    "few_and_small": lambda: (layer(4, 4), maps(2, 4, 2, 2)),
    "large": lambda: (layer(4, 4), maps(1, 4, 300, 300)),
    "images_first": lambda: (layer(4, 4), maps(4, 4, 8, 8).detach().contiguous().requires_grad_()),
    "single": lambda: (layer(4, 4), maps(4, 4, 8, 8).detach().float().requires_grad_()),
    "hook": lambda: (_hooked(layer(4, 4)), maps(4, 4, 8, 8)),
    "half_filters": lambda: (layer(4, 4).half(), maps(4, 4, 8, 8)),
}


@pytest.mark.parametrize("name", UNFIT)
def test_torch_computes_what_the_kernel_does_not(name: str) -> None:
    conv, x = UNFIT[name]()
    with half():
        y, expected = convolve(conv, x), conv(x)
    assert OURS not in type(y.grad_fn).__name__
    assert torch.equal(y, expected)


def test_without_autocast_types_must_agree_as_they_must_for_torch() -> None:
    with pytest.raises(RuntimeError, match="type"):
        convolve(layer(4, 4), maps(4, 4, 8, 8))


@needs_kernels
@pytest.mark.parametrize("name", ["resnet8", "wrn_16_2", "cifar_resnet50"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_is_the_same_with_and_without_them(name: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = models.build(name, in_channels=channels, classes=5, width=0.5, image_size=16)
    memory.lay_out(network, LAST)
    twin, images = copy.deepcopy(network), torch.randn(8, channels, 16, 16).contiguous(memory_format=LAST)
    used = []
    run = convolution._run
    monkeypatch.setattr(convolution, "_run", lambda name, *rest: used.append(name) or run(name, *rest))
    with half():
        fast = network(images)
    fast.float().square().sum().backward()
    monkeypatch.setattr(convolution, "available", lambda: False)
    with half():
        slow = twin(images)
    slow.float().square().sum().backward()
    assert {"conv_forward", "conv_backward_maps", "conv_backward_filters"} == set(used)
    assert relative(fast, slow.double()) < 0.05
    for (path, one), two in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert relative(one.grad, two.grad.double()) < 0.2, path


def test_maps_of_images_of_one_channel_are_channels_last() -> None:
    network = models.build("resnet8", in_channels=1, classes=5, image_size=8)
    memory.lay_out(network, LAST)
    with half():
        stem = network.get_submodule(next(path for path, part in network.named_modules() if type(part) is nn.Conv2d))
        assert stem(torch.randn(4, 1, 8, 8)).is_contiguous(memory_format=LAST)
