"""Networks of one's own: ``package.module:factory``."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from hksd.device import memory, process
from hksd.errors import nearest
from hksd.kernels.strided import Seen, guard
from hksd.models.faults import told
from hksd.models.taps import TappedNet, on_contiguous
from hksd.models.user_code import code_hash
from hksd.models.wrapped import NetworkError, WrappedNet

FORM = "package.module:factory"
_WELL_FORMED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
LAYERS = 20  # of decorators and partials that are looked through
KNOWN = ("classes", "num_classes", "in_channels", "width", "image_size")


def is_user(name: str) -> bool:
    """Whether a network's name means a factory of the user's."""
    return ":" in name


def check_form(name: str) -> str:
    """Return `name` if it is written as ``package.module:factory``; nothing is imported.

    Raises:
        ValueError: it is not.
    """
    if not _WELL_FORMED.fullmatch(name):
        raise ValueError(f"a network of your own is written {FORM} (got '{name}'), for example mynets:small")
    return name


def find_factory(name: str) -> Callable[..., Any]:
    """Import ``package.module`` and return its ``factory``; the working directory can be imported from.

    Raises:
        NetworkError: no such module, a module that cannot be imported, no such factory.
    """
    path, _, attribute = name.partition(":")
    module = _import(path)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise NetworkError("model", f"{path} has no factory '{attribute}'{nearest(attribute, known)}")
    if isinstance(factory, nn.Module):
        raise NetworkError("model", f"{name} is a network; name the class or function that makes it")
    return factory  # type: ignore[no-any-return]


def _import(path: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # at the end: a file of the user's must not hide a module of Python's
    try:
        importlib.invalidate_caches()
        with torch.device("cpu"):  # constants of the module must not land on the meta device of a first look
            return importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if path != missing and not path.startswith(missing + "."):
            raise NetworkError("model", f"{path} cannot be imported: {error}") from error
        parent = missing.rpartition(".")[0]
        places = list(getattr(sys.modules.get(parent), "__path__", [])) if parent else [here]
        known = [f"{parent}.{found.name}" if parent else found.name for found in pkgutil.iter_modules(places)]
        raise NetworkError(
            "model",
            f"there is no module '{missing}'{nearest(missing, known)} "
            f"(it must be installed, or lie in the working directory {here})",
        ) from error
    except BaseException as error:  # an import runs the user's code, which may also call sys.exit
        if type(error) is KeyboardInterrupt:  # Ctrl-C, but not what a module derives from it
            raise
        raise _not_importable(path, error) from error


def _not_importable(path: str, error: BaseException) -> NetworkError:
    return NetworkError("model", f"{path} cannot be imported: {told(error)}{_exit_hint(error)}")


def _exit_hint(error: BaseException) -> str:
    hint = "; it ends the program where it should not: take sys.exit out, or put it below `if __name__ == '__main__'`"
    return hint if isinstance(error, SystemExit) else ""


def source_hash(name: str) -> str | None:
    """Hash of the code behind a factory, so that edited code is another network; None where there is no file.

    That is its module and what the module imports of the user's own, and the module in which the factory was made, if
    it is another one: a class behind `functools.partial`, a decorated function, a method.
    """
    return code_hash((name.partition(":")[0], *_homes(find_factory(name))))


def _homes(factory: object) -> Iterator[str]:
    """Modules of a callable, and of those that it hands its calls to."""
    for _ in range(LAYERS):
        yield getattr(factory, "__module__", None) or "builtins"
        inner = [getattr(factory, key) for key in ("__wrapped__", "func", "__func__") if hasattr(factory, key)]
        if not inner:
            return
        factory = inner[0]


def build(
    name: str,
    *,
    in_channels: int,
    classes: int,
    width: float = 1.0,
    descriptor: int | None = None,
    image_size: int = 32,
    taps: Sequence[str] = (),
    classifier: str | None = None,
) -> TappedNet:
    """Call a factory and wrap what it returns; see `hksd.models.build` for the arguments.

    Raises:
        NetworkError: the factory cannot be found or called, returns no network, takes no width though one is given,
            or as for `WrappedNet`.
    """
    shape = in_channels, classes, image_size
    network = _build(name, *shape, width, descriptor, tuple(taps), classifier)
    first = next(network.parameters(), None)
    if first is None or not first.is_meta:  # on meta nothing is computed
        wanted = _wants_contiguous(name, *shape, width, descriptor, tuple(taps), classifier)
        if isinstance(network, WrappedNet):
            network.contiguous = wanted
        elif wanted:
            on_contiguous(network)
    return network


@functools.cache  # a process builds the same network for trial after trial
def _wants_contiguous(name: str, *arguments: Any) -> bool:
    """Whether a network works, or answers right, on contiguous maps alone: it calls `view` on them, say.

    Another network of the same factory is tried, so that the one to be trained keeps its state.
    """

    def tried(layout: torch.memory_format) -> Tensor | None:
        torch.manual_seed(0)
        images = torch.randn(2, size, size, channels).permute(0, 3, 1, 2)  # as batches are
        if layout == torch.contiguous_format:
            images = images.clone(memory_format=layout)
        memory.lay_out(network, layout)
        try:
            with Seen() as seen:
                answers: Tensor = network.eval()(images).detach().clone()
            if seen.at_risk and layout == torch.channels_last:
                return None  # no module, so that nothing guards it, and its gradient is not to be tried
            network.zero_grad(set_to_none=True)
            logits = network.train()(images)
            if logits.requires_grad:
                logits.sum().backward()
        except (Exception, SystemExit):  # whatever a stranger's code does; it is told when the network is looked at
            return None
        return answers

    channels, _, size = arguments[:3]
    with process.restored(0), torch.device("cpu"), torch.enable_grad():
        try:
            network = _build(name, *arguments)
        except NetworkError:  # a factory that can be called once
            return False
        restore = memory.snapshot(network)
        usual = tried(torch.channels_last)
        restore()
        plain = tried(torch.contiguous_format)
    if usual is None or plain is None or usual.shape != plain.shape:
        return usual is None and plain is not None
    bound = 1e-2 * plain.nan_to_num().abs().max().item()
    return not torch.allclose(usual, plain, rtol=0, atol=bound, equal_nan=True)


def _build(
    name: str,
    in_channels: int,
    classes: int,
    image_size: int,
    width: float,
    descriptor: int | None,
    taps: Sequence[str],
    classifier: str | None,
) -> TappedNet:
    factory = find_factory(name)
    given = {"classes": classes, "num_classes": classes, "in_channels": in_channels, "width": width}
    network = _call(factory, name, {**given, "image_size": image_size})
    if isinstance(network, TappedNet):
        return _own_taps(network, name, classes, descriptor, taps, classifier)
    if not isinstance(network, nn.Module):
        raise NetworkError("model", f"{name} must return an nn.Module (got {type(network).__name__})")
    if isinstance(network, torch.jit.ScriptModule):
        raise NetworkError(
            "model",
            f"{name} returns a TorchScript program, whose layers cannot be reached; return the network it is of",
        )
    if torch.get_default_device().type != "meta" and any(part.is_meta for part in network.parameters()):
        raise NetworkError(
            "model", f"{name} returns weights without numbers (made on the meta device); make them on the CPU"
        )
    guard(network)
    return WrappedNet(
        network,
        [(path,) for path in taps],
        classifier=classifier,
        descriptor=descriptor,
        images=(in_channels, image_size, image_size),
        classes=classes,
        name=name,
    )


def _call(factory: Callable[..., Any], name: str, given: dict[str, Any]) -> Any:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError) as error:
        raise NetworkError("model", f"{name} cannot be called: {error}") from error
    positional_only = inspect.Parameter.POSITIONAL_ONLY
    taken = {p.name for p in parameters if p.name in KNOWN and p.kind is not positional_only}
    wanting = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in taken
    ]
    if wanting:
        raise NetworkError(
            "model", f"{name} needs {', '.join(wanting)}, which hksd does not give (it gives {', '.join(KNOWN)})"
        )
    if given["width"] != 1 and "width" not in taken:
        raise NetworkError("width", f"{name} takes no `width`; leave the key out (got {given['width']:g})")
    try:
        return factory(**{key: value for key, value in given.items() if key in taken})
    except BaseException as error:  # a factory is the user's code, which may also call sys.exit
        if type(error) is KeyboardInterrupt:
            raise
        raise NetworkError("model", f"{name} failed: {told(error)}{_exit_hint(error)}") from error


def _own_taps(
    network: TappedNet, name: str, classes: int, descriptor: int | None, taps: Sequence[str], classifier: str | None
) -> TappedNet:
    """A network that was written for hksd shows its own taps."""
    for key, value in (("taps", taps), ("classifier", classifier), ("descriptor_dim", descriptor)):
        if value:
            raise NetworkError(key, f"{name} is a TappedNet and decides this itself; leave the key out")
    if network.shapes.classes != classes:
        raise NetworkError("model", f"{name} tells {network.shapes.classes} classes apart, but the data has {classes}")
    guard(network)
    return network
