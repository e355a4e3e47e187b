"""What ImageNet training takes of a picture: a random resized part to learn from, the centre to evaluate on.

The forms are those of torchvision's transforms (CONFIRMED: RandomResizedCrop, and 256 and 224 in its presets of
classification); the parts are drawn from bits that are a function of (seed, epoch, image), not from a shared
generator.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hksd.data.picture import as_shown, shown_size
from hksd.data.raw import Form, as_array

if TYPE_CHECKING:
    from PIL.Image import Image

RATIO = (3 / 4, 4 / 3)  # width to height of a random part
ATTEMPTS = 10  # draws of a part that fits into the picture
MARGIN = 256 / 224  # the short side before the centre is taken, to the size of the centre

Box = tuple[int, int, int, int]  # left, upper, right, lower


def draw_box(width: int, height: int, least: float, bits: int) -> Box:
    """Draw a part of `least` to 1 of the area, its ratio log-uniform in `RATIO`; the largest centre when none fits.

    Args:
        width: of the picture, in pixels.
        height: likewise.
        least: smallest share of the area, above 0 and at most 1.
        bits: all that the part is drawn from.
    """
    draw = np.random.default_rng(bits).random
    for _ in range(ATTEMPTS):
        area = width * height * (least + (1 - least) * draw())
        low, high = (math.log(end) for end in RATIO)
        ratio = math.exp(low + (high - low) * draw())
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            left, upper = int(draw() * (width - wide + 1)), int(draw() * (height - tall + 1))
            return left, upper, left + wide, upper + tall
    wide = min(width, round(height * RATIO[1]))
    tall = min(height, round(width / RATIO[0]))
    left, upper = (width - wide) // 2, (height - tall) // 2
    return left, upper, left + wide, upper + tall


def random_part(name: str, picture: Image, form: Form, least: float, bits: int) -> NDArray[np.uint8]:
    """A random part (see `draw_box`) as (size, size, channels).

    Raises:
        DataError: the picture is damaged or too large, or its numbers do not say what is black and what is white.
    """
    from PIL.Image import Resampling

    full = shown_size(name, picture)
    box = draw_box(*full, least, bits)
    picture = as_shown(name, picture, form.channels, form.size / min(box[2] - box[0], box[3] - box[1]))
    x, y = picture.width / full[0], picture.height / full[1]
    part = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    return as_array(picture.resize((form.size, form.size), Resampling.BILINEAR, part), form)


def centre_side(size: int) -> int:
    """The short side of a picture whose centre of `size` pixels is taken."""
    return round(size * MARGIN)


def centre(name: str, picture: Image, form: Form) -> NDArray[np.uint8]:
    """The centre of the picture as (size, size, channels): short side to 256/224 of the size, then the middle.

    Raises:
        DataError: as for `random_part`.
    """
    from PIL.Image import Resampling

    size, short = form.size, centre_side(form.size)
    full = shown_size(name, picture)
    side = min(full)
    picture = as_shown(name, picture, form.channels, short / side)
    picture = picture.resize((short * full[0] // side, short * full[1] // side), Resampling.BILINEAR)
    left, upper = round((picture.width - size) / 2), round((picture.height - size) / 2)
    return as_array(picture.crop((left, upper, left + size, upper + size)), form)
