"""Where teachers and their estimators are kept by content: names, hashes, reading, writing."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from hksd.attention import AttentionSpec
from hksd.cache import made_once, sha256_of
from hksd.class_names import read_names
from hksd.config.networks import TeacherConfig
from hksd.config.run import RunConfig, canonical, content_hash
from hksd.data import DataSet
from hksd.errors import UserError
from hksd.files import expanded, write_atomically
from hksd.models import checkpoints, user, weights, zoo
from hksd.terms.squeeze import SqueezeConfig

FORMAT = 1  # of the cached files; part of their key

log = logging.getLogger(__name__)


def spec_of(config: RunConfig) -> AttentionSpec | None:
    """Structure of the estimators that a run asks for; None where no term reads squeezed vectors."""
    squeeze = config.terms.active().get("squeeze")
    return squeeze.attention() if isinstance(squeeze, SqueezeConfig) else None


def key_of(config: RunConfig, settings: TeacherConfig, data: DataSet) -> str:
    """Hash of what makes the network of a teacher."""
    spec = spec_of(config)
    joint = spec is not None and settings.attention.mode == "joint"
    return content_hash(
        {
            "format": FORMAT,
            "teacher": canonical(settings) | {"attention": None},
            "data": data.fingerprint,
            "views": config.data.views(),
            "weights": weights_id(settings),
            **({"classes": names} if (names := class_names(settings)) else {}),
            **({"joint": dataclasses.asdict(spec)} if spec is not None and joint else {}),
            **({"code": user.source_hash(settings.model)} if user.is_user(settings.model) else {}),
        }
    )


def attention_name(spec: AttentionSpec, settings: TeacherConfig) -> str:
    """Stem of the files of the estimators, in the folder of their teacher."""
    return "attention-" + content_hash([dataclasses.asdict(spec), canonical(settings.attention)])


def class_names(settings: TeacherConfig) -> tuple[str, ...]:
    """Names of a loaded teacher's classes in the order of its outputs, as `teacher.classes` gives them; () for none.

    Raises:
        UserError: its file cannot be read.
    """
    given, key = settings.classes, f"{settings.place}.classes"
    return read_names(expanded(given, key), key) if isinstance(given, str) else given or ()


def weights_id(settings: TeacherConfig) -> str | None:
    """What tells the weights of a loaded teacher from others; None for one that is trained here."""
    return zoo.published(settings.model) if settings.pretrained else _file_hash(settings.checkpoint)


def _file_hash(path: str | None) -> str | None:
    if path is None:
        return None
    file = expanded(path, "teacher.checkpoint")
    try:
        checkpoints.check_is_file(file)
        return sha256_of(file)
    except UserError as error:
        raise UserError(f"teacher.checkpoint: {error}") from error
    except OSError as error:
        raise UserError(f"teacher.checkpoint: {path}: {error.strerror}") from error


M = TypeVar("M", bound=nn.Module)


def remembered(
    folder: Path | None,
    name: str,
    empty: Callable[[], M],
    make: Callable[[], tuple[M, dict[str, Any]]],
    known: frozenset[str] = frozenset(),
) -> tuple[M, dict[str, Any], bool]:
    """Read a module and its facts from the cache, or make and store them; one process makes, others wait.

    Facts without what must be `known` are those of an earlier version, which did not look; the module is made again.
    """
    if folder is None:
        module, facts = make()
        return module, facts, False

    def make_and_keep() -> tuple[M, dict[str, Any]]:
        module, facts = make()
        weights.save(folder / f"{name}.safetensors", module, {"facts": json.dumps(facts)})
        digest = sha256_of(folder / f"{name}.safetensors")
        write_atomically(folder / f"{name}.json", json.dumps(facts | {"sha256": digest}, indent=1).encode())
        shutil.rmtree(folder / "training", ignore_errors=True)
        return module, facts

    try:
        found, recalled = made_once(folder / f"{name}.lock", lambda: _recall(folder, name, empty, known), make_and_keep)
        return (*found, recalled)
    except OSError as error:
        raise UserError(f"{folder}: the teacher cache cannot be written: {error.strerror or error}") from error


def _recall(folder: Path, name: str, empty: Callable[[], M], known: frozenset[str]) -> tuple[M, dict[str, Any]] | None:
    facts_file, weights_file = folder / f"{name}.json", folder / f"{name}.safetensors"
    if not facts_file.exists():
        return None
    try:
        # The facts beside the weights are for people; what counts is inside the file that the checksum covers.
        if sha256_of(weights_file) != json.loads(facts_file.read_text())["sha256"]:
            raise UserError(f"{weights_file}: damaged")
        module = empty()
        facts: dict[str, Any] = json.loads(weights.load_into(module, weights_file)["facts"])
    except (UserError, ValueError, KeyError, TypeError, OSError) as error:
        log.warning("%s: cached teacher is damaged (%s) and is made again", weights_file, error)
        return None
    return (module, facts) if known <= facts.keys() else None
