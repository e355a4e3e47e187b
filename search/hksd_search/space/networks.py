"""Networks of one's own in a space, looked at before anything is trained: every choice, ranges at both ends."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hksd import fit
from hksd.config.networks import StudentConfig
from hksd.config.run import RunConfig, dump
from hksd.data import DataSet
from hksd.deploy.rehearsal import rehearse
from hksd.errors import UserError
from hksd.models import user
from hksd.teacher import prepare as teachers
from hksd_search.space.ranges import Range
from hksd_search.space.sizes import Meter, within
from hksd_search.space.space import Space

log = logging.getLogger(__name__)

SIZES = ("width", "descriptor_dim")  # keys whose values between two that work do too


def look_at_networks(space: Space, data: DataSet, meter: Meter, largest: StudentConfig, *, begun: bool = False) -> None:
    """Let the networks of one's own do what their training and the end of the search will ask of them.

    Args:
        space: the space.
        data: its images.
        meter: measures its students; those beyond the limits are never trained.
        largest: the largest student within the limits, which the arms take.
        begun: the search goes on: what was trained shall not be lost for a program that cannot be made of it.

    Raises:
        UserError: one of them cannot do it; says which, where and why.
    """
    said = set[str]()
    teachers.look(space.middle({}), data)
    for config in _corners(space, meter, largest):
        fit.look(config, data)
        try:
            rehearse(config.student.spec(), **data.image_shape, onnx=meter.latencies is not None)
        except UserError as error:
            if not begun:
                raise
            if (text := str(error)) not in said:
                log.warning("%s", text)
            said.add(text)


def _corners(space: Space, meter: Meter, largest: StudentConfig) -> Iterator[RunConfig]:
    """Runs with every student of one's own within the limits, and the smallest batches; the largest student's first."""
    batch, seen = space.ranges.get(("train", "batch_size")), set[StudentConfig]()
    for section in (dump(largest), *_sections(space)):
        config = space.middle({"student": section})
        if batch is not None:
            config = replace(config, train=replace(config.train, batch_size=int(min(batch.values))))
        student = config.student
        if student in seen or not user.is_user(student.model):
            continue
        seen.add(student)
        if not within(space.search.limits, meter.sizes(student)):
            yield config


def _sections(space: Space) -> Iterator[dict[str, Any]]:
    """The `student` sections with every choice, of sizes the smallest and the largest alone."""
    node = space.tree["student"]
    keys = [key for key in node if ("student", key) in space.ranges]
    options = [_ends(space.ranges[("student", key)], key) for key in keys]
    for values in itertools.product(*options):
        yield {**node, **dict(zip(keys, values, strict=True))}


def _ends(spread: Range, key: str) -> list[Any]:
    if spread.kind != "choice":
        return [spread.at(0.0), spread.at(1.0)]
    numbers = [value for value in spread.values if isinstance(value, int | float)]
    if key not in SIZES or not numbers:
        return list(spread.values)
    return [*{min(numbers): None, max(numbers): None}, *(value for value in spread.values if value not in numbers)]
