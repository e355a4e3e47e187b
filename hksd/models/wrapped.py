"""Taps of a network that knows nothing of hksd, by the paths of its modules.

Hooks write what their modules give into the record of the running call (a context variable), so nothing is kept on a
module, two calls never mix, and a copy of the network has its own hooks.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hksd.errors import UserError, nearest
from hksd.models import outputs
from hksd.models.faults import told
from hksd.models.staged import shown
from hksd.models.taps import Out, TappedNet, TapShapes, plain

LOGITS, RETURNED = "?logits", "?returned"  # likewise: what a network gives, and what that stands in if not alone
EMBEDDING = ""  # the path under which the classifier's input is recorded; no tap can have it
_RECORD: ContextVar[dict[str, Any] | None] = ContextVar("hksd_taps", default=None)
log = logging.getLogger(__name__)


class NetworkError(UserError):
    """A network that cannot be built or tapped; the message begins with the key that is to be mended.

    Attributes:
        key: field of the section, for example ``taps``.
        text: what is wrong, and the cure.
    """

    def __init__(self, key: str, text: str):
        self.key, self.text = key, text
        super().__init__(f"{key}: {text}")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.key, self.text)


class _Keep:
    """Hook that records the output of a module, or the first input of the classifier."""

    def __init__(self, path: str, *, classifier: bool = False):
        self.path, self.classifier = path, classifier

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        record = _RECORD.get()
        if record is None:
            return
        record[self.path] = output
        if self.classifier and inputs:
            record[EMBEDDING] = inputs[0]


class WrappedNet(TappedNet):
    """A network with taps by path.

    A module that runs several times in one pass is tapped the last time. A map that the network later changes in
    place (an in-place ReLU behind the tapped module) is seen as changed.

    Args:
        network: images (N, channels, H, W) to logits (N, C).
        taps: per stage the paths of its modules, the last one giving the stage's map. A path to an `nn.Sequential` of
            composite modules stands for these modules.
        classifier: path of the layer that makes the logits; None takes the last `nn.Linear`.
        descriptor: size of a bias-free linear layer before the classifier, or None.
        images: shape (channels, H, W) of an image.
        classes: number of classes C of the data.
        name: of the network, for messages.

    Raises:
        NetworkError: a path that does not exist or gives no map, no classifier, other classes than the data.
    """

    def __init__(
        self,
        network: nn.Module,
        taps: Sequence[Sequence[str]],
        *,
        classifier: str | None,
        descriptor: int | None,
        images: tuple[int, int, int],
        classes: int,
        name: str,
    ):
        super().__init__()
        self.network, self.name = network, name
        self.classifier_path = find_classifier(network, classifier, name)
        if descriptor is not None:
            self.classifier_path = _insert_descriptor(network, self.classifier_path, descriptor)
        for path in (path for stage in taps for path in stage):
            find(network, path, "taps", name)
        stages = [[block for path in stage for block in blocks_of(network, path)] for stage in taps]
        for path in dict.fromkeys(path for stage in stages for path in stage if path != self.classifier_path):
            network.get_submodule(path).register_forward_hook(_Keep(path))
        self.classifier.register_forward_hook(_Keep(self.classifier_path, classifier=True))
        before = {path for path, _ in network.named_parameters()}
        shapes = _probe(network, images, name)
        self._check_made(before)
        self._check_logits(shapes, classes, name)
        for path in (path for stage in stages for path in stage):
            _check_map(path, shapes.get(path), name)
        self.stage_paths = [_alike(stage, shapes) for stage in stages]
        channels = tuple(tuple(shapes[path][1] for path in stage) for stage in self.stage_paths)
        self.shapes = TapShapes(classes, shapes[EMBEDDING][1], tuple(counts[-1] for counts in channels), channels)

    @property
    def bare(self) -> nn.Module:
        """The network as its author made it."""
        return self.network

    @property
    def classifier(self) -> nn.Module:  # type: ignore[override]
        """The layer that reads the embedding."""
        return self.network.get_submodule(self.classifier_path)

    def taps(self, images: Tensor) -> Out:
        """images: (N, channels, H, W)."""
        record: dict[str, Any] = {}
        token = _RECORD.set(record)
        try:
            logits = self(images)
        finally:
            _RECORD.reset(token)
        for key, path in (*(("taps", path) for stage in self.stage_paths for path in stage), ("classifier", EMBEDDING)):
            if path not in record:
                where = path or self.classifier_path
                raise NetworkError(key, f"'{where}' of {self.name} did not run in this pass; name one that always runs")
        blocks = [[record[path] for path in stage] for stage in self.stage_paths]
        return Out(logits, record[EMBEDDING], [maps[-1] for maps in blocks], blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C), the main output where there are more; nothing is recorded."""
        logits: Tensor = outputs.main_output(self.network(plain(images) if self.contiguous else images))
        return logits

    def _check_made(self, before: set[str]) -> None:
        """Refuse weights that came with the first images: no optimiser and no file would know them."""
        if new := [path for path, _ in self.network.named_parameters() if path not in before]:
            raise NetworkError(
                "model",
                f"{self.name} makes {', '.join(new[:3])} when it sees images; make all layers in `__init__` "
                "(nn.LazyLinear and the like learn their sizes later)",
            )

    def _candidates(self, classes: int) -> str:
        """Other layers that may be the classifier."""
        linear = {path: part for path, part in self.network.named_modules() if isinstance(part, nn.Linear)}
        found = [path for path, part in linear.items() if part.out_features == classes and path != self.classifier_path]
        return f" ({', '.join(found[:3])}?)" if found else ""

    def _check_logits(self, shapes: dict[str, Any], classes: int, name: str) -> None:
        logits, made, read = shapes[LOGITS], shapes.get(self.classifier_path), shapes.get(EMBEDDING)
        if not isinstance(logits, tuple) or len(logits) != 2:
            raise NetworkError(
                "model", f"{name} gives {_say(logits)} for two images; it must return {outputs.ACCEPTED}"
            )
        if logits[1] != classes and RETURNED in shapes:
            raise NetworkError(
                "model",
                f"{name} returns {shapes[RETURNED]}, of which what counts as logits is {logits} for two images, but "
                f"the data has {classes} classes; it must return {outputs.ACCEPTED}",
            )
        if logits[1] != classes:
            raise NetworkError(
                "model",
                f"{name} tells {logits[1]} classes apart, but the data has {classes}; "
                "let its factory take `classes` or `num_classes`",
            )
        if not isinstance(read, tuple) or len(read) != 2 or made != logits:
            raise NetworkError(
                "classifier",
                f"'{self.classifier_path}' of {name} reads {_say(read)} and gives {_say(made)}; it must read "
                f"one vector per image and give the logits {_say(logits)}: name the layer that does"
                + self._candidates(classes),
            )


def find(network: nn.Module, path: str, key: str, name: str) -> nn.Module:
    """The module at `path`.

    Raises:
        NetworkError: there is none; has the nearest path, and the modules at the top.
    """
    known: dict[str, nn.Module] = dict(network.named_modules(remove_duplicate=False))  # a module may have two names
    if not path or path not in known:
        top = ", ".join(child for child, _ in network.named_children()) or "none"
        raise NetworkError(
            key, f"{name} has no module '{path}'{nearest(path, filter(None, known))} (modules at its top: {top})"
        )
    return known[path]


def find_classifier(network: nn.Module, path: str | None, name: str) -> str:
    """Path of the classifier: `path`, or the last `nn.Linear`.

    Raises:
        NetworkError: there is none.
    """
    if path is not None:
        find(network, path, "classifier", name)
        return path
    linear: list[str] = [where for where, module in network.named_modules() if isinstance(module, nn.Linear) and where]
    if not linear:
        raise NetworkError("classifier", f"{name} has no nn.Linear inside; name the layer that makes its logits")
    return linear[-1]


def _insert_descriptor(network: nn.Module, path: str, size: int) -> str:
    """Put a bias-free linear layer of that size before the classifier; returns the path of the new classifier."""
    old = network.get_submodule(path)
    if not isinstance(old, nn.Linear):
        raise NetworkError("descriptor_dim", f"the classifier '{path}' is no nn.Linear; leave descriptor_dim out")
    device = old.weight.device
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        descriptor=nn.Linear(old.in_features, size, bias=False, device=device),
        classifier=nn.Linear(size, old.out_features, bias=old.bias is not None, device=device),
    )
    new = nn.Sequential(parts)
    for where, module in list(network.named_modules(remove_duplicate=False)):
        if module is old:  # under every name that it has
            parent, _, last = where.rpartition(".")
            setattr(network.get_submodule(parent), last, new)
    return f"{path}.classifier"


def blocks_of(network: nn.Module, path: str) -> list[str]:
    """The modules that `path` stands for: those of a Sequential of composite modules, else itself."""
    module = network.get_submodule(path)
    children = list(module.named_children())
    plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    if plain and children and all(next(child.children(), None) is not None for _, child in children):
        return [f"{path}.{name}" for name, _ in children]
    return [path]


def _alike(paths: Sequence[str], shapes: dict[str, Any]) -> list[str]:
    """The paths at the end of a stage whose maps have the channels and the size of the last one."""
    sizes = {shape: number for number, shape in enumerate(dict.fromkeys(shapes[path] for path in paths))}
    return list(paths[-shown([sizes[shapes[path]] for path in paths]) :])


def _check_map(path: str, shape: Any, name: str) -> None:
    if shape is None:
        raise NetworkError("taps", f"'{path}' of {name} does not run when images pass; tap another module")
    if not isinstance(shape, tuple) or len(shape) != 4:
        raise NetworkError(
            "taps", f"'{path}' of {name} gives {_say(shape)}, no map (N, F, H, W); tap a module that gives one"
        )


def _say(shape: Any) -> str:
    return "nothing" if shape is None else shape if isinstance(shape, str) else f"{tuple(shape)}"


def _probe(network: nn.Module, images: tuple[int, int, int], name: str) -> dict[str, Any]:
    """Shapes of everything recorded, and of the logits, for two images; the network is left as it was.

    On the meta device where that works, since it costs next to nothing, else on the network's own.
    """
    parameter = next(network.parameters(), None)
    own = parameter.device if parameter is not None else torch.device("cpu")
    modes = [(module, module.training) for module in network.modules()]
    network.eval()

    def on_meta() -> Any:
        twins: dict[int, Tensor] = {}  # of tensors; what is shared stays shared
        state = {
            where: twins.setdefault(id(tensor), torch.empty_like(tensor, device="meta"))
            for where, tensor in _places(network)
        }
        with torch.device("meta"):
            return functional_call(network, state, (torch.empty(2, *images),), tie_weights=False)

    try:
        shapes = _record(on_meta)
    except (Exception, SystemExit) as error:  # whatever a stranger's code cannot do without numbers
        if own.type == "meta" and isinstance(error, Exception):
            raise
        log.debug("%s does not run on the meta device: %s", name, error)
        try:
            with torch.random.fork_rng(devices=[]):
                shapes = _record(lambda: network(torch.zeros(2, *images, device=own)))
        except (Exception, SystemExit) as fault:
            raise NetworkError(
                "model", f"{name} cannot run on images {images}: {told(fault)}{_half(network)}"
            ) from fault
    finally:
        for module, mode in modes:
            module.training = mode
    return shapes


def _half(network: nn.Module) -> str:
    """The cure where it is in another precision than the images."""
    kinds = {str(part.dtype).removeprefix("torch.") for part in network.parameters()} - {"float32"}
    return f"; it has weights in {', '.join(sorted(kinds))}: let its factory return it with `.float()`" if kinds else ""


def _places(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every place of a parameter or buffer, once, under one of its names.

    A place that is named twice (its module has two names) must not be replaced twice: `functional_call` would put back
    the replacement. A tensor in two places (tied weights) needs both.
    """
    for path, module in network.named_modules():
        own = (
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        )
        yield from ((f"{path}.{name}" if path else name, tensor) for name, tensor in own)


@torch.no_grad()
def _record(run: Callable[[], Any]) -> dict[str, Any]:
    """Run something and turn all that was recorded into shapes; what is no tensor is said in words."""
    record: dict[str, Any] = {}
    token = _RECORD.set(record)
    try:
        made = run()
    finally:
        _RECORD.reset(token)
    found = {**record, LOGITS: outputs.main_output(made)} | ({} if isinstance(made, Tensor) else {RETURNED: made})
    return {
        path: tuple(value.shape) if isinstance(value, Tensor) else outputs.say(value) for path, value in found.items()
    }
