"""The teacher stage: train or load the teacher, train its attention estimators, freeze both.

The estimators learn with the task loss (a linear head per level) on the frozen teacher; that is the "task-driven"
part. When and how the papers train them is unknown: RECONSTRUCTED. All levels are trained in one go, so a search over
the depth needs one teacher stage. Everything is cached by content: configuration, data, and for a loaded teacher the
bytes of its file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock
from torch import Tensor, nn

from hksd import estimators, loop, memory, models, precision, weights
from hksd.attention import AttentionSpec, HierarchicalAttention
from hksd.checkpoint import write_atomically
from hksd.config import (
    RunConfig,
    TeacherConfig,
    Terms,
    canonical,
    content_hash,
)
from hksd.data import DataSet
from hksd.data.augment import Batches, batches_of
from hksd.data.settings import DataConfig
from hksd.errors import RunError, UserError
from hksd.evaluate import accuracy, predict
from hksd.models import user, zoo
from hksd.models.taps import Out, TappedNet
from hksd.terms.ce import CrossEntropyConfig
from hksd.terms.squeeze import SqueezeConfig
from hksd.training import TrainConfig

FORMAT = 1  # of the cached files; part of their key
log = logging.getLogger(__name__)
Progress = Callable[[str, int, int, float], None]  # (what, epoch, epochs, validation accuracy)


@dataclass(frozen=True)
class Teacher:
    """A frozen teacher with its frozen estimators.

    Attributes:
        model: the network, in eval mode, without gradients.
        attention: its estimators, or None when no term needs squeezed vectors.
        accuracy: its accuracy on the validation split.
        attention_accuracy: accuracy of the linear head on each level's vectors, on the validation split.
        key: hash of what made it.
        cached: it was read from the cache, not trained.
    """

    model: TappedNet
    attention: HierarchicalAttention | None
    accuracy: float
    attention_accuracy: tuple[float, ...]
    key: str
    cached: bool

    @torch.no_grad()
    def __call__(self, images: Tensor, needs: frozenset[str]) -> Out:
        """What the teacher says about images (N, channels, H, W): its taps, and squeezed vectors if in `needs`."""
        out = self.model.taps(images).widened()
        if "squeezed" in needs:
            assert self.attention is not None
            out = dataclasses.replace(out, squeezed=self.attention(out))
        if "blocks" not in needs:
            out = dataclasses.replace(out, blocks=())  # many and large: let them go
        return out

    def to(self, device: torch.device) -> Teacher:
        """Move the networks to `device`."""
        self.model.to(device)
        if self.attention is not None:
            self.attention.to(device)
        return self


def prepare(
    config: RunConfig, data: DataSet, *, cache_dir: Path | None = None, on_progress: Progress | None = None
) -> Teacher:
    """Make the teacher that `config` asks for, or take it from the cache.

    Args:
        config: a run with a teacher section.
        data: its images.
        cache_dir: folder that keeps teachers by content; None keeps nothing.
        on_progress: called after every epoch of training.

    Raises:
        UserError: no teacher section; a checkpoint that cannot be read or does not fit.
        RunError: the teacher is less accurate than `teacher.min_accuracy`.
    """
    settings = config.teacher
    if settings is None:
        raise UserError("teacher: this run has no teacher section")
    report = on_progress or (lambda *_: None)
    device = loop.resolve_device(config.train.device)
    numbers = precision.resolve(settings.precision, device)
    run = _training(config, settings)
    spec = _spec(config)
    joint = spec is not None and settings.attention.mode == "joint"
    key = _key(config, settings, data)
    folder = cache_dir / key if cache_dir else None
    trained_with: list[tuple[HierarchicalAttention, dict[str, Any]]] = []  # estimators, where both learn together

    def make_jointly() -> TappedNet:
        assert spec is not None
        with loop.isolated(settings.seed, settings.threads, device):
            network = _network(settings, data).to(device)
            views = _batches(data, config.data, device)
            shape = {"in_channels": data.channels, "image_size": data.image_size}
            suited = precision.suited(numbers, settings.precision, network, **shape)
            trained_with.append(estimators.train(network, spec, settings, *views, len(data.classes), report, suited))
        return network

    def make_network() -> tuple[TappedNet, dict[str, Any]]:
        if joint:
            network = make_jointly()
            return network, {"accuracy": _validate(network, data, config.data, device)}
        if settings.checkpoint is None and not settings.pretrained:
            trained = loop.run(
                run,
                data,
                None,
                out_dir=folder / "training" if folder else None,  # an interrupted training goes on from its last epoch
                on_epoch=lambda r: report("teacher", r.epoch, r.epochs, r.val_accuracy),
            )
            return trained.student, {"accuracy": trained.val_accuracy}
        network = _network(settings, data)
        if settings.checkpoint is not None:
            weights.load_into(network, Path(settings.checkpoint))
        else:
            network.bare.load_state_dict(_published(settings, data))
        return network, {"accuracy": _validate(network.to(device), data, config.data, device)}

    network, facts, cached = _remembered(folder, "teacher", lambda: _network(settings, data), make_network)
    network.to(device).eval().requires_grad_(False)
    memory.lay_out(network, torch.channels_last)
    if facts["accuracy"] < settings.min_accuracy:
        raise RunError(
            f"the teacher {settings.model} reaches {facts['accuracy']:.2%} on the validation split, "
            f"below teacher.min_accuracy {settings.min_accuracy:.2%}: "
            "train it longer, take another, or lower the demand"
        )
    attention, levels = None, ()
    if spec is not None:
        name = _attention_name(spec, settings)

        def make_attention() -> tuple[HierarchicalAttention, dict[str, Any]]:
            if joint:
                if not trained_with:  # the network was kept, its estimators were not: one training repeats both
                    make_jointly()
                return trained_with[0]
            with loop.isolated(settings.seed, settings.threads, device):
                views = _batches(data, config.data, device)
                return estimators.train(network, spec, settings, *views, len(data.classes), report, numbers)

        attention, found, kept = _remembered(
            folder, name, lambda: HierarchicalAttention(network.shapes, network.shapes.stages, spec), make_attention
        )
        attention.to(device).eval().requires_grad_(False)
        levels, cached = tuple(found["accuracy"]), cached and kept
    return Teacher(network, attention, facts["accuracy"], levels, key, cached)


def missing(config: RunConfig, data: DataSet, cache_dir: Path) -> dict[Path, str]:
    """What `prepare` would have to train, as it is not in the cache: files, with ``teacher`` or ``attention``.

    Args:
        config: a run with a teacher section.
        data: its images.
        cache_dir: folder that keeps teachers by content.
    """
    settings, spec = config.teacher, _spec(config)
    assert settings is not None
    folder = cache_dir / _key(config, settings, data)
    parts = {folder / "teacher.json": "teacher"}
    if spec is not None:
        parts[folder / f"{_attention_name(spec, settings)}.json"] = "attention"
    return {file: part for file, part in parts.items() if not file.exists()}


def _spec(config: RunConfig) -> AttentionSpec | None:
    """Structure of the estimators that a run asks for; None where no term reads squeezed vectors."""
    squeeze = config.terms.active().get("squeeze")
    return squeeze.attention() if isinstance(squeeze, SqueezeConfig) else None


def _key(config: RunConfig, settings: TeacherConfig, data: DataSet) -> str:
    """Hash of what makes the network of a teacher."""
    spec = _spec(config)
    joint = spec is not None and settings.attention.mode == "joint"
    return content_hash(
        {
            "format": FORMAT,
            "teacher": canonical(settings) | {"attention": None},
            "data": data.fingerprint,
            "views": config.data.views(),
            "weights": _weights(settings),
            **({"joint": dataclasses.asdict(spec)} if spec is not None and joint else {}),
            **({"code": user.source_hash(settings.model)} if user.is_user(settings.model) else {}),
        }
    )


def _attention_name(spec: AttentionSpec, settings: TeacherConfig) -> str:
    """Stem of the files of the estimators, in the folder of their teacher."""
    return "attention-" + content_hash([dataclasses.asdict(spec), canonical(settings.attention)])


def _training(config: RunConfig, settings: TeacherConfig) -> RunConfig:
    """The run that trains a teacher: the same loop, cross-entropy alone."""
    return RunConfig(
        data=replace(config.data, limit=None, image_size=None, validation=0.1),  # the images are given; views count
        student=settings.as_student(),
        terms=Terms({"ce": CrossEntropyConfig()}),
        train=TrainConfig(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            device=config.train.device,
            threads=settings.threads,
            precision=settings.precision,
        ),
        seed=settings.seed,
    )


def _network(settings: TeacherConfig, data: DataSet) -> TappedNet:
    return models.make(settings.spec(), **loop.image_shape(data))


def _weights(settings: TeacherConfig) -> str | None:
    """What tells the weights of a loaded teacher from others; None for one that is trained here."""
    return zoo.published(settings.model) if settings.pretrained else _file_hash(settings.checkpoint)


def _published(settings: TeacherConfig, data: DataSet) -> dict[str, Tensor]:
    shape = loop.image_shape(data)
    try:
        return zoo.pretrained_state(settings.model, in_channels=shape["in_channels"], classes=shape["classes"])
    except models.NetworkError as error:
        raise UserError(f"{settings.place}.{error}") from error


def _file_hash(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"teacher.checkpoint: {path}: {error.strerror}") from error


def _batches(data: DataSet, config: DataConfig, device: torch.device) -> tuple[Batches, Batches]:
    train = batches_of(data.train, data, config, device, augment=True)
    return train, batches_of(data.validation, data, config, device, augment=False)


def _validate(network: TappedNet, data: DataSet, config: DataConfig, device: torch.device) -> float:
    logits, labels = predict(network, _batches(data, config, device)[1].plain(loop.EVALUATION_BATCH))
    return accuracy(logits, labels)


M = TypeVar("M", bound=nn.Module)


def _remembered(
    folder: Path | None, name: str, empty: Callable[[], M], make: Callable[[], tuple[M, dict[str, Any]]]
) -> tuple[M, dict[str, Any], bool]:
    """Read a module and its facts from the cache, or make and store them; one process makes, others wait."""
    if folder is None:
        module, facts = make()
        return module, facts, False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            found = _recall(folder, name, empty)
            if found is not None:
                return (*found, True)
            module, facts = make()
            weights.save(folder / f"{name}.safetensors", module, {"facts": json.dumps(facts)})
            digest = hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()
            write_atomically(folder / f"{name}.json", json.dumps(facts | {"sha256": digest}, indent=1).encode())
            shutil.rmtree(folder / "training", ignore_errors=True)
            return module, facts, False
    except OSError as error:
        raise UserError(f"{folder}: the teacher cache cannot be written: {error.strerror or error}") from error


def _recall(folder: Path, name: str, empty: Callable[[], M]) -> tuple[M, dict[str, Any]] | None:
    facts_file, weights_file = folder / f"{name}.json", folder / f"{name}.safetensors"
    if not facts_file.exists():
        return None
    try:
        # The facts beside the weights are for people; what counts is inside the file that the checksum covers.
        if hashlib.sha256(weights_file.read_bytes()).hexdigest() != json.loads(facts_file.read_text())["sha256"]:
            raise UserError(f"{weights_file}: damaged")
        module = empty()
        facts: dict[str, Any] = json.loads(weights.load_into(module, weights_file)["facts"])
    except (UserError, ValueError, KeyError, TypeError, OSError) as error:
        log.warning("%s: cached teacher is damaged (%s) and is made again", weights_file, error)
        return None
    return module, facts
