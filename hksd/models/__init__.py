"""Networks by name: families for small images, torchvision's zoo, and factories of the user's own.

A new family is one file and one registry line; see `hksd methods`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hksd.errors import UserError, unknown
from hksd.kernels.strided import guard
from hksd.models import user, zoo
from hksd.models.mobilenet import CifarMobileNetV2
from hksd.models.resnet import Bottleneck, CifarResNet
from hksd.models.shufflenet import CifarShuffleNetV1, CifarShuffleNetV2
from hksd.models.taps import TappedNet
from hksd.models.vgg import CONVOLUTIONS, CifarVgg
from hksd.models.wide_resnet import WideResNet
from hksd.models.wrapped import NetworkError


@dataclass(frozen=True)
class ModelEntry:
    """A registered network.

    Attributes:
        build: makes it; takes the arguments of `hksd.models.build`.
        source: where it comes from.
        width: it can be built at any width.
        by_path: it is torchvision's: tapped by module paths, which may be given, and with published weights.
    """

    build: Callable[..., TappedNet]
    source: str
    width: bool = True
    by_path: bool = False


_HE = "He et al. 2016, arXiv 1512.03385, section 4.2"
_HE_TABLES = "He et al. 2016, arXiv 1512.03385; form of the usual CIFAR-100 distillation tables (RepDistiller)"
_WIDE = "Zagoruyko and Komodakis 2016, arXiv 1605.07146"
_VGG = "Simonyan and Zisserman 2015, arXiv 1409.1556; with batch norm, form of RepDistiller"

MODELS: dict[str, ModelEntry] = {
    **{
        f"resnet{6 * n + 2}": ModelEntry(partial(CifarResNet, n), _HE)
        for n in (1, 2, 3, 4, 5, 6, 7, 9, 18)  # n = 8 is left out: "resnet50" means another network to everybody
    },
    **{
        f"resnet{layers}x4": ModelEntry(
            partial(CifarResNet, (layers - 2) // 6, stem=32, channels=(64, 128, 256)), _HE_TABLES
        )
        for layers in (8, 32)
    },
    "cifar_resnet50": ModelEntry(
        partial(CifarResNet, (3, 4, 6, 3), kind=Bottleneck, stem=64, channels=(256, 512, 1024, 2048)), _HE_TABLES
    ),
    "resnet164": ModelEntry(
        partial(CifarResNet, 18, kind=Bottleneck, channels=(64, 128, 256)),
        "He et al. 2016, arXiv 1512.03385, bottlenecks; KSANC's teacher by the shape of its maps (RECONSTRUCTED)",
    ),
    **{
        f"wrn_{depth}_{factor}": ModelEntry(partial(WideResNet, depth, factor), _WIDE)
        for depth, factor in ((16, 1), (16, 2), (40, 1), (40, 2), (40, 4), (28, 10))
    },
    **{f"vgg{layers}": ModelEntry(partial(CifarVgg, layers), _VGG) for layers in CONVOLUTIONS},
    "cifar_mobilenet_v2": ModelEntry(
        CifarMobileNetV2, "Sandler et al. 2018, arXiv 1801.04381; half width, form of RepDistiller"
    ),
    "cifar_shufflenet_v1": ModelEntry(CifarShuffleNetV1, "Zhang et al. 2018, arXiv 1707.01083; form of RepDistiller"),
    "cifar_shufflenet_v2": ModelEntry(CifarShuffleNetV2, "Ma et al. 2018, arXiv 1807.11164; form of RepDistiller"),
    **{
        name: ModelEntry(partial(zoo.build, name), entry.source, width=entry.width, by_path=True)
        for name, entry in zoo.ZOO.items()
    },
}


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """What decides how a network is built, beyond the data.

    Attributes:
        model: a key of `MODELS`, or ``package.module:factory``.
        width: multiplier on all channel counts.
        descriptor: size of the global descriptor, or None.
        taps: module paths of the stages, for networks that are tapped by path; empty takes their usual ones.
        classifier: module path of the classifier, likewise; None takes the last linear layer.
        image_size: height and width in pixels that it wants, where these are not those of the data.
        place: section it stands in, for messages.
    """

    model: str
    width: float = 1.0
    descriptor: int | None = None
    taps: tuple[str, ...] = ()
    classifier: str | None = None
    image_size: int | None = None
    place: str = ""

    def size(self, image_size: int) -> int:
        """Height and width in pixels of what it sees of images of `image_size` pixels."""
        return self.image_size or image_size


def check_name(name: str) -> str:
    """Return `name` if a network of that name exists, or if it is written as one of the user's own.

    Raises:
        ValueError: it does not; the message has the nearest name.
    """
    if user.is_user(name):
        return user.check_form(name)
    if name not in MODELS:
        raise ValueError(f"{unknown('model', name, MODELS)}, or one of your own as {user.FORM}")
    return name


def check_settings(
    name: str,
    *,
    width: float = 1.0,
    taps: tuple[str, ...] = (),
    classifier: str | None = None,
    pretrained: bool = False,
) -> None:
    """Check that a network takes these settings, without building it.

    Raises:
        ValueError: it does not; says which key.
    """
    own = user.is_user(name)
    entry = None if own else MODELS[check_name(name)]
    if entry is not None and not entry.by_path:
        for key, value in (("taps", taps), ("classifier", classifier)):
            if value:
                raise ValueError(f"{key}: {name} has taps of its own (see docs/extend.md); leave the key out")
    if entry is not None and not entry.width and width != 1:
        able = ", ".join(key for key, other in MODELS.items() if other.by_path and other.width)
        raise ValueError(
            f"width: {name} exists at width 1 alone (got {width:g}); of torchvision's networks {able} take one"
        )
    if len(set(taps)) < len(taps):
        raise ValueError(f"taps: every module once (got {', '.join(taps)})")
    if pretrained and (entry is None or not entry.by_path):
        raise ValueError(
            f"pretrained: there are no published weights of {name}, only of torchvision's networks; "
            "give weights as checkpoint"
        )
    if pretrained and width != 1:
        raise ValueError(f"pretrained: the published weights are for width 1 (got {width:g})")


def make(spec: NetworkSpec, *, in_channels: int, classes: int, image_size: int) -> TappedNet:
    """Build a network with random weights (from torch's global generator); see `build` for the arguments.

    Raises:
        UserError: it cannot be built for these images; begins with the key path.
    """
    arguments: dict[str, Any] = {"width": spec.width, "descriptor": spec.descriptor}
    image: dict[str, Any] = {"in_channels": in_channels, "classes": classes, "image_size": spec.size(image_size)}
    own = user.is_user(check_name(spec.model))
    check_settings(spec.model, width=spec.width, taps=spec.taps, classifier=spec.classifier)
    prefix = f"{spec.place}." if spec.place else ""
    try:
        if own or MODELS[spec.model].by_path:
            arguments |= {"taps": spec.taps, "classifier": spec.classifier}
        make_it = partial(user.build, spec.model) if own else MODELS[spec.model].build
        network = make_it(**image, **arguments)
    except NetworkError as error:
        raise NetworkError(prefix + error.key, error.text) from error
    except UserError as error:
        raise NetworkError(f"{prefix}model", str(error)) from error
    guard(network)
    return network


def sketch(spec: NetworkSpec, *, in_channels: int, classes: int, image_size: int) -> TappedNet:
    """Build a network to look at its shapes and size: on the meta device, or on the CPU where it cannot be made there.

    Raises:
        UserError: as for `make`.
    """
    image = {"in_channels": in_channels, "classes": classes, "image_size": image_size}
    try:
        with torch.device("meta"):
            return make(spec, **image)
    except Exception:  # a user's network may need numbers; a fault that is none of the device's comes again
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            return make(spec, **image)


def build(
    name: str,
    *,
    in_channels: int,
    classes: int,
    width: float = 1.0,
    descriptor: int | None = None,
    image_size: int = 32,
    taps: tuple[str, ...] = (),
    classifier: str | None = None,
) -> TappedNet:
    """Build the network `name` with random weights (from torch's global generator).

    Args:
        name: a key of `MODELS`, or ``package.module:factory``.
        in_channels: channels of the images.
        classes: number of classes.
        width: multiplier on all channel counts.
        descriptor: size of the global descriptor, or None.
        image_size: height and width of the images in pixels.
        taps: module paths of the stages, for networks that are tapped by path.
        classifier: module path of the classifier, likewise.

    Raises:
        UserError: it cannot be built for these images.
        ValueError: there is no such network, or it does not take these settings.
    """
    spec = NetworkSpec(model=name, width=width, descriptor=descriptor, taps=tuple(taps), classifier=classifier)
    return make(spec, in_channels=in_channels, classes=classes, image_size=image_size)


__all__ = [
    "MODELS",
    "ModelEntry",
    "NetworkError",
    "NetworkSpec",
    "build",
    "check_name",
    "check_settings",
    "make",
    "sketch",
]
