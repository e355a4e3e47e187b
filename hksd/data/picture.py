"""What a viewer shows of a picture: upright, on white, in 8 bits a channel. The one way from PIL's pictures to pixels.

Turned as EXIF says; what is transparent shows a white ground; of 16 bits a channel the upper 8 count; of several frames
or pages the first. Colour profiles and gamma are not applied, as is the custom of the field: the numbers stand as they
are stored, CMYK as Pillow turns it into RGB. What differs from the plain case in a way that people may not expect is
counted (`Notes`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from hksd.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

GRAY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
GROUND = "white"
# Decoded pixels take 4 bytes in Pillow, and their conversion as much again: 2 GB for one picture of this many.
PIXELS = 2**28
TURNED = (1, 2, 3, 4, 5, 6, 7, 8)  # values of EXIF's orientation; from 5 on, width and height change places
EXIF_PLACES = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})  # where PIL looks for it
DARK = 1 << 12  # of 16 bits; what stays below was measured with 12 or fewer and not scaled
SRGB_GAMMA = 1 / 2.2

# Of `Image.info`, what is read here, in Pillow, or both; a PNG's texts stand there under names of their own choice.
FACTS: dict[str, type | tuple[type, ...]] = {
    "transparency": (int, tuple, bytes),
    "gamma": float,
    "srgb": int,
    "icc_profile": bytes,
    "progressive": int,
}

NOTES = {
    "frames": "are animated or have several pages; the first of each is taken",
    "transparent": f"are transparent in places; there they are {GROUND}",
    "profile": "carry a colour profile or gamma other than sRGB; it is not applied, their numbers stand as stored",
    "coloured": "are coloured, but the training images are gray by their headers; their colour is dropped",
    "dark": "have 16 bits but use no more than 12, so that they are nearly black; scale them to 0..65535",
}


class Notes:
    """Counts what is unusual in the pictures of a set; threads may share it."""

    def __init__(self) -> None:
        self.seen = 0
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self._lock = Lock()

    def see(self, name: str, picture: Image, channels: int) -> None:
        """Count a decoded picture that is read as gray (1 channel) or RGB (3)."""
        found = list(_unusual(picture)) if picture.format else []  # made from an array: pixels and nothing else
        if channels == 1 and _is_coloured(picture):
            found.append("coloured")
        with self._lock:
            self.seen += 1
            for kind in found:
                self.counts[kind] += 1
                self.first[kind] = min(name, self.first.get(kind, name))

    def lines(self, where: str) -> tuple[str, ...]:
        """One line for each kind that there is."""
        return tuple(
            f"{where}: {self.counts[kind]:,} of {self.seen:,} images read {text} (such as {self.first[kind]})"
            for kind, text in NOTES.items()
            if self.counts[kind]
        )


def is_gray(picture: Image) -> bool:
    """Whether a picture that is opened and not yet decoded is gray by its header.

    Not one with a palette, whose colours may all be gray but need not.
    """
    # Pillow opens gray of 16 bits with alpha as RGBA; the form in the file stands in the tile.
    return picture.mode in GRAY_MODES or any(str(tile.args).startswith("LA;") for tile in getattr(picture, "tile", ()))


def shown_size(name: str, picture: Image) -> tuple[int, int]:
    """Width and height as a viewer shows them.

    Raises:
        DataError: the picture is damaged, or too large to decode.
    """
    if picture.format in ("PNG", "TIFF"):  # EXIF may stand behind the pixels; Pillow itself turns a TIFF it decodes
        _load(name, picture, 1.0)
    return picture.size[::-1] if _orientation(picture) >= 5 else picture.size


def as_shown(name: str, picture: Image, channels: int, enough: float = 1.0) -> Image:
    """Decode a picture to gray (1 channel) or RGB (3), upright.

    Args:
        name: of the picture, for messages.
        picture: opened, perhaps decoded.
        channels: 1 or 3.
        enough: share of its width and height that is enough. A JPEG then decodes at a half, quarter or eighth where
            that is no less; at 1, where it is too large for memory otherwise.

    Raises:
        DataError: it is damaged, too large to decode, or its numbers do not say what is black and what is white.
    """
    _load(name, picture, enough)
    turned = _orientation(picture)
    with damage_named(name):
        if picture.mode.startswith(("I", "F")):
            picture = _eight_bits(name, picture)
        elif _has_alpha(picture):
            picture = _on_ground(picture)
        elif picture.mode == "LAB":  # Pillow knows no way from it to gray
            picture = picture.convert("RGB")
        mode = "L" if channels == 1 else "RGB"
        return _turn(picture if picture.mode == mode else picture.convert(mode), turned)


@contextmanager
def damage_named(name: str) -> Iterator[None]:
    """Name the picture when PIL fails."""
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(
            f"{name}: the memory of this machine is too small to decode the image; make the image smaller"
        ) from error
    except Exception as error:  # its decoders raise nearly everything on damaged data
        raise DataError(f"{name}: the image is damaged ({error}); replace or remove it") from error


def without_texts(picture: Image) -> None:
    """Forget texts of a file that Pillow puts where it keeps facts, as a PNG's text that is called gamma."""
    for key, kind in FACTS.items():
        if key in picture.info and not isinstance(picture.info[key], kind):
            del picture.info[key]


def _load(name: str, picture: Image, enough: float) -> None:
    full = picture.size
    with damage_named(name):
        _reduce(picture, enough)
        decoded = full if picture.info.get("progressive") else picture.size  # all of a progressive JPEG is held anyway
        if math.prod(decoded) > PIXELS:
            raise DataError(
                f"{name}: {full[0]:,} x {full[1]:,} pixels are too large to decode: {math.prod(full):,} pixels, at "
                f"most {PIXELS:,} (2 GB of memory); make the image smaller, or cut it into parts"
            )
        picture.load()
        without_texts(picture)  # some stand behind the pixels


def _reduce(picture: Image, enough: float) -> None:
    """Let a JPEG decode at a half, quarter or eighth of its size; PIL does nothing for other formats."""
    width, height = picture.size
    least = min(width // math.ceil(width * enough), height // math.ceil(height * enough)) if enough < 1 else 1
    times = next(times for times in (8, 4, 2, 1) if times <= max(1, least))
    while times < 8 and width * height > PIXELS * times**2:
        times *= 2
    if times > 1:
        picture.draft(None, (max(1, width // times), max(1, height // times)))


def _orientation(picture: Image) -> int:
    """EXIF's orientation, 1 to 8; 1 (upright) where it is missing, damaged or unknown, as viewers do."""
    if picture.format != "TIFF" and not picture.info.keys() & EXIF_PLACES:
        return 1
    try:
        value = picture.getexif().get(0x0112, 1)
    except Exception:  # what was meant to be EXIF may be anything
        return 1
    return value if value in TURNED else 1


def _turn(picture: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    if orientation == 1:
        return picture
    method = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }[orientation]
    return picture.transpose(method)


def _eight_bits(name: str, picture: Image) -> Image:
    """The upper 8 of 16 bits of gray, as PIL does it with colours; what is transparent becomes white."""
    from PIL import Image

    if picture.mode == "F" or (picture.mode == "I" and picture.format not in ("PNG", "PPM")):
        raise DataError(
            f"{name}: pixels of mode {picture.mode} (32 bits, signed or floating point) do not say which number is "
            "black and which is white; scale them to 8 or 16 bits without sign"
        )
    values = np.asarray(picture)
    tags = getattr(picture, "tag_v2", {})  # of a TIFF
    bits = tags.get(258, (16,))[0]
    upper = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(262) == 0:  # white is zero
        upper = 255 - upper
    if (transparent := picture.info.get("transparency")) is not None:
        upper[values == transparent] = 255
    return Image.fromarray(upper)


def _has_alpha(picture: Image) -> bool:
    if picture.mode in ("1", "L", "P", "RGB"):
        return picture.info.get("transparency") is not None
    return picture.mode in ("LA", "La", "PA", "RGBA", "RGBa")


def _with_alpha(picture: Image) -> Image:

    rgba: Image = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
    if picture.format == "BMP" and rgba.getchannel("A").getextrema() == (0, 0):
        rgba.putalpha(255)  # many programs leave the fourth byte of a BMP empty, and mean no transparency
    return rgba


def _on_ground(picture: Image) -> Image:
    from PIL import Image

    rgba = _with_alpha(picture)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, GROUND), rgba).convert("RGB")


def _unusual(picture: Image) -> Iterator[str]:
    """Kinds of `NOTES` that a decoded picture is of, and "turned"."""
    if _orientation(picture) != 1:
        yield "turned"
    if _has_alpha(picture) and _with_alpha(picture).getchannel("A").getextrema() != (255, 255):
        yield "transparent"
    if not _is_srgb(picture):
        yield "profile"
    if picture.mode.startswith("I") and 0 < int(np.asarray(picture).max()) < DARK:
        yield "dark"
    if _several(picture):  # last, because it looks for a second frame
        yield "frames"


def _is_coloured(picture: Image) -> bool:
    """Whether a decoded picture has colour, by its pixels."""
    if picture.mode in GRAY_MODES:
        return False
    shown = _on_ground(picture) if _has_alpha(picture) else picture.convert("RGB")
    return bool(np.ptp(np.asarray(shown), axis=-1).any())


def _several(picture: Image) -> bool:
    if picture.format == "MPO":  # one JPEG, with a preview or a depth map behind it
        return False
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:  # a later frame is damaged, which is no fault of the first
        return True


def _is_srgb(picture: Image) -> bool:
    """Whether the numbers mean sRGB, by the name of the profile; a damaged one is passed over."""
    if profile := picture.info.get("icc_profile"):
        # The name stands in it as ASCII, or in version 4 in UTF-16; c2 is a small sRGB that is often embedded.
        return any(name in profile for name in (b"sRGB", "sRGB".encode("utf-16-be"), b"c2ci"))
    gamma = picture.info.get("gamma")
    return gamma is None or "srgb" in picture.info or abs(gamma - SRGB_GAMMA) < 0.01
