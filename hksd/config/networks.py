"""The `teacher` and the `student` section of a run: which network, and how a teacher is made or loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from hksd import bounds
from hksd.bounds import LAST_SEED
from hksd.class_names import ClassNames
from hksd.device.precision import PrecisionName
from hksd.models import NetworkSpec, check_settings
from hksd.models import check_name as check_model
from hksd.schema import Section

Preprocess = Literal["own", "none", "imagenet"]
ModelName = Annotated[str, Field(max_length=bounds.NAME_LENGTH), AfterValidator(check_model)]
ModulePath = Annotated[str, Field(min_length=1, max_length=bounds.PATH_LENGTH)]


@dataclass(frozen=True, kw_only=True)
class AttentionTraining(Section):
    """How the teacher's attention estimators are made (stage T)."""

    mode: Annotated[
        Literal["task", "joint", "random"],
        Field(description="task loss on the frozen teacher; teacher and estimators together from scratch; untrained"),
    ] = "task"
    epochs: Annotated[
        int, Field(ge=1, le=bounds.EPOCHS, description="epochs of estimator training on the frozen teacher")
    ] = 15
    lr: Annotated[
        float, Field(ge=bounds.RATE_LEAST, le=bounds.RATE, description="learning rate of the estimators (SGD, cosine)")
    ] = 0.05
    batch_size: Annotated[int, Field(ge=1, le=bounds.BATCH, description="images per step")] = 128

    def dead_knobs(self) -> frozenset[str]:
        """Random estimators are not trained, joint ones with the knobs of the teacher."""
        return frozenset() if self.mode == "task" else frozenset({"epochs", "lr", "batch_size"})


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(Section):
    """A network, teacher or student."""

    model: Annotated[ModelName, Field(description="network: a name, or package.module:factory of your own")]
    width: Annotated[float, Field(ge=bounds.WIDTH_LEAST, le=bounds.WIDTH, description="multiplier on its channels")] = (
        1.0
    )
    descriptor_dim: Annotated[
        int | None,
        Field(
            ge=1,
            le=bounds.FEATURES,
            description="size of a global descriptor before the classifier (KSANC: 128); deployed and counted",
        ),
    ] = None
    taps: Annotated[
        tuple[ModulePath, ...],
        Field(
            max_length=bounds.LIST_LENGTH,
            description="module paths of the stages, for torchvision's networks (default theirs) and your own",
        ),
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
    epochs: Annotated[int, Field(ge=1, le=bounds.EPOCHS, description="epochs of training, when it is trained here")] = (
        20
    )
    batch_size: Annotated[int, Field(ge=1, le=bounds.BATCH, description="images per step")] = 128
    lr: Annotated[
        float,
        Field(
            ge=bounds.RATE_LEAST, le=bounds.RATE, description="peak learning rate (SGD with Nesterov momentum, cosine)"
        ),
    ] = 0.1
    weight_decay: Annotated[float, Field(ge=0, le=bounds.DECAY, description="weight decay")] = 5e-4
    seed: Annotated[int, Field(ge=0, le=LAST_SEED, description="initial weights and order of images")] = 0
    threads: Annotated[
        int, Field(ge=1, le=bounds.CORES, description="CPU threads of its training; part of its exact reproduction")
    ] = 1
    precision: Annotated[PrecisionName, Field(description="arithmetic of its training, as in the section train")] = (
        "auto"
    )
    min_accuracy: Annotated[float, Field(ge=0, le=1, description="stop when its validation accuracy is lower")] = 0.0
    expected_accuracy: Annotated[
        float | None,
        Field(ge=0, le=1, description="known accuracy of a loaded one: stop far below; 0 takes it as it is"),
    ] = None
    preprocess: Annotated[
        Preprocess,
        Field(
            description="how a loaded one wants its pixels: by its own mean and std (where not given, those of the "
            "data), plain 0..1, or ImageNet's"
        ),
    ] = "own"
    mean: Annotated[
        tuple[float, ...],
        Field(max_length=bounds.LIST_LENGTH, description="its mean per channel, on the 0..1 scale; with std"),
    ] = ()
    std: Annotated[
        tuple[float, ...],
        Field(max_length=bounds.LIST_LENGTH, description="its standard deviation per channel, on the 0..1 scale"),
    ] = ()
    channels: Annotated[
        Literal["rgb", "bgr"], Field(description="order of colours that a loaded one wants; bgr: OpenCV's, Caffe's")
    ] = "rgb"
    image_size: Annotated[
        int | None,
        Field(
            ge=4, le=bounds.PIXELS, description="pixels that images are resized to for a loaded one; default the data's"
        ),
    ] = None
    classes: Annotated[
        ClassNames,
        Field(description="names of a loaded one's classes in the order of its outputs, or a file of them"),
    ] = None
    attention: Annotated[AttentionTraining, Field(description="its attention estimators")] = field(
        default_factory=AttentionTraining
    )

    place: ClassVar[str] = "teacher"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention.mode == "joint" and self.loaded:
            raise ValueError("attention.mode joint trains the teacher here; leave checkpoint and pretrained out")
        self._check_inputs()
        if not self.pretrained:
            return
        check_settings(self.model, width=self.width, pretrained=True)
        for key, value in (("checkpoint", self.checkpoint), ("descriptor_dim", self.descriptor_dim)):
            if value is not None:
                raise ValueError(f"pretrained takes the published weights as they are; leave {key} out")

    def _check_inputs(self) -> None:
        """Whether what a loaded teacher wants of its images makes sense."""
        given = [key for key in self._of_a_loaded_one() if key not in self._at_default()]
        if given and not self.loaded:
            raise ValueError(
                f"{given[0]} is for a teacher that was trained elsewhere (checkpoint or pretrained); one that is "
                f"trained here sees the images as the student does: leave {given[0]} out"
            )
        if bool(self.mean) != bool(self.std):
            raise ValueError("mean and std go together: give both, one number for each channel")
        if self.mean and self.preprocess != "own":
            raise ValueError(f"preprocess {self.preprocess} says what mean and std say; leave one of them out")
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} number(s) and std {len(self.std)}; give one for each channel")
        for key, values in (("mean", self.mean), ("std", self.std)):
            wrong = [value for value in values if not 0 <= value <= 1 or (key == "std" and value == 0)]
            if wrong:
                raise ValueError(f"{key} is on the 0..1 scale (got {wrong[0]:g}); divide what is for 0..255 by 255")

    @property
    def loaded(self) -> bool:
        """Whether its weights come from elsewhere."""
        return self.checkpoint is not None or self.pretrained

    @staticmethod
    def _of_a_loaded_one() -> tuple[str, ...]:
        return ("preprocess", "mean", "std", "channels", "image_size", "classes", "expected_accuracy")

    def _at_default(self) -> frozenset[str]:
        """The keys of a loaded teacher that are not set."""
        defaults = {knob.name: knob.default for knob in dataclasses.fields(self)}
        return frozenset(key for key in self._of_a_loaded_one() if getattr(self, key) == defaults[key])

    def dead_knobs(self) -> frozenset[str]:
        """A loaded teacher is not trained; a demand on it does not change it; what is not asked of images neither."""
        trained = {"epochs", "batch_size", "lr", "weight_decay"}
        demands = {"min_accuracy", "expected_accuracy"}
        return frozenset({*demands, *self._at_default(), *(trained if self.loaded else ())})

    def spec(self) -> NetworkSpec:
        """See `NetworkConfig.spec`."""
        return dataclasses.replace(super().spec(), image_size=self.image_size)

    def as_student(self) -> StudentConfig:
        """The same network as a student, which is how it is trained."""
        return StudentConfig(**{knob.name: getattr(self, knob.name) for knob in dataclasses.fields(NetworkConfig)})


@dataclass(frozen=True, kw_only=True)
class StudentConfig(NetworkConfig):
    """The student network."""

    place: ClassVar[str] = "student"
