"""The teacher stage: train or load the teacher, train its attention estimators, freeze both.

The estimators learn with the task loss (a linear head per level) on the frozen teacher; that is the "task-driven"
part. When and how the papers train them is unknown: RECONSTRUCTED. All levels are trained in one go, so a search over
the depth needs one teacher stage. Everything is cached by content: configuration, data, and for a loaded teacher the
bytes of its file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from hksd import models
from hksd.attention import HierarchicalAttention
from hksd.config.networks import TeacherConfig
from hksd.config.run import RunConfig, Terms
from hksd.config.train import TrainConfig
from hksd.data import IMAGENET_MEAN, IMAGENET_STD, DataSet
from hksd.data.augment import Batches, batches_of
from hksd.device import memory, precision
from hksd.device.device import isolated, resolve_device
from hksd.errors import RunError, UserError
from hksd.files import expanded
from hksd.models import user, weights, zoo
from hksd.models.classes import MOVED, classes_of, order_of, rearrange
from hksd.models.look import look as look_at
from hksd.models.taps import TappedNet
from hksd.run import loop
from hksd.run.evaluate import EVALUATION_BATCH, accuracy, predict
from hksd.teacher import check, estimators
from hksd.teacher.cache import attention_name, class_names, key_of, remembered, spec_of
from hksd.teacher.estimators import Progress
from hksd.teacher.inputs import Inputs, fitted, inputs_of, trained_on
from hksd.teacher.repairs import Some, some_of
from hksd.teacher.teacher import Teacher
from hksd.terms.ce import CrossEntropyConfig

FINGERPRINT = "data_fingerprint"  # in the header of a file of ours: images and split that it was trained on
LOOKED = frozenset({"familiar", "tried"})  # what the facts of a loaded teacher tell since it is checked
log = logging.getLogger(__name__)


def prepare(
    config: RunConfig,
    data: DataSet,
    *,
    cache_dir: Path | None = None,
    on_progress: Progress | None = None,
    refuse: bool = True,
    quiet: bool = False,
) -> Teacher:
    """Make the teacher that `config` asks for, or take it from the cache.

    Args:
        config: a run with a teacher section.
        data: its images.
        cache_dir: folder that keeps teachers by content; None keeps nothing.
        on_progress: called after every epoch of training.
        refuse: a loaded teacher that knows no more than chance is refused; otherwise that is a remark.
        quiet: the caller tells the remarks; otherwise those of a teacher that is not from the cache are warnings.

    Raises:
        UserError: no teacher section; a checkpoint that cannot be read or does not fit; a teacher that gives
            probabilities, or a loaded one that knows no more than chance (see `hksd.teacher.check`).
        RunError: the teacher is less accurate than `teacher.min_accuracy`.
    """
    settings = config.teacher
    if settings is None:
        raise UserError("teacher: this run has no teacher section")
    return _Stage(config, settings, data, cache_dir, on_progress or (lambda *_: None)).teacher(refuse, quiet)


def look(config: RunConfig, data: DataSet) -> None:
    """Look at a teacher of one's own as it will be trained, where it is (see `hksd.models.look`).

    Raises:
        UserError: it cannot be trained, or not be asked.
    """
    if (teacher := config.teacher) is not None:
        train = config.train.device, teacher.precision, teacher.batch_size
        look_at(teacher.spec(), data.image_shape, *train, learns=not teacher.loaded)


Trained = tuple[HierarchicalAttention, dict[str, Any]]  # estimators, and facts such as their accuracy


class _Stage:
    """The teacher stage of one run: the network first, then its estimators where a term reads squeezed vectors.

    Args:
        config: the run.
        settings: its teacher section.
        data: its images.
        cache_dir: folder that keeps teachers by content; None keeps nothing.
        report: called after every epoch of training.
    """

    def __init__(
        self, config: RunConfig, settings: TeacherConfig, data: DataSet, cache_dir: Path | None, report: Progress
    ):
        self.config, self.settings, self.data, self.report = config, settings, data, report
        self.device = resolve_device(config.train.device)
        self.numbers = precision.resolve(settings.precision, self.device)
        self.spec = spec_of(config)
        self.joint = self.spec is not None and settings.attention.mode == "joint"
        self.key = key_of(config, settings, data)
        self.folder = cache_dir / self.key if cache_dir else None

    def teacher(self, refuse: bool, quiet: bool) -> Teacher:
        """Make or load both parts and freeze them; see `prepare`."""
        known = LOOKED if self.settings.loaded else frozenset[str]()
        network, facts, cached = remembered(self.folder, "teacher", self._empty, self._network, known)
        network.to(self.device).eval().requires_grad_(False)
        memory.lay_out(network, network.layout)
        told = facts.get("familiar", False), self._judged(facts, refuse)  # first: it knows the causes
        if facts["accuracy"] < self.settings.min_accuracy:
            cure = "train it longer, take another, or lower the demand"
            if helpful := "; ".join(facts.get("helpful", ())):
                cure = f"of {facts['tried']} images tried, {helpful}"
            raise RunError(
                f"the teacher {self.settings.model} reaches {facts['accuracy']:.2%} on the validation split, "
                f"below teacher.min_accuracy {self.settings.min_accuracy:.2%}: {cure}"
            )
        for remark in told[1] if not cached and not quiet else ():
            log.warning("%s", remark)
        if self.spec is None:
            return Teacher(network, None, facts["accuracy"], (), self.key, cached, *told)
        spec = self.spec
        attention, found, kept = remembered(
            self.folder,
            attention_name(spec, self.settings),
            lambda: HierarchicalAttention(network.shapes, network.shapes.stages, spec),
            lambda: self._jointly[1] if self.joint else self._attention(network),
        )
        attention.to(self.device).eval().requires_grad_(False)
        return Teacher(
            network, attention, facts["accuracy"], tuple(found["accuracy"]), self.key, cached and kept, *told
        )

    def _empty(self) -> TappedNet:
        network = models.make(self.settings.spec(), **self.data.image_shape)
        return fitted(network, inputs_of(self.settings, self.data), self.data)

    def _network(self) -> tuple[TappedNet, dict[str, Any]]:
        """Train the network, or take the weights that the settings name."""
        settings = self.settings
        look(self.config, self.data)
        if self.joint:
            network = self._jointly[0]
        elif not settings.loaded:
            if user.is_user(settings.model):  # one that gives probabilities is refused before it is trained
                with isolated(settings.seed, settings.threads, self.device):
                    self._outputs(self._empty().to(self.device))
            trained = loop.run(
                _training(self.config, settings),
                self.data,
                None,
                out_dir=self.folder / "training" if self.folder else None,  # an interrupted training goes on from there
                on_epoch=lambda r: self.report("teacher", r.epoch, r.epochs, r.val_accuracy),
            )
            outputs = self._outputs(trained.student.to(self.device))
            return trained.student, {"accuracy": trained.val_accuracy, **outputs}
        else:
            return self._loaded()
        outputs = self._outputs(network.to(self.device))
        return network, {"accuracy": self._validate(network), **outputs}

    def _loaded(self) -> tuple[TappedNet, dict[str, Any]]:
        """A network with the weights that the settings name, and what is to be known of it."""
        settings, network, told = self.settings, self._empty(), dict[str, str]()
        if settings.checkpoint is not None:
            path, key = settings.checkpoint, f"{settings.place}.checkpoint"
            file = expanded(path, key)
            try:
                told = weights.load_into(network, file)
            except UserError as error:
                raise UserError(f"{key}: {error}") from error
        else:
            network.bare.load_state_dict(_published(settings, self.data))
        _check_numbers(network, settings)
        network.to(self.device).eval()
        renamed, outputs = self._name_classes(network, told), self._outputs(network)
        known = Inputs(IMAGENET_MEAN, IMAGENET_STD) if settings.pretrained else trained_on(told)
        return network, {
            "accuracy": self._validate(network),
            "familiar": told.get(FINGERPRINT) != self.data.fingerprint,
            "renamed": renamed,
            **outputs,
            **check.look(network, settings, self.data, self._some, known),
        }

    def _name_classes(self, network: TappedNet, told: Mapping[str, str]) -> list[str]:
        """Bring the outputs into the order of the data's classes, where names tell that they are in another."""
        given, place = class_names(self.settings), f"{self.settings.place}.classes"
        names, where = (given, place) if given else (classes_of(told), self.settings.checkpoint or "")
        order = order_of(names, self.data.classes, where)
        if order is None:
            return []
        rearrange(network, order, self._some.images[:8], where)
        return [f"{where}: {MOVED}"]

    def _outputs(self, network: TappedNet) -> dict[str, str]:
        """What the network gives, where that is not known: ours and torchvision's networks give logits."""
        model = self.settings.model
        if not user.is_user(model):
            return {}
        return {"outputs": check.kind_of_outputs(network.eval(), model, self._some.images)}

    def _judged(self, facts: Mapping[str, Any], refuse: bool) -> tuple[str, ...]:
        """See `hksd.teacher.check.judge`."""
        compared = [
            *(["the term logits"] if "logits" in self.config.terms.active() else []),
            *(["data_free"] if self.config.data_free else []),
        ]
        return check.judge(self.settings, facts, len(self.data.validation), compared, refuse)

    @cached_property
    def _some(self) -> Some:
        return some_of(self.data, self.config.data, self.device)

    @cached_property
    def _jointly(self) -> tuple[TappedNet, Trained]:
        """A fresh network and its estimators, trained together.

        Where the network was kept and its estimators were not, one training repeats both.
        """
        with isolated(self.settings.seed, self.settings.threads, self.device):
            network = self._empty().to(self.device)
            shape = {"in_channels": self.data.channels, "image_size": self.data.image_size}
            suited = precision.suited(self.numbers, self.settings.precision, network, **shape)
            return network, self._learn(network, suited)

    def _attention(self, network: TappedNet) -> Trained:
        """The estimators of a frozen network."""
        with isolated(self.settings.seed, self.settings.threads, self.device):
            return self._learn(network, self.numbers)

    def _learn(self, network: TappedNet, numbers: precision.Precision) -> Trained:
        assert self.spec is not None
        views = self._batches(augment=True), self._batches(augment=False)
        classes = len(self.data.classes)
        return estimators.train(network, self.spec, self.settings, *views, classes, self.report, numbers)

    def _batches(self, augment: bool) -> Batches:
        split = self.data.train if augment else self.data.validation
        return batches_of(split, self.data, self.config.data, self.device, augment=augment)

    def _validate(self, network: TappedNet) -> float:
        logits, labels = predict(network, self._batches(augment=False).plain(EVALUATION_BATCH))
        return accuracy(logits, labels)


def missing(config: RunConfig, data: DataSet, cache_dir: Path) -> dict[Path, str]:
    """What `prepare` would have to train, as it is not in the cache: files, with ``teacher`` or ``attention``.

    Args:
        config: a run with a teacher section.
        data: its images.
        cache_dir: folder that keeps teachers by content.
    """
    settings, spec = config.teacher, spec_of(config)
    assert settings is not None
    folder = cache_dir / key_of(config, settings, data)
    parts = {folder / "teacher.json": "teacher"}
    if spec is not None:
        parts[folder / f"{attention_name(spec, settings)}.json"] = "attention"
    return {file: part for file, part in parts.items() if not file.exists()}


def _check_numbers(network: TappedNet, settings: TeacherConfig) -> None:
    """Refuse weights of a training that had diverged; buffers may be infinite on purpose."""
    for name, value in network.bare.named_parameters():
        if not value.isfinite().all():
            raise UserError(
                f"{settings.place}.checkpoint: {settings.checkpoint}: '{name}' holds NaN or infinite numbers: its "
                "training had diverged; take an earlier checkpoint"
            )


def familiar(config: RunConfig, data: DataSet) -> bool:
    """Whether the teacher of a run is loaded, and may have been trained on the validation images (see `Teacher`)."""
    settings = config.teacher
    if settings is None or not settings.loaded:
        return False
    path = settings.checkpoint and expanded(settings.checkpoint, f"{settings.place}.checkpoint")
    return (weights.header(path) if path else {}).get(FINGERPRINT) != data.fingerprint


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


def _published(settings: TeacherConfig, data: DataSet) -> dict[str, Tensor]:
    shape = data.image_shape
    try:
        return zoo.pretrained_state(settings.model, in_channels=shape["in_channels"], classes=shape["classes"])
    except models.NetworkError as error:
        raise UserError(f"{settings.place}.{error}") from error
