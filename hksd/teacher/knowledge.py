"""Where the loop has its teacher's knowledge from.

Crop and flip are a pure function of (data seed, view, image), the same for all trials, and epoch e shows view
e mod V. What a teacher says about a view can therefore be computed once, in the order of the images, and be read by
every trial that reaches the epoch. With V = epochs (the default) that equals a teacher at work in every step, up to
the rounding to float16. Kept or not, a view is always computed in the same batches, so that a run on its own repeats
the numbers of a trial.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hksd.attention import LEVELS
from hksd.data.augment import Batch, Batches
from hksd.device.precision import Precision
from hksd.models.taps import Out, TappedNet
from hksd.teacher.teacher import Teacher
from hksd.teacher.views import Field, Unwritable, ViewStore

VIEW_BATCH = 256  # images per pass of the teacher over a view; part of what names a stored view
LARGEST_HALF = 65504.0
POLL = 0.05  # seconds between two looks at a view that another process builds
COST_BATCHES = 3
LOGITS, EMBEDDING = "logits", "embedding"  # names of fields
SQUEEZED = "squeezed"  # first word of the name of the field with squeezed vectors
log = logging.getLogger(__name__)

Take = Callable[[Out], Sequence[Tensor]]  # taps of the teacher -> the tensors of a field, each (N, ...)


class Live:
    """The teacher at work in every step.

    Args:
        teacher: the teacher.
        needs: what the terms read of its taps.
        precision: in which it computes.
        why: the reasons, in words.
    """

    def __init__(self, teacher: Teacher, needs: frozenset[str], precision: Precision, why: Sequence[str] = ()):
        self.teacher, self.needs, self.precision, self.why = teacher, needs, precision, tuple(why)

    @property
    def model(self) -> TappedNet:
        """The network."""
        return self.teacher.model

    def begin(self, epoch: int, batches: Batches) -> None:
        """Get ready for an epoch (from 0) over `batches`."""

    def known(self, batch: Batch) -> Out:
        """What the teacher knows of a batch of the epoch."""
        return self.look(batch.images)

    def look(self, images: Tensor) -> Out:
        """What the teacher says about any images (N, channels, H, W)."""
        with self.precision.autocast():
            return self.teacher(images, self.needs)


class Stored(Live):
    """Knowledge of views, computed as a whole when an epoch begins, and shared where there is a store.

    Args:
        teacher: the teacher.
        needs: what the terms read of its taps.
        precision: in which it computes.
        fields: what the run reads, by name.
        extra: what is stored beside it for other runs.
        count: number V of views.
        store: where views are kept; None keeps them for the length of an epoch.
        keep: write to the store, not only read.
    """

    def __init__(
        self,
        teacher: Teacher,
        needs: frozenset[str],
        precision: Precision,
        *,
        fields: Mapping[str, Take],
        extra: Mapping[str, Take],
        count: int,
        store: ViewStore | None,
        keep: bool,
    ):
        super().__init__(teacher, needs, precision)
        self.fields, self.extra, self.count = fields, extra, count
        self.store, self.keep = store, keep and store is not None
        self.view: dict[str, Field] = {}
        self.at = -1

    def begin(self, epoch: int, batches: Batches) -> None:
        """Have the knowledge of the epoch's view at hand: read, or computed."""
        view = epoch % self.count
        if view == self.at:
            return
        found = self.get(view, batches)
        device = batches.device
        self.view = {name: Field(field.values.to(device), field.shapes) for name, field in found.items()}
        self.at = view

    def known(self, batch: Batch) -> Out:
        """See `Live.known`; what no term reads is empty."""
        assert batch.index is not None, "images of a view come again"
        found = {name: field.rows(batch.index) for name, field in self.view.items()}
        nothing = batch.images.new_empty(len(batch.labels), 0)
        squeezed = next((name for name in found if name.startswith(SQUEEZED)), None)
        return Out(
            logits=found.pop(LOGITS, [nothing])[0],
            embedding=found.pop(EMBEDDING, [nothing])[0],
            squeezed=_levels(found.pop(squeezed)) if squeezed else (),
            digests=found,
        )

    def get(self, view: int, batches: Batches) -> dict[str, Field]:
        """The fields of a view: from the store, or computed, and then kept if this run keeps views.

        While another process builds the view, this one builds the next that is missing.
        """
        while True:
            found = self.store.read(view, list(self.fields)) if self.store else {}
            if len(found) == len(self.fields):
                return found
            if not self.keep:
                missing = {name: take for name, take in self.fields.items() if name not in found}
                return found | self.compute(view, batches, missing)
            try:
                if not self._build(view, batches) and not self._build_ahead(view, batches):
                    time.sleep(POLL)
            except Unwritable as problem:
                assert self.store is not None
                log.warning(
                    "%s: the teacher's knowledge cannot be kept: %s; every run computes it anew (the results are the "
                    "same, the teacher works in each of them); free space, or set train.views to fewer views",
                    self.store.folder,
                    problem,
                )
                self.keep = False

    def _build(self, view: int, batches: Batches) -> bool:
        """Build a view, unless another process is at it; tells whether it is there now."""
        assert self.store is not None
        takes = {**self.fields, **self.extra}
        with self.store.claim(view) as mine:
            if not mine:
                return False
            there = self.store.read(view, list(takes))
            missing = {name: take for name, take in takes.items() if name not in there}
            if missing:
                self.store.write(view, self.compute(view, batches, missing))
                if len(self.store.read(view, list(missing))) < len(missing):
                    raise Unwritable("what was written does not read back")
            return True

    def _build_ahead(self, view: int, batches: Batches) -> bool:
        """Build the first view after `view` that is missing and that nobody builds; tells whether there was one."""
        assert self.store is not None
        for later in range(view + 1, self.count):
            if len(self.store.read(later, list(self.fields))) < len(self.fields) and self._build(later, batches):
                return True
        return False

    def compute(self, view: int, batches: Batches, takes: Mapping[str, Take]) -> dict[str, Field]:
        """Let the teacher look at every image of a view."""
        chunks: dict[str, list[Tensor]] = {name: [] for name in takes}
        shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
        for images in batches.ordered(view, VIEW_BATCH):
            for name, parts in self.ask(images, takes).items():
                shapes[name] = tuple(tuple(part.shape[1:]) for part in parts)
                flat = torch.cat([part.float().flatten(1) for part in parts], 1)
                # A field with a value that half precision cannot hold becomes single precision as a whole.
                chunks[name].append(flat.half() if flat.abs().max() <= LARGEST_HALF else flat)
        return {name: Field(torch.cat(found), shapes[name]) for name, found in chunks.items()}

    def ask(self, images: Tensor, takes: Mapping[str, Take]) -> dict[str, Sequence[Tensor]]:
        """The tensors of every field for images (N, channels, H, W)."""
        squeezed = any(name.startswith(SQUEEZED) for name in takes)
        with torch.no_grad(), self.precision.autocast():
            out = self.teacher(images, frozenset({SQUEEZED} if squeezed else ()))
            return {name: take(out) for name, take in takes.items()}


def _levels(squeezed: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], ...]:
    """Squeezed vectors by level: levels 1 and 2 have one for each stage, level 3 has one."""
    stages = (len(squeezed) - 1) // (LEVELS - 1)
    return tuple(squeezed[:stages]), tuple(squeezed[stages : 2 * stages]), tuple(squeezed[2 * stages :])


@dataclass(frozen=True)
class Cost:
    """What stored knowledge costs.

    Attributes:
        views: number V of views.
        view_bytes: size of one view.
        view_seconds: time of the teacher for one view, on this machine now.
        fits: number of views for which the disk has room now; views that are there already are not counted.
    """

    views: int
    view_bytes: int
    view_seconds: float
    fits: int

    def __str__(self) -> str:
        each, total = self.view_bytes / 1e6, self.views * self.view_bytes / 1e6
        size = f"{total:,.1f} MB" if total < 1000 else f"{total / 1000:,.1f} GB"
        text = f"{self.views} views of {each:,.1f} MB ({size} in all), "
        text += f"about {self.view_seconds:.2g} s of the teacher each"
        if self.fits < self.views:
            text += f"; the disk has room for {self.fits}, the others are computed in every trial (or set train.views)"
        return text


def cost(stored: Stored, batches: Batches) -> Cost:
    """Measure what the views of a run would cost, by the teacher's pass over a few batches."""
    takes, found = {**stored.fields, **stored.extra}, []
    for number, images in enumerate(batches.ordered(0, VIEW_BATCH)):
        start = time.perf_counter()
        values = values_per_image(stored.ask(images, takes))
        found.append((time.perf_counter() - start) / len(images))
        if number + 1 == COST_BATCHES:
            break
    size = max(1, 2 * values * len(batches))
    fits = stored.store.room() // size if stored.store else 0
    return Cost(stored.count, size, min(found) * len(batches), fits)


def values_per_image(fields: Mapping[str, Sequence[Tensor]]) -> int:
    """How many numbers are stored for an image."""
    return sum(part[0].numel() for parts in fields.values() for part in parts)
