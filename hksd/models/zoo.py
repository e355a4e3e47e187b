"""The networks of torchvision under their own names, tapped where their maps have a 4th, 8th, 16th, 32nd of the size.

torchvision is imported when one is built. Its weights for ImageNet are the first published ones (IMAGENET1K_V1), which
every release offers; a teacher takes them with ``pretrained: true``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from hksd.models.wrapped import NetworkError, WrappedNet

Taps = tuple[tuple[str, ...], ...]
PRETRAINED_CLASSES, PRETRAINED_CHANNELS = 1000, 3
PUBLISHED = "IMAGENET1K_V1"


@dataclass(frozen=True)
class ZooEntry:
    """What hksd knows of a network of torchvision without importing it.

    Attributes:
        taps: paths of its stages.
        width: it takes a width multiplier.
        source: paper.
    """

    taps: Taps
    source: str
    width: bool = False


def _features(*ends: int) -> Taps:
    """Stages of a flat `features`, given the index of the first block of each and the end of the last."""
    return tuple(tuple(f"features.{i}" for i in range(ends[k], ends[k + 1])) for k in range(len(ends) - 1))


_RESNET: Taps = tuple((f"layer{i}",) for i in range(1, 5))
_REGNET: Taps = tuple((f"trunk_output.block{i}",) for i in range(1, 5))
_HE = "He et al. 2016, arXiv 1512.03385; torchvision"
_TAN = "Tan and Le 2019, arXiv 1905.11946; torchvision"
_RADOSAVOVIC = "Radosavovic et al. 2020, arXiv 2003.13678; torchvision"

ZOO: dict[str, ZooEntry] = {
    **{f"resnet{layers}": ZooEntry(_RESNET, _HE) for layers in (18, 34, 50, 101, 152)},
    "mobilenet_v2": ZooEntry(_features(2, 4, 7, 14, 18), "Sandler et al. 2018, arXiv 1801.04381; torchvision", True),
    "mobilenet_v3_small": ZooEntry(
        _features(1, 2, 4, 9, 12), "Howard et al. 2019, arXiv 1905.02244; torchvision", True
    ),
    "mobilenet_v3_large": ZooEntry(
        _features(2, 4, 7, 13, 16), "Howard et al. 2019, arXiv 1905.02244; torchvision", True
    ),
    **{f"efficientnet_b{size}": ZooEntry(_features(2, 3, 4, 6, 8), _TAN) for size in range(4)},
    "efficientnet_v2_s": ZooEntry(_features(2, 3, 4, 6, 7), "Tan and Le 2021, arXiv 2104.00298; torchvision"),
    **{
        f"regnet_{kind}_{size}": ZooEntry(_REGNET, _RADOSAVOVIC)
        for kind in "xy"
        for size in ("400mf", "800mf", "1_6gf", "3_2gf")
    },
}


def _torchvision() -> ModuleType:
    from hksd.torchvision_guard import import_models

    try:
        with torch.device("cpu"):  # what a module keeps must not land on the meta device of a first look
            return import_models()
    except ImportError as error:
        raise NetworkError(
            "model", f"networks of torchvision need it ({error}); install it with `pip install torchvision`"
        ) from error


def build(
    name: str,
    *,
    in_channels: int,
    classes: int,
    width: float = 1.0,
    descriptor: int | None = None,
    image_size: int = 224,
    taps: Sequence[str] = (),
    classifier: str | None = None,
) -> WrappedNet:
    """Build a network of torchvision with random weights; see `hksd.models.build` for the arguments.

    Raises:
        NetworkError: torchvision is missing, or as for `WrappedNet`.
    """
    entry = ZOO[name]
    more: dict[str, Any] = {"width_mult": width} if entry.width else {}
    network: nn.Module = getattr(_torchvision(), name)(weights=None, num_classes=classes, **more)
    if in_channels != PRETRAINED_CHANNELS:
        _take_channels(network, in_channels)
    return WrappedNet(
        network,
        [(path,) for path in taps] or entry.taps,
        classifier=classifier,
        descriptor=descriptor,
        images=(in_channels, image_size, image_size),
        classes=classes,
        name=name,
    )


def _take_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution by one for images of that many channels."""
    path, old = next((path, part) for path, part in network.named_modules() if isinstance(part, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
        device=old.weight.device,
    )
    parent, _, last = path.rpartition(".")
    setattr(network.get_submodule(parent), last, new)


def published(name: str) -> str:
    """Name of the weights that `pretrained_state` gives, for cache keys."""
    return f"torchvision {name} {PUBLISHED}"


def pretrained_state(name: str, *, in_channels: int, classes: int) -> dict[str, Tensor]:
    """The published weights of a network of torchvision, from its cache or downloaded.

    Raises:
        NetworkError: they do not suit the data, or cannot be fetched.
    """
    if classes != PRETRAINED_CLASSES:
        raise NetworkError(
            "pretrained",
            f"the published weights of {name} tell {PRETRAINED_CLASSES} classes apart, but the data has {classes}; "
            "fine-tune them on your classes and give the result as checkpoint",
        )
    if in_channels != PRETRAINED_CHANNELS:
        raise NetworkError(
            "pretrained",
            f"the published weights of {name} are for images of {PRETRAINED_CHANNELS} channels, "
            f"but these have {in_channels}",
        )
    weights = getattr(_torchvision().get_model_weights(name), PUBLISHED)
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        from torch.hub import get_dir

        raise NetworkError(
            "pretrained",
            f"{weights.url} could not be fetched or read ({error}); put the file into {get_dir()}/checkpoints by hand, "
            "or give weights as checkpoint",
        ) from error
    return state
