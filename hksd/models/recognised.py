"""Of which network of ours weights are that do not fit the one they were given to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hksd import models
from hksd.errors import UserError
from hksd.models import foreign, zoo
from hksd.models.checkpoints import WeightSet
from hksd.models.staged import StagedNet

SIZES = {False: 32, True: 224}  # pixels of the images that a network is built for, by whether it is torchvision's


def recognised(sets: Sequence[WeightSet]) -> str:
    """The first network of ours whose names or order fit one of the sets, with width and classes, or an empty text."""
    largest = max((group.tensors for group in sets), key=len)
    first = next((part for part in largest.values() if part.ndim == 4), None)
    last = next((part for part in reversed(largest.values()) if part.ndim == 2), None)
    if first is None or last is None:
        return ""
    parts = {part for name in largest for part in name.split(".")}
    for name, entry in models.MODELS.items():
        if entry.by_path and zoo.ZOO[name].taps[-1][0].partition(".")[0] not in parts:
            continue  # dear to build, and its names are its own
        network = _sketch(name, 1.0, first, last)
        if network is None or len(foreign.Names(network).wanted()) > len(largest):
            continue
        width = 1.0
        mine = next(part for part in network.state_dict().values() if part.ndim == 4)
        if entry.width and len(mine) != len(first):
            width = len(first) / len(mine)
            network = _sketch(name, width, first, last)
        if network is not None and _fits(network, sets):
            return f"{name}{f' at width {width:g}' if width != 1 else ''} for {len(last)} classes"
    return ""


def _sketch(name: str, width: float, first: Tensor, last: Tensor) -> nn.Module | None:
    spec = models.NetworkSpec(model=name, width=width)
    size = SIZES[models.MODELS[name].by_path]
    try:
        return models.sketch(spec, in_channels=first.shape[1], classes=len(last), image_size=size).bare
    except UserError:  # it cannot be built so, or needs what is not installed
        return None


def _fits(network: nn.Module, sets: Sequence[WeightSet]) -> bool:
    own = foreign.Names(network)
    orders = (False, True) if isinstance(network, StagedNet) else (False,)
    return any(foreign.fits(sets, own, by_order=by_order) for by_order in orders)
