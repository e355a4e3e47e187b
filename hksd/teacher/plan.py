"""What a run needs of its teacher, and whether knowledge of views is enough for it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from hksd.config.run import RunConfig, content_hash
from hksd.data import DataSet, StreamSplit
from hksd.device.precision import Precision
from hksd.errors import UserError
from hksd.models import user
from hksd.models.size import grids_of
from hksd.models.taps import Grids
from hksd.teacher.knowledge import EMBEDDING, LOGITS, SQUEEZED, VIEW_BATCH, Live, Stored, Take, values_per_image
from hksd.teacher.teacher import Teacher
from hksd.teacher.views import FORMAT, ViewStore

LARGEST_VIEW = 2 << 30  # bytes; `auto` computes no larger view ahead
FEW_IMAGES = 50_000  # so many never make such a view of logits, embeddings and squeezed vectors
MAPS = frozenset({"stages", "blocks"})
FOLDER = "views"


def live_because(config: RunConfig, *, in_channels: int, classes: int, image_size: int) -> list[str]:
    """Why a run needs its teacher at work in every step, in words; empty where knowledge of views is enough."""
    found = [
        f"terms.{name} reads whole maps of the teacher"
        for name, term in config.terms.active().items()
        if MAPS & term.teacher_needs
        and term.digest(*_grids(config, in_channels=in_channels, classes=classes, image_size=image_size)) is None
    ]
    if config.data_free:
        found.append("data_free trains on generated images")
    if config.robust and config.robust.teacher_view == "attacked":
        found.append("robust.teacher_view attacked shows it images made anew in every step")
    return found


def _grids(config: RunConfig, **image: int) -> tuple[Grids, Grids]:
    assert config.teacher is not None
    return grids_of(config.student.spec(), **image), grids_of(config.teacher.spec(), **image)


def knowledge_of(
    config: RunConfig,
    data: DataSet,
    teacher: Teacher,
    precision: Precision,
    *,
    folder: Path | None = None,
    shared: RunConfig | None = None,
) -> Live:
    """Where a run has its teacher's knowledge from, as `train.knowledge` says.

    Args:
        config: the run.
        data: its images.
        teacher: its teacher.
        precision: in which the teacher computes.
        folder: folder of this teacher; views lie below it. None keeps none.
        shared: a run that stands for others which share the views: they are kept, with what its terms need as well.

    Raises:
        UserError: views are asked for and cannot be enough.
    """
    image = data.image_shape
    wanted, needs = config.train.knowledge, config.terms.teacher_needs
    why = live_because(config, **image)
    if wanted == "cached" and why:
        raise UserError(f"train.knowledge=cached, but {'; '.join(why)}; set train.knowledge to live or auto")
    fields = {} if why else _fields(config, teacher, image)
    extra = _fields(shared, teacher, image) if shared and not live_because(shared, **image) else {}
    store = ViewStore(folder / FOLDER / _address(config, data, teacher, precision), len(data.train)) if folder else None
    stored = Stored(
        teacher,
        needs,
        precision,
        fields=fields,
        extra={name: take for name, take in extra.items() if name not in fields},
        count=config.views(),
        store=store,
        keep=shared is not None or wanted == "cached",
    )
    if wanted == "live":
        why = ["train.knowledge is live"]
    elif wanted == "auto" and not why:
        why = _too_much(stored, data)
    return Live(teacher, needs, precision, why) if why else stored


def _too_much(stored: Stored, data: DataSet) -> list[str]:
    """Why `auto` would rather have the teacher at work."""
    if isinstance(data.train, StreamSplit):
        return ["images are streamed, and would be decoded twice"]
    small = (LOGITS, EMBEDDING, SQUEEZED)
    if len(data.train) <= FEW_IMAGES and all(name.split()[0] in small for name in stored.fields):
        return []
    device = next(stored.model.parameters()).device
    images = torch.zeros(2, data.channels, data.image_size, data.image_size, device=device)
    size = 2 * len(data.train) * values_per_image(stored.ask(images, stored.fields))
    if size > LARGEST_VIEW:
        return [f"a view would take {size / 1e9:.1f} GB (train.knowledge: cached computes it all the same)"]
    return []


def _fields(config: RunConfig, teacher: Teacher, image: Mapping[str, int]) -> dict[str, Take]:
    """What the terms of a run read, by the name under which it is stored."""
    fields: dict[str, Take] = {}
    for term in config.terms.active().values():
        for need in sorted(term.teacher_needs - MAPS):
            if need == LOGITS:
                fields[LOGITS] = lambda out: [out.logits]
            elif need == EMBEDDING:
                fields[EMBEDDING] = lambda out: [out.embedding]
            elif teacher.attention is not None:
                name = f"{SQUEEZED} {_weights(teacher.attention)}"
                fields[name] = lambda out: [vector for level in out.squeezed for vector in level]
        if MAPS & term.teacher_needs:
            digest = term.digest(*_grids(config, **image))
            assert digest is not None, "live_because knows the others"
            fields[digest.name] = digest.make
    return fields


def _address(config: RunConfig, data: DataSet, teacher: Teacher, precision: Precision) -> str:
    """Hash of everything that makes the numbers of a view."""
    assert config.teacher is not None
    model = config.teacher.model
    return content_hash(
        {
            "format": FORMAT,
            "weights": _weights(teacher.model),
            # What weights say depends on the code.
            **({"code": user.source_hash(model)} if user.is_user(model) else {}),
            "data": data.fingerprint,
            "views": config.data.views(),
            "precision": str(precision.dtype),
            "batch": VIEW_BATCH,
        }
    )


def _weights(module: torch.nn.Module) -> str:
    """Hash of the weights of a network (16 hexadecimal digits)."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
