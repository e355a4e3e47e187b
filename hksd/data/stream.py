"""Images that stay in their files: which files a split has, and a thread pool that decodes them in order.

PIL gives up the interpreter lock while it reads, decodes and resizes, so threads are enough. What a pixel is depends
on the image and its view alone, never on the number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from threading import Condition, Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hksd.data.files import Files
from hksd.data.picture import PIXELS
from hksd.data.raw import Form, open_file
from hksd.data.splits import Rows

if TYPE_CHECKING:
    from PIL.Image import Image

PREFETCH = 3  # batches in preparation or ready, besides the one that was handed out
CHUNK = 8  # images of one task; a task of one image would spend more on its queue than on a small image

# (name for messages, opened picture, row of the split) -> pixels (size, size, channels)
Cut = Callable[[str, "Image", int], NDArray[np.uint8]]


@dataclass(frozen=True)
class StreamSplit:
    """Part of a data set whose images are decoded when they are needed. Pickles small: names and labels, no pixels.

    Attributes:
        files: file of each image.
        labels: (N,), int64, 0 to C-1.
        index: (N,), int64, position of each image in the source's own training (or test) set.
        form: size and channels of the decoded images.
        centre: evaluated on the centre of the resized image (see `hksd.data.crops`); else on the whole image.
    """

    files: Files
    labels: NDArray[np.int64]
    index: NDArray[np.int64]
    form: Form
    centre: bool

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels, as a network gets them."""
        return self.form.size

    @property
    def channels(self) -> int:
        """1 (gray) or 3 (RGB)."""
        return self.form.channels


class Room:
    """Room for the pixels of the pictures that the threads of a process have open; who comes first goes first.

    Args:
        pixels: most of them at a time; a picture of more (a JPEG, decoded at a part of its size) has it alone.
    """

    def __init__(self, pixels: int):
        self.pixels = pixels
        self._taken = 0
        self._turn, self._freed = Lock(), Condition()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Wait for room for a picture of so many pixels, and take it."""
        pixels = min(pixels, self.pixels)
        # Whoever waits keeps the turn, so that small pictures do not overtake a large one for ever.
        with self._turn, self._freed:
            self._freed.wait_for(lambda: self._taken + pixels <= self.pixels)
            self._taken += pixels
        try:
            yield
        finally:
            with self._freed:
                self._taken -= pixels
                self._freed.notify_all()


ROOM = Room(PIXELS)  # as much as one picture may take: threads then need no more memory than images read in turn


def frames(
    split: StreamSplit, pieces: Iterable[Rows], cut: Cut, threads: int
) -> Generator[NDArray[np.uint8], None, None]:
    """Decode batches of images with `threads` threads, at most `PREFETCH` batches ahead.

    The threads end with the iterator: after its last batch, after an error, and when it is closed or dropped.

    Args:
        split: where the images are.
        pieces: rows of each batch, (B,).
        cut: what to take of each opened picture.
        threads: at least 1.

    Yields:
        (B, size, size, channels), uint8, one per piece, in the order of the pieces.

    Raises:
        DataError: a file has vanished or is damaged; raised in place of the batch that wanted it.
    """
    shape = (split.form.size, split.form.size, split.form.channels)
    waiting: deque[tuple[NDArray[np.uint8], list[Future[None]]]] = deque()
    left = iter(pieces)
    pool = ThreadPoolExecutor(threads, "hksd-images")

    def fill(images: NDArray[np.uint8], rows: list[int]) -> None:
        for position, row in enumerate(rows):
            images[position] = one(row)

    def one(row: int) -> NDArray[np.uint8]:
        file = split.files.path(row)
        picture = open_file(file)
        with ROOM.of(picture.width * picture.height):
            return cut(file, picture, row)

    try:
        while True:
            for rows in islice(left, PREFETCH - len(waiting)):
                images = np.empty((len(rows), *shape), np.uint8)
                starts = range(0, len(rows), CHUNK)
                tasks = [pool.submit(fill, images[at : at + CHUNK], rows[at : at + CHUNK].tolist()) for at in starts]
                waiting.append((images, tasks))
            if not waiting:
                return
            images, tasks = waiting.popleft()
            for task in tasks:
                task.result()
            yield images
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
