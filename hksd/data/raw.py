"""A set whose labels are read and whose pixels are not yet, and the one way from pictures to arrays.

Labels decide which rows a run needs; only those are decoded. Every source hands over PIL pictures with a name for
messages, so size, channels and damage are judged in one place.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hksd.data.splits import Rows
from hksd.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    from hksd.data.files import Files

Pictures = Iterator[tuple[str, "Image"]]
GRAY_MODES = frozenset({"1", "L"})
# Named, because PIL otherwise asks one decoder after the other: slower, and more code that a hostile file can reach.
FORMATS = ("WEBP", "PNG", "JPEG", "BMP", "TIFF", "GIF", "PPM", "DIB")
# A set without a test part of its own is tested on what it calls validation; our validation is drawn from its train.
TEST_NAMES = ("test", "val", "valid", "validation")


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
    if image_size is None and first.width != first.height:
        raise DataError(
            f"{name}: {first.width} x {first.height} pixels, but images must be square; "
            f"set data.image_size to resize them, for example data.image_size: {max(first.size)}"
        )
    gray = all(picture.mode in GRAY_MODES for _, picture in raw.pictures(rows))
    return Form(image_size or first.width, 1 if gray else 3, image_size is not None, name)


def decode(raw: RawSet, rows: Rows, form: Form) -> NDArray[np.uint8]:
    """Decode the pictures `rows` (M,) to (M, size, size, channels).

    Raises:
        DataError: a picture is damaged, has more than 8 bits per channel, or another size than `form` says.
    """
    images = np.empty((len(rows), form.size, form.size, form.channels), np.uint8)
    for position, (name, picture) in enumerate(raw.pictures(rows)):
        images[position] = whole(name, picture, form)
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
        DataError: it is no picture of the `FORMATS`.
    """
    from PIL import Image

    with _damage_named(name):
        return Image.open(io.BytesIO(data), formats=FORMATS)


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
    if picture.size != wanted and not form.resize:
        raise DataError(
            f"{name}: {picture.width} x {picture.height} pixels, but {form.reference} has {form.size} x "
            f"{form.size}; set data.image_size to resize all, for example data.image_size: {form.size}"
        )
    picture = converted(name, picture, form.channels)
    if picture.size != wanted:
        picture = picture.resize(wanted, Resampling.BILINEAR)
    return as_array(picture, form)


def converted(name: str, picture: Image, channels: int) -> Image:
    """Decode a picture to gray (1 channel) or RGB (3).

    Raises:
        DataError: it is damaged, or has more than 8 bits per channel.
    """
    if picture.mode.startswith(("I", "F")):
        # PIL would clip such pixels to 255 without a word.
        raise DataError(f"{name}: pixels of more than 8 bits (mode {picture.mode}); convert the image to 8 bits")
    with _damage_named(name):
        return picture.convert("L" if channels == 1 else "RGB")


def as_array(picture: Image, form: Form) -> NDArray[np.uint8]:
    """Pixels of a decoded picture of the right size: (size, size, channels)."""
    return np.asarray(picture).reshape(form.size, form.size, form.channels)


def some(names: Sequence[str]) -> str:
    """Names for a message, the first ten of many."""
    return ", ".join(names[:10]) + (f", ... {len(names)} in all" if len(names) > 10 else "")


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


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """Name the picture when PIL fails; its decoders raise all of these on damaged data."""
    from PIL import UnidentifiedImageError
    from PIL.Image import DecompressionBombError

    try:
        yield
    except UnidentifiedImageError as error:
        # PIL's own message names a buffer in memory here.
        raise DataError(f"{name}: this is no {', '.join(FORMATS)} image; replace or remove it") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, DecompressionBombError) as error:
        raise DataError(f"{name}: the image is damaged ({error}); replace or remove it") from error
