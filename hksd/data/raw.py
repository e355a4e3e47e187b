"""A set whose labels are read and whose pixels are not yet, and the one way from pictures to arrays.

Labels decide which rows a run needs; only those are decoded. Every source hands over PIL pictures with a name for
messages, so size, channels and damage are judged in one place.
"""

from __future__ import annotations

import functools
import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hksd.data.picture import PIXELS, Notes, as_shown, damage_named, is_gray, shown_size, without_texts
from hksd.data.splits import Rows
from hksd.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    from hksd.data.files import Files

Pictures = Iterator[tuple[str, "Image"]]
# What is read, with the suffixes of its files. Named, because PIL otherwise asks one decoder after the other: slower,
# and more code that a hostile file can reach (that of EPS starts Ghostscript). What a file is, its content tells.
FORMATS = {
    "WEBP": (".webp",),
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "JPEG2000": (".jp2", ".j2k"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
}
POINTER = "this is what Git LFS leaves in place of a file that it has not fetched"
SUFFIXES = tuple(chain.from_iterable(FORMATS.values()))  # in small letters
# A set without a test part of its own is tested on what it calls validation; our validation is drawn from its train.
TEST_NAMES = ("test", "val", "valid", "validation")
NOT_TEST_NAMES = ("testing", "tests", "dev", "eval", "evaluation")  # what people call it too


@dataclass(frozen=True)
class RawSet:
    """Training or test set of a source.

    Attributes:
        where: folder or file it comes from, for messages.
        classes: class names.
        labels: (N,), int64, 0 to C-1.
        index: (N,), int64, position of each row in the source's own order.
        pictures: opens the pictures of ascending rows lazily, each with its name for messages.
        files: where every row is a file of its own, these files (what can be streamed); else None.
        named: whether the data names its classes; otherwise they are called by their numbers.
        line: what was passed over or is remarkable, for a warning; "" for nothing.
    """

    where: str
    classes: tuple[str, ...]
    labels: Rows
    index: Rows
    pictures: Callable[[Rows], Pictures]
    files: Files | None = None
    named: bool = True
    line: str = ""


class FileState(NamedTuple):
    """What tells that a file is another one than before.

    Attributes:
        name: absolute, so that files of two folders are never taken for each other.
        size: in bytes; -1 for a file that cannot be looked at.
        changed: time of the last change, in nanoseconds since 1970.
    """

    name: str
    size: int
    changed: int


def states_of(files: Iterable[Path]) -> Iterator[FileState]:
    """The state of each file; whoever reads a missing one will say so better."""
    for file in files:
        name = str(file.absolute())
        try:
            found = file.stat()
        except OSError:
            yield FileState(name, -1, 0)
        else:
            yield FileState(name, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class Source:
    """A recognised data set; both sets are opened on demand, so that training never touches the test set.

    Attributes:
        where: folder it was found in, for messages.
        train: opens the training set.
        test: opens the test set, given the classes of the training set; DataError where there is none.
        state: the state of every file that `train` reads, without reading it; none where it reads no file.
        line: what `train` passes over or is remarkable, for a warning; "" for nothing.
    """

    where: str
    train: Callable[[], RawSet]
    test: Callable[[tuple[str, ...]], RawSet]
    state: Callable[[], Iterator[FileState]]
    line: Callable[[], str] = lambda: ""


@dataclass(frozen=True)
class Form:
    """What all images of a data set share: the training set decides, the test set follows.

    Attributes:
        size: height and width in pixels.
        channels: 1 when every training image is grayscale, else 3.
        resize: whether other sizes are resized; otherwise they are an error.
        reference: name of the picture that `size` was read from.
    """

    size: int
    channels: int
    resize: bool
    reference: str


def form_of(raw: RawSet, rows: Rows, image_size: int | None) -> Form:
    """Read the common form from the headers of the pictures `rows` (M,), M >= 1; stops at the first coloured one.

    Raises:
        DataError: a header cannot be read, or the first picture is not square and no `image_size` is given.
    """
    name, first = next(raw.pictures(rows[:1]))
    width, height = shown_size(name, first)
    if image_size is None and width != height:
        raise DataError(
            f"{name}: {width} x {height} pixels, but images must be square; "
            f"set data.image_size to resize them, for example data.image_size: {max(width, height)}"
        )
    gray = all(is_gray(picture) for _, picture in raw.pictures(rows))
    return Form(image_size or width, 1 if gray else 3, image_size is not None, name)


def decode(raw: RawSet, rows: Rows, form: Form, notes: Notes) -> NDArray[np.uint8]:
    """Decode the pictures `rows` (M,) to (M, size, size, channels), and count in `notes` what is unusual.

    Raises:
        DataError: a picture is damaged or too large, its numbers do not say what is black and what is white, or it
            has another size than `form` says; or all together do not fit into memory.
    """
    shape = (len(rows), form.size, form.size, form.channels)
    try:
        images = np.empty(shape, np.uint8)
    except MemoryError as error:
        raise DataError(
            f"{raw.where}: {len(rows):,} images of {form.size} x {form.size} pixels take {math.prod(shape) / 1e9:,.1f} "
            "GB; set a smaller data.image_size, or leave class folders in their files by data.streaming: true"
        ) from error
    for position, (name, picture) in enumerate(raw.pictures(rows)):
        images[position] = whole(name, picture, form)
        notes.see(name, picture, form.channels)
    return images


def open_file(file: str) -> Image:
    """Open a file that holds one picture (its header; pixels are decoded later).

    Raises:
        DataError: it cannot be read, or is no picture of the `FORMATS`.
    """
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read ({error.strerror}); check that it is still there, and its permissions"
        ) from error
    return open_picture(file, data)


def open_picture(name: str, data: bytes) -> Image:
    """Open an encoded picture (its header; pixels are decoded later).

    Raises:
        DataError: it is no picture of the `FORMATS`, or damaged.
    """
    from PIL import Image, UnidentifiedImageError

    formats = _readable()
    with damage_named(name):
        try:
            picture = Image.open(io.BytesIO(data), formats=formats)
        except UnidentifiedImageError as error:
            raise DataError(f"{name}: {_unknown(data, formats)}") from error
        without_texts(picture)
        if picture.format == "PNG" and "transparency" in picture.info:
            picture.info["transparency"] = _in_pixels(picture, data[24])
    return picture


@functools.cache
def _readable() -> tuple[str, ...]:
    """Those of the `FORMATS` that this Pillow has; makes it ready for files of the user's own."""
    from PIL import Image, PngImagePlugin

    # Limits for strangers' uploads: the first has one of ours in its place (`PIXELS`), with a cure, and a long text or
    # profile beside the pixels is no fault.
    Image.MAX_IMAGE_PIXELS = None
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
    # One block for a picture, whatever its size: glibc gives one of 32 MB or more back to the system when it is freed,
    # and keeps smaller ones for each thread.
    Image.core.set_block_size(4 * PIXELS)  # type: ignore[attr-defined]
    # Of damaged EXIF and the like, in two lines for each file; what matters is told as an error.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _unknown(data: bytes, formats: Sequence[str]) -> str:
    """Why PIL does not know a picture, and what to do."""
    from PIL import Image

    if not data:
        return "the file is empty; replace or remove it"
    for kind in formats:
        factory, accept = Image.OPEN[kind]
        known = accept is not None and accept(data[:16])
        if isinstance(known, str):
            return f"Pillow reads no {kind} here ({known}); convert the image to PNG, or remove it"
        if known:
            try:
                factory(io.BytesIO(data), "")
            except Exception as error:  # the one that PIL keeps for itself
                return (
                    f"the image is damaged, or {kind} of a kind that Pillow cannot read ({error}); "
                    "save it anew as PNG, replace or remove it"
                )
    if data[4:8] == b"ftyp":
        return "this is HEIF or a film, which Pillow cannot read here; convert it to JPEG or PNG, or remove it"
    if is_pointer(data):
        return f"{POINTER}: fetch the images by `git lfs pull`"
    return f"this is no {', '.join(FORMATS)} image; replace or remove it"


def is_pointer(data: bytes) -> bool:
    """Whether the beginning of a file is that of a pointer of Git LFS."""
    return data.startswith(b"version https://git-lfs.github.com/spec/")


def _in_pixels(picture: Image, depth: int) -> object:
    """The transparent colour of a PNG of `depth` bits as its pixels have it; PIL leaves it as the file has it."""
    colour = picture.info["transparency"]
    if picture.mode == "RGB" and depth == 16:
        return tuple(value >> 8 for value in colour)
    if picture.mode == "L":
        return colour * 255 // (2**depth - 1)
    return colour


def array_pictures(where: str, images: NDArray[np.uint8]) -> Callable[[Rows], Pictures]:
    """Serve an array (N, H, W) or (N, H, W, 3) as `RawSet.pictures`."""

    def pictures(rows: Rows) -> Pictures:
        from PIL import Image

        for row in rows:
            yield f"{where}, row {row}", Image.fromarray(images[row])

    return pictures


def whole(name: str, picture: Image, form: Form) -> NDArray[np.uint8]:
    """The whole picture as (size, size, channels), resized where `form` allows it.

    Raises:
        DataError: as for `decode`.
    """
    from PIL.Image import Resampling

    wanted = (form.size, form.size)
    size = shown_size(name, picture)
    if size != wanted and not form.resize:
        raise DataError(
            f"{name}: {size[0]} x {size[1]} pixels, but {form.reference} has {form.size} x "
            f"{form.size}; set data.image_size to resize all, for example data.image_size: {form.size}"
        )
    picture = as_shown(name, picture, form.channels)
    if picture.size != wanted:
        picture = picture.resize(wanted, Resampling.BILINEAR)
    return as_array(picture, form)


def as_array(picture: Image, form: Form) -> NDArray[np.uint8]:
    """Pixels of a decoded picture of the right size: (size, size, channels)."""
    return np.asarray(picture).reshape(form.size, form.size, form.channels)


def rename_to_test(there: Iterable[str], names: Sequence[str]) -> str:
    """What to do where no test set has one of its `names`: to rename what may be meant; "" where nothing is."""
    meant = [name for name in there if name.lower() in (*names, *NOT_TEST_NAMES)]
    return f"rename {meant[0]} to {names[0]}, if these are the test images" if meant else ""


def first_labelled(names: Sequence[str], why_not: Callable[[str], str]) -> tuple[str, str]:
    """Choose the test set.

    Args:
        names: the candidates, best first.
        why_not: says of one why it has no labels; "" where it has.

    Returns:
        The first that has labels, or the first of all where none has; and a line where others were passed over.
    """
    passed: list[str] = []
    for name in names:
        if not (reason := why_not(name)):
            return name, f"{', '.join(passed)}; {name} is the test split" if passed else ""
        passed.append(f"{name} has no labels ({reason})")
    return names[0], ""
