"""A look at a network of one's own as it will be trained, before anything else is.

The shapes of a network are taken from a pass in eval mode that computes nothing (`hksd.models.wrapped`). What a network
does beyond that, in training mode, backwards, with another number of images, or with numbers in another arithmetic,
shows when it does it. So a network of that kind is built once more and does it on very few images, on the device of the
run; the one that is trained is not touched. Networks that come with hksd, and torchvision's, are proven by the tests.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hksd import models
from hksd.device import memory, precision, process
from hksd.device.device import resolve_device
from hksd.device.precision import Precision, PrecisionName
from hksd.errors import UserError
from hksd.models import NetworkSpec, outputs, user
from hksd.models.faults import place_in, reason
from hksd.models.taps import Out, TappedNet
from hksd.models.wrapped import NetworkError, WrappedNet

IMAGES = 3  # of the look in eval mode; in training mode 2, or 1 where a run has batches of one
SAME, ALIKE = 1e-3, 1e-2  # relative to the largest answer: the same again; the same in another batch
EVAL, TRAINING = "in eval mode", "in training mode"
log = logging.getLogger(__name__)


def look(
    spec: NetworkSpec,
    shape: Mapping[str, int],
    device: str = "auto",
    arithmetic: PrecisionName = "auto",
    batch_size: int = 2,
    *,
    learns: bool = True,
) -> tuple[str, ...]:
    """Let a network of one's own do what a run will ask of it; once in a process, others are not looked at.

    What is remarkable, and no fault, is warned of in one line each.

    Args:
        spec: how it is built.
        shape: `in_channels`, `classes` and `image_size` of the data.
        device: where it will run, as ``train.device``.
        arithmetic: in what it will learn, as ``train.precision``.
        batch_size: the smallest number of images of a step.
        learns: it is trained; a teacher with weights from a file only answers.

    Returns:
        The remarks.

    Raises:
        UserError: it cannot do that; begins with the key path, and ends with the cure.
    """
    if not user.is_user(spec.model):
        return ()
    place = resolve_device(device)
    numbers = precision.resolve(arithmetic, place)
    image = shape["in_channels"], shape["classes"], shape["image_size"]
    return _look(spec, image, place, numbers, arithmetic, min(batch_size, 2), learns)


@functools.cache  # also its warnings are said once
def _look(
    spec: NetworkSpec,
    shape: tuple[int, int, int],
    device: torch.device,
    numbers: Precision,
    arithmetic: PrecisionName,
    batch: int,
    learns: bool,
) -> tuple[str, ...]:
    channels, classes, size = shape
    with (
        process.restored(0, [device] if device.type == "cuda" else []),
        numbers.matmul(),
        torch.enable_grad(),
        _told(spec),
    ):
        network = models.make(spec, in_channels=channels, classes=classes, image_size=size).to(device)
        memory.lay_out(network, network.layout)
        images = torch.randn(IMAGES, size, size, channels, device=device).permute(0, 3, 1, 2)  # as batches are
        seen = _Seen(network, classes, "teacher" if spec.place == "teacher" else "train")
        try:
            remarks = seen.answering(images)
            if learns:
                remarks += seen.learning(images[:batch], numbers, arithmetic)
        except torch.OutOfMemoryError:  # others may hold the memory now; the run itself tells
            return ()
    said = tuple(f"{_key(spec)}: {spec.model} {remark}" for remark in dict.fromkeys(remarks))
    for line in said:
        log.warning("%s", line)
    return said


class _FaultError(Exception):
    """What a network cannot do, and the cure."""


class _Seen:
    """A network under examination; every method returns remarks or raises `_FaultError`."""

    def __init__(self, network: TappedNet, classes: int, section: str):
        self.network, self.classes, self.section = network, classes, section
        self.returned: Any = None
        network.bare.register_forward_hook(self._note)

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.returned = output

    @torch.no_grad()
    def answering(self, images: Tensor) -> list[str]:
        """Eval mode: the same answers again, for one image and for more, and images left as they are."""
        network, remarks = self.network.eval(), []
        if network.contiguous:
            remarks.append(
                "works on contiguous maps alone (a `view`, or a strided 1x1 `F.conv2d` of few channels?) and runs so, "
                "slower than in channels_last: use `reshape` or `flatten`, and `nn.Conv2d`"
            )
        before = images.clone()
        first = self._answer(images)
        if not torch.equal(images, before):
            raise _FaultError("changes the images that it is given, which others read too; let it work on a copy")
        remarks += self._rest("")
        again, alone = self._answer(images), self._answer(images[:1])
        if not _same(first, again):
            raise _FaultError(
                "answers the same images differently in eval mode, so it cannot be measured and its export not be "
                "checked: switch off there what is random (`F.dropout(x, p, self.training)`) or what it counts"
            )
        if not _same(first[:1], alone, ALIKE):
            remarks.append(
                "answers an image in eval mode according to the other images of its batch (batch norm without running "
                "statistics?): its accuracy holds for batches like those of the evaluation"
            )
        return remarks

    def _answer(self, images: Tensor) -> Tensor:
        """Logits in eval mode."""
        return self._checked(self._run(lambda: self.network(images), len(images), EVAL), len(images), EVAL)

    def learning(self, images: Tensor, numbers: Precision, arithmetic: PrecisionName) -> list[str]:
        """Training mode, forwards and backwards, in the arithmetic of the run."""
        self._check_weights()
        answered = self.returned
        restore = memory.snapshot(self.network)
        try:
            self._step(images, numbers)
        except _FaultError as fault:
            if not numbers.half or arithmetic != "auto":
                raise
            restore()
            self._step(images, Precision(numbers.device, torch.float32, ""))  # raises where that is no cure
            raise _FaultError(
                f"{fault}; that is so in bfloat16 alone: set {self.section}.precision to float32"
            ) from fault
        return self._rest(" in training mode") if isinstance(answered, Tensor) else []

    def _check_weights(self) -> None:
        saved = self.network.bare.state_dict()
        if lost := [name for name, _ in self.network.bare.named_parameters() if name not in saved]:
            raise _FaultError(f"leaves {', '.join(lost[:3])} out of its `state_dict()`, so that no file would hold it")
        trained = {p.dtype for p in self.network.parameters() if p.requires_grad}
        if not trained:
            raise _FaultError("has no weights that learn: set `requires_grad` on those that shall")
        if other := trained - {torch.float32}:
            kinds = ", ".join(sorted(map(_kind, other)))
            raise _FaultError(
                f"has weights in {kinds}, but hksd trains weights in float32 (and computes in bfloat16 where the "
                "device is fast at it): let its factory return it with `.float()`"
            )

    def _step(self, images: Tensor, numbers: Precision) -> None:
        network, how = self.network.train(), TRAINING
        network.zero_grad(set_to_none=True)

        def run() -> Out:
            with numbers.autocast():
                return network.taps(images)

        out = self._run(run, len(images), how)
        self._checked(out.logits, len(images), how)
        logits = out.widened().logits
        for want, maps in zip(network.shapes.stages, out.stages, strict=False):
            if not isinstance(maps, Tensor) or maps.dim() != 4 or maps.shape[1] != want:
                raise _FaultError(
                    f"gives {_shape(maps)} at a tap {how}, where a map with {want} channels is in eval mode"
                )
        if not logits.isfinite().all():
            raise _FaultError(f"gives NaN or infinite logits {how} with its first weights: mend their initialisation")
        if not logits.requires_grad:
            raise _FaultError(
                "lets no gradient reach its weights: its forward works under `torch.no_grad()`, or detaches what it "
                "returns"
            )
        if strays := _strays(logits, network):
            raise _FaultError(
                f"computes with {strays} weights that it does not show in `parameters()`, which would stay as they are "
                "and be in no file: keep layers in `nn.ModuleList` or `nn.ModuleDict`, weights in `nn.Parameter`"
            )
        labels = torch.arange(len(images), device=images.device) % self.classes
        loss = F.cross_entropy(logits, labels)
        self._run(lambda: torch.autograd.backward(loss), len(images), f"backwards, {how}")
        grads = [p.grad for p in network.parameters() if p.grad is not None]
        if not grads:
            raise _FaultError("lets no gradient reach its weights: its forward detaches them, or uses others")
        if not all(grad.isfinite().all() for grad in grads):
            raise _FaultError(
                "gives gradients that are NaN or infinite in its first step (a square root or a norm at 0?)"
            )

    def _checked(self, logits: Any, count: int, how: str) -> Tensor:
        if not isinstance(logits, Tensor) or logits.shape != (count, self.classes):
            fixed = "" if count != 1 else "; a `squeeze` takes the axis of a single image away: use `flatten(1)`"
            raise _FaultError(
                f"gives {_shape(logits)} for {_images(count)} {how}, where ({count}, {self.classes}) is due: it must "
                f"return {outputs.ACCEPTED}, for any number of images{fixed}"
            )
        if not logits.is_floating_point():
            raise _FaultError(f"gives {_kind(logits.dtype)} {how}; logits are floating-point numbers")
        return logits

    def _run(self, call: Callable[[], Any], count: int, how: str) -> Any:
        """What a call on `count` images returns; whatever it raises is a fault of the network."""
        try:
            return call()
        except (torch.OutOfMemoryError, KeyboardInterrupt, UserError):
            raise
        except (Exception, SystemExit) as error:  # a stranger's code
            at = place_in(error)
            text = f"fails on {_images(count)} {how}: {reason(error)}{f' ({at})' if at else ''}"
            if count == 1 and how == TRAINING:
                text += f"; {self.section}.batch_size: 2 or more keeps single images away"
            raise _FaultError(text) from error

    def _rest(self, how: str) -> list[str]:
        """The remark that a network returns more than logits."""
        if not isinstance(self.network, WrappedNet) or isinstance(self.returned, Tensor):
            return []
        return [f"returns {outputs.say(self.returned)}{how}: its logits are taken, the rest teaches nothing"]


def _strays(logits: Tensor, network: nn.Module) -> int:
    """How many tensors that would learn stand behind logits and are no parameters of a network."""
    known = {id(part) for part in network.parameters()}
    waiting, seen, found = [logits.grad_fn], set[Any](), set[int]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter) and id(leaf) not in known:
            found.add(id(leaf))
        waiting += [inner for inner, _ in node.next_functions]
    return len(found)


@contextmanager
def _told(spec: NetworkSpec) -> Iterator[None]:
    """Turn faults into errors of the user's, with the key that is to be mended."""
    try:
        yield
    except _FaultError as fault:
        raise NetworkError(_key(spec), f"{spec.model} {fault}") from fault
    except NetworkError as error:
        if not spec.place or error.key.startswith(f"{spec.place}."):
            raise
        raise NetworkError(f"{spec.place}.{error.key}", error.text) from error


def _key(spec: NetworkSpec) -> str:
    return f"{spec.place}.model" if spec.place else "model"


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _images(count: int) -> str:
    return "one image" if count == 1 else f"{count} images"


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else outputs.say(value)


def _same(first: Tensor, second: Tensor, tolerance: float = SAME) -> bool:
    bound = tolerance * max(1e-6, first.nan_to_num().abs().max().item())
    return torch.allclose(first, second, rtol=0, atol=bound, equal_nan=True)
