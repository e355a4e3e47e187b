"""Atomic checkpoints with a checksum, two deep.

A file is a line of magic, a line with the SHA-256 of the rest, and what `torch.save` wrote. The checksum is ours
because torch reads a file with flipped bits without a word. Training state only: what people exchange is safetensors.
"""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from hksd.errors import RunError
from hksd.files import replaced, write_atomically

MAGIC = b"hksd checkpoint 1\n"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
KEPT = "epoch-{}.ckpt"
log = logging.getLogger(__name__)


class CorruptCheckpointError(ValueError):
    """A checkpoint file that is truncated, damaged or of another kind."""


def save(folder: Path, state: dict[str, Any]) -> None:
    """Save `state` as the last checkpoint of `folder`, keeping the one before.

    Raises:
        RunError: it cannot be written (read-only folder, full disk); the earlier checkpoints are untouched.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    last = folder / LAST
    try:
        with replaced(last, previous=folder / PREVIOUS) as file:
            file.writelines((MAGIC, hashlib.sha256(payload).hexdigest().encode(), b"\n", payload))
    except OSError as error:
        raise RunError(f"{last}: the checkpoint cannot be written: {error.strerror}") from error


def kept(folder: Path, epoch: int) -> Path:
    """Where `keep` puts the checkpoint after `epoch` finished epochs."""
    return folder / KEPT.format(epoch)


def keep(folder: Path, epoch: int) -> None:
    """Keep the last checkpoint of `folder` as that of `epoch`, whatever is saved later.

    Raises:
        RunError: it cannot be written.
    """
    path = kept(folder, epoch)
    try:
        write_atomically(path, (folder / LAST).read_bytes())
    except OSError as error:
        raise RunError(f"{path}: the checkpoint cannot be written: {error.strerror}") from error


def fork(folder: Path, parent: Path, epoch: int) -> bool:
    """Begin `folder` with the checkpoint that `parent` kept of `epoch`, unless it has one of its own.

    Returns:
        Whether there is a checkpoint to go on from; else the kept one is missing or damaged, which is a warning.

    Raises:
        RunError: it cannot be written.
    """
    if (folder / LAST).exists() or (folder / PREVIOUS).exists():
        return True
    path = kept(parent, epoch)
    try:
        read(path)
        content = path.read_bytes()
    except (OSError, CorruptCheckpointError) as error:
        log.warning("%s: no checkpoint to go on from (%s); training from scratch", path, error)
        return False
    try:
        write_atomically(folder / LAST, content)
    except OSError as error:
        raise RunError(f"{folder / LAST}: the checkpoint cannot be written: {error.strerror}") from error
    return True


def forget(folder: Path) -> None:
    """Remove what a run in `folder` would go on from: for one that has ended. What was kept stays (see `keep`)."""
    for name in (LAST, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """Read one checkpoint file.

    Raises:
        CorruptCheckpointError: the file is not a whole checkpoint.
    """
    content = path.read_bytes()
    head = len(MAGIC)
    digest, payload = content[head : head + 64], content[head + 65 :]
    if not content.startswith(MAGIC) or hashlib.sha256(payload).hexdigest().encode() != digest:
        raise CorruptCheckpointError(f"{path}: not a whole checkpoint")
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state


def load_newest(folder: Path) -> dict[str, Any] | None:
    """Read the newest whole checkpoint of `folder`; damaged files are moved aside with a warning.

    Returns:
        The state, or None when there is none to resume from.
    """
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            return read(path)
        except CorruptCheckpointError:
            aside = next(p for i in range(1, 1000) if not (p := path.with_name(f"{name}.corrupt-{i}")).exists())
            path.replace(aside)
            log.warning("%s: damaged checkpoint moved to %s; trying the one before", path, aside.name)
    return None
