"""A plain distillation loop, to measure against: what one writes with PyTorch and torchvision alone.

Images are PIL pictures that pass through torchvision's transforms one by one, a DataLoader makes batches, the teacher
runs beside the student in float32, losses are plain tensor operations, and loss, top-1 and top-5 are read at every
step. The networks are the same classes as everywhere here, with the same weights, in PyTorch's own memory format; run
it in a process with ``HKSD_KERNELS=0`` (`common.STOCK`), so that nothing in them is replaced. The run configuration is
that of `hksd.fit.fit`, so both sides share one recipe: SGD, cosine schedule by steps, crops and flips.

    HKSD_KERNELS=0 python benchmarks/reference.py CONFIG.yaml [--workers 8]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hksd import data as datasets
from hksd import models
from hksd.attention import HierarchicalAttention
from hksd.config.run import RunConfig, load
from hksd.data import DataSet, Split
from hksd.device.memory import lay_out
from hksd.models.taps import Out, TappedNet
from hksd.torchvision_guard import import_datasets

import_datasets()  # torchvision loads after this, whatever build it is
from torchvision import transforms  # noqa: E402


def shape_of(data: DataSet) -> dict[str, int]:
    """The arguments that describe images and classes to `hksd.models.make`."""
    return {"in_channels": data.channels, "classes": len(data.classes), "image_size": data.image_size}


class Pictures(Dataset[tuple[Tensor, int]]):
    """A split as torchvision's data sets give it: one PIL image through the transforms, and its label."""

    def __init__(self, split: Split, transform: Any):
        self.images, self.labels, self.transform = split.images, split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        pixels = self.images[position]
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        return self.transform(picture), self.labels[position]


class PlainLosses(nn.Module):
    """``ce``, ``kd`` and ``attention_transfer`` of a configuration, in plain tensor operations."""

    def __init__(self, config: RunConfig):
        super().__init__()
        terms: dict[str, Any] = config.terms.active()
        unknown = terms.keys() - {"ce", "kd", "attention_transfer"}
        if unknown:
            raise ValueError(f"terms.{', '.join(sorted(unknown))}: the reference knows ce, kd and attention_transfer")
        self.terms = terms

    def joint_parameters(self) -> list[nn.Parameter]:
        """What is trained with the student: nothing."""
        return []

    def forward(self, student: Out, teacher: Out | None, labels: Tensor, epoch: float) -> Tensor:
        """The weighted sum."""
        total = torch.zeros(())
        if "ce" in self.terms:
            total = total + self.terms["ce"].weight * F.cross_entropy(student.logits, labels)
        if "kd" in self.terms and teacher is not None:
            heat = self.terms["kd"].temperature
            divergence = F.kl_div(
                F.log_softmax(student.logits / heat, dim=1),
                F.softmax(teacher.logits / heat, dim=1),
                reduction="batchmean",
            )
            total = total + self.terms["kd"].weight * heat**2 * divergence
        if "attention_transfer" in self.terms and teacher is not None:
            distances = [
                (energy(mine) - energy(goal)).pow(2).mean()
                for mine, goal in zip(student.stages, teacher.stages, strict=True)
            ]
            total = total + self.terms["attention_transfer"].weight * sum(distances)
        return total


def energy(maps: Tensor) -> Tensor:
    """Where a map has its energy: (N, F, H, W) -> unit vectors (N, H * W)."""
    return F.normalize(maps.pow(2).mean(1).flatten(1))


@dataclass
class Average:
    """Running mean of a figure that is read at every step."""

    total: float = 0.0
    count: int = 0

    def update(self, value: float, count: int) -> None:
        """Take in the mean of `count` images."""
        self.total += value * count
        self.count += count

    @property
    def mean(self) -> float:
        """Mean so far."""
        return self.total / max(1, self.count)


def hits(logits: Tensor, labels: Tensor, k: int) -> float:
    """Share of images whose label is among the `k` largest logits."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(1).float().mean().item()


@dataclass
class Epoch:
    """Figures of one training epoch: loss, top-1 and top-5 while training (0 to 1), images and seconds."""

    loss: Average = field(default_factory=Average)
    top1: Average = field(default_factory=Average)
    top5: Average = field(default_factory=Average)
    seconds: float = 0.0

    @property
    def images_per_s(self) -> float:
        """Training images per second of wall clock."""
        return self.loss.count / self.seconds


class Reference:
    """Student, teacher, loader and optimiser of a run.

    Args:
        config: the run; knobs that only hksd has (precision, knowledge, clipping) are not looked at.
        data: its images.
        teacher: its teacher network, in float32.
        attention: the teacher's estimators, where a loss reads squeezed vectors.
        workers: processes of the DataLoader; 0 loads in this one.
        losses: takes the student and makes the loss, default `PlainLosses`, whose methods it has.
    """

    def __init__(
        self,
        config: RunConfig,
        data: DataSet,
        teacher: TappedNet | None,
        *,
        attention: HierarchicalAttention | None = None,
        workers: int = 0,
        losses: Any = None,
    ):
        torch.manual_seed(config.seed)
        self.config, self.data = config, data
        self.student = models.make(config.student.spec(), **shape_of(data))
        self.teacher = teacher.eval().requires_grad_(False) if teacher else None
        if self.teacher:
            lay_out(self.teacher, torch.contiguous_format)
        self.attention = attention.eval().requires_grad_(False) if attention else None
        self.losses = losses(self.student) if losses else PlainLosses(config)
        train, crop, flip = config.train, config.data.crop, config.data.flip
        finish = [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
        augment: list[Any] = [transforms.RandomCrop(data.image_size, padding=crop)] if crop else []
        augment += [transforms.RandomHorizontalFlip()] if flip else []
        pictures = Pictures(data.train, transforms.Compose([*augment, *finish]))
        self.loader = DataLoader(
            pictures, batch_size=train.batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
        self.validation = self.judged(data.validation)
        self.optimizer = torch.optim.SGD(
            [*self.student.parameters(), *self.losses.joint_parameters()],
            lr=train.lr,
            momentum=train.momentum,
            nesterov=train.nesterov,
            weight_decay=train.weight_decay,
        )
        self.steps = 0
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, train.epochs * len(self.loader))

    def judged(self, split: Split) -> DataLoader[Any]:
        """A split as it is evaluated: in order, neither cropped nor flipped."""
        finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize(self.data.mean, self.data.std)])
        return DataLoader(Pictures(split, finish), batch_size=512)

    @torch.no_grad()
    def ask_teacher(self, images: Tensor) -> Out | None:
        """What the teacher says."""
        if self.teacher is None:
            return None
        out = self.teacher.taps(images)
        squeezed = self.attention(out) if self.attention else ()
        return Out(out.logits, out.embedding, out.stages, out.blocks, squeezed)

    def train_epoch(self) -> Epoch:
        """Train on all images once."""
        figures, start = Epoch(), time.perf_counter()
        self.student.train()
        for images, labels in self.loader:
            known = self.ask_teacher(images)
            out = self.student.taps(images)
            loss = self.losses(out, known, labels, self.steps / len(self.loader))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.steps += 1
            count = len(labels)
            figures.loss.update(loss.item(), count)
            figures.top1.update(hits(out.logits.detach(), labels, 1), count)
            figures.top5.update(hits(out.logits.detach(), labels, 5), count)
        figures.seconds = time.perf_counter() - start
        return figures

    @torch.no_grad()
    def accuracy(self, loader: DataLoader[Any] | None = None) -> float:
        """Accuracy on the validation split, or on another loader, 0 to 1."""
        self.student.eval()
        right = Average()
        for images, labels in loader or self.validation:
            right.update(hits(self.student(images), labels, 1), len(labels))
        return right.mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="run configuration with ce, kd and attention_transfer")
    parser.add_argument("--workers", type=int, default=0, help="processes of the DataLoader")
    parser.add_argument("--teacher", help="state dict of the teacher; default untrained (for speed alone)")
    options = parser.parse_args()
    config = load(options.config)
    torch.set_num_threads(config.train.threads)
    data = datasets.load(config.data)
    teacher = None
    if config.teacher is not None:
        teacher = models.make(config.teacher.spec(), **shape_of(data))
        if options.teacher:
            teacher.load_state_dict(torch.load(options.teacher, weights_only=True))
    run = Reference(config, data, teacher, workers=options.workers)
    for epoch in range(config.train.epochs):
        figures = run.train_epoch()
        print(
            f"epoch {epoch + 1}: loss {figures.loss.mean:.4f}, top-1 {figures.top1.mean:.4f}, "
            f"top-5 {figures.top5.mean:.4f}, validation {run.accuracy():.4f}, {figures.images_per_s:,.0f} images/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
