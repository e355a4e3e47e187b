"""The `data` section of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from hksd import bounds
from hksd.bounds import LAST_SEED
from hksd.class_names import ClassNames
from hksd.schema import Section


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Which images, and how they are split and augmented."""

    name: Annotated[
        Literal[
            "digits",
            "cifar10",
            "cifar100",
            "tcifar10",
            "tcifar100",
            "svhn",
            "stl10",
            "fashion_mnist",
            "tiny_imagenet",
            "imagenet",
            "folder",
        ],
        Field(description="data set; folder = your own class folders or parquet files"),
    ]
    root: Annotated[str | None, Field(description="where the files are; not needed for digits")] = None
    classes: Annotated[
        ClassNames,
        Field(description="names of all classes in the order of their numbers, or a file of them; default sorted"),
    ] = None
    download: Annotated[
        bool, Field(description="let torchvision fetch CIFAR, SVHN, STL-10 or Fashion-MNIST into root")
    ] = False
    streaming: Annotated[
        bool | None,
        Field(description="decode images when needed, not into memory; default on for imagenet and tiny_imagenet"),
    ] = None
    limit: Annotated[
        int | None, Field(ge=1, le=bounds.IMAGES, description="class-balanced subset of that many training images")
    ] = None
    image_size: Annotated[
        int | None,
        Field(
            ge=4,
            le=bounds.PIXELS,
            description="resize to that many pixels; default 224 for imagenet, 64 for tiny_imagenet",
        ),
    ] = None
    validation: Annotated[float, Field(gt=0, lt=1, description="share of the training images kept for validation")] = (
        0.1
    )
    seed: Annotated[
        int, Field(ge=0, le=LAST_SEED, description="draws splits, subset and augmentation; shared by all trials")
    ] = 0
    crop_scale: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="least share of a streamed image that training resizes to image_size; 0 = pad and crop; "
            "default 0.08 for imagenet and tiny_imagenet, else 0",
        ),
    ] = None
    crop: Annotated[
        int | None,
        Field(
            ge=0,
            le=bounds.PIXELS,
            description="pad by that many pixels and crop; default 1 for digits, 12 for stl10, else 4",
        ),
    ] = None
    flip: Annotated[
        bool | None, Field(description="random horizontal flip; default off for digits and svhn, else on")
    ] = None
    noise: Annotated[
        float,
        Field(
            ge=0,
            le=bounds.FACTOR,
            description="sigma of the Gaussian artefacts of tcifar10 and tcifar100, on normalised pixels",
        ),
    ] = 1.0
    threads: Annotated[int, Field(ge=1, le=bounds.CORES, description="threads that decode streamed images")] = 4

    def __post_init__(self) -> None:
        # The data set's own customs become explicit here, so that an exported configuration states them.
        large = self.name in ("imagenet", "tiny_imagenet")
        if self.streaming is None or self.name in ("digits", "tcifar10", "tcifar100"):
            object.__setattr__(self, "streaming", large)
        if self.image_size is None and large:
            object.__setattr__(self, "image_size", 224 if self.name == "imagenet" else 64)
        if self.crop_scale is None:
            object.__setattr__(self, "crop_scale", 0.08 if large and self.streaming else 0.0)
        if self.crop is None:
            object.__setattr__(self, "crop", {"digits": 1, "stl10": 12}.get(self.name, 4))
        if self.flip is None:
            object.__setattr__(self, "flip", self.name not in ("digits", "svhn"))
        if self.name == "digits" and (self.image_size or 0) > bounds.DIGITS_PIXELS:
            raise ValueError(
                f"data.image_size is at most {bounds.DIGITS_PIXELS} for digits, whose images of 8 pixels lie in memory "
                f"(got {self.image_size})"
            )
        if self.name != "digits" and self.root is None:
            raise ValueError(f"data.root is required for {self.name}: the folder with its files")

    def dead_knobs(self) -> frozenset[str]:
        """Where the files lie does not change what they hold; their own hash, and the classes', is in every result."""
        dead = {"root", "classes", "download", "threads"}
        if not self.name.startswith("tcifar"):
            dead.add("noise")
        if not self.streaming:
            dead.add("crop_scale")  # images in memory are padded and cropped
        elif self.crop_scale:
            dead.add("crop")
        return frozenset(dead)

    def views(self) -> list[Any]:
        """What training sees of the images; with the fingerprint of the data, part of what names a teacher."""
        part = f"crop_scale {self.crop_scale:g}" if self.streaming and self.crop_scale else self.crop
        return [part, self.flip, self.seed]
