"""A teacher from elsewhere as it would be for images of another size, to see whether that is the one it was made for.

Some networks are built otherwise for another size (a stem that halves large images, a grid of patches), so it is built
anew and given the same weights.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import torch

from hksd import models
from hksd.config.networks import TeacherConfig
from hksd.data import DataSet
from hksd.device import memory, process
from hksd.models.size import size_of
from hksd.models.taps import TappedNet
from hksd.teacher.inputs import Inputs

SIZES = (32, 64, 128, 224, 256)  # pixels that published networks are trained on
log = logging.getLogger(__name__)


def sizes_to_try(now: Inputs, known: Inputs | None, data: DataSet) -> list[int]:
    """Sizes other than the one that a teacher sees now, that of its file first."""
    told = [known.size] if known is not None and known.size else []
    seen = now.size or data.image_size
    return [size for size in dict.fromkeys((*told, *SIZES, data.image_size)) if size != seen]


def mflops_of(settings: TeacherConfig, data: DataSet, size: int) -> float:
    """MFLOPs of a teacher for an image of `size` pixels."""
    return size_of(replace(settings.spec(), image_size=size), **data.image_shape).mflops


def resized(network: TappedNet, settings: TeacherConfig, data: DataSet, size: int) -> TappedNet | None:
    """`network` (without what is put before it) with its weights, built for images of `size` pixels, in eval mode.

    None where it cannot be built so, or its weights do not fit it then.
    """
    device = next((value.device for value in network.state_dict().values()), torch.device("cpu"))
    try:
        with process.restored(0, [device] if device.type == "cuda" else []):
            other = models.make(replace(settings.spec(), image_size=size), **data.image_shape)
        other.load_state_dict(copy.copy(network.state_dict()))
    except Exception as error:  # a stranger's network may do anything for a size that it does not know
        log.debug("%s is not tried on images of %d pixels: %s", settings.model, size, error)
        return None
    memory.lay_out(other.to(device), other.layout)
    return other.eval().requires_grad_(False)
