"""The `teacher` and the `student` section of a run: which network, and how a teacher is made or loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from hksd.device.precision import PrecisionName
from hksd.models import NetworkSpec, check_settings
from hksd.models import check_name as check_model
from hksd.schema import LAST_SEED, Section

ModelName = Annotated[str, AfterValidator(check_model)]
ModulePath = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class AttentionTraining(Section):
    """How the teacher's attention estimators are made (stage T)."""

    mode: Annotated[
        Literal["task", "joint", "random"],
        Field(description="task loss on the frozen teacher; teacher and estimators together from scratch; untrained"),
    ] = "task"
    epochs: Annotated[int, Field(ge=1, description="epochs of estimator training on the frozen teacher")] = 15
    lr: Annotated[float, Field(gt=0, description="learning rate of the estimators (SGD, cosine)")] = 0.05
    batch_size: Annotated[int, Field(ge=1, description="images per step")] = 128

    def dead_knobs(self) -> frozenset[str]:
        """Random estimators are not trained, joint ones with the knobs of the teacher."""
        return frozenset() if self.mode == "task" else frozenset({"epochs", "lr", "batch_size"})


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Section):
    """A network, teacher or student."""

    model: Annotated[ModelName, Field(description="network: a name, or package.module:factory of your own")]
    width: Annotated[float, Field(gt=0, description="multiplier on its channels")] = 1.0
    descriptor_dim: Annotated[
        int | None,
        Field(ge=1, description="size of a global descriptor before the classifier (KSANC: 128); deployed and counted"),
    ] = None
    taps: Annotated[
        tuple[ModulePath, ...],
        Field(description="module paths of the stages, for torchvision's networks (default theirs) and your own"),
    ] = ()
    classifier: Annotated[
        ModulePath | None, Field(description="module path of the classifier, likewise; default the last nn.Linear")
    ] = None

    place: ClassVar[str]

    def __post_init__(self) -> None:
        check_settings(self.model, width=self.width, taps=self.taps, classifier=self.classifier)

    def spec(self) -> NetworkSpec:
        """How the network is built, for `hksd.models.make`."""
        return NetworkSpec(
            model=self.model,
            width=self.width,
            descriptor=self.descriptor_dim,
            taps=self.taps,
            classifier=self.classifier,
            place=self.place,
        )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(NetworkConfig):
    """The teacher network: trained here once and cached by content, or loaded."""

    checkpoint: Annotated[str | None, Field(description="weights to load (.safetensors, or .pt state dict)")] = None
    pretrained: Annotated[bool, Field(description="take torchvision's published weights (1000 classes)")] = False
    epochs: Annotated[int, Field(ge=1, description="epochs of training, when it is trained here")] = 20
    batch_size: Annotated[int, Field(ge=1, description="images per step")] = 128
    lr: Annotated[float, Field(gt=0, description="peak learning rate (SGD with Nesterov momentum, cosine)")] = 0.1
    weight_decay: Annotated[float, Field(ge=0, description="weight decay")] = 5e-4
    seed: Annotated[int, Field(ge=0, le=LAST_SEED, description="initial weights and order of images")] = 0
    threads: Annotated[int, Field(ge=1, description="CPU threads of its training; part of its exact reproduction")] = 1
    precision: Annotated[PrecisionName, Field(description="arithmetic of its training, as in the section train")] = (
        "auto"
    )
    min_accuracy: Annotated[float, Field(ge=0, le=1, description="stop when its validation accuracy is lower")] = 0.0
    attention: Annotated[AttentionTraining, Field(description="its attention estimators")] = field(
        default_factory=AttentionTraining
    )

    place: ClassVar[str] = "teacher"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention.mode == "joint" and (self.checkpoint or self.pretrained):
            raise ValueError("attention.mode joint trains the teacher here; leave checkpoint and pretrained out")
        if not self.pretrained:
            return
        check_settings(self.model, width=self.width, pretrained=True)
        for key, value in (("checkpoint", self.checkpoint), ("descriptor_dim", self.descriptor_dim)):
            if value is not None:
                raise ValueError(f"pretrained takes the published weights as they are; leave {key} out")

    def dead_knobs(self) -> frozenset[str]:
        """A loaded teacher is not trained; a demand on it does not change it."""
        trained = {"epochs", "batch_size", "lr", "weight_decay"}
        return frozenset({"min_accuracy", *(trained if self.checkpoint or self.pretrained else ())})

    def as_student(self) -> StudentConfig:
        """The same network as a student, which is how it is trained."""
        return StudentConfig(**{knob.name: getattr(self, knob.name) for knob in dataclasses.fields(NetworkConfig)})


@dataclass(frozen=True, kw_only=True)
class StudentConfig(NetworkConfig):
    """The student network."""

    place: ClassVar[str] = "student"
