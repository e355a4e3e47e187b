"""Contrastive representation distillation (Tian, Krishnan and Isola 2020, arXiv 1910.10699).

Loss and constants as in the public repositories RepDistiller and mdistiller (CONFIRMED there). Embeddings of both
networks are mapped to unit vectors v_S, v_T; each is told apart, by noise-contrastive estimation, from the rows of the
other network's memory that belong to images of other classes:

    P(i) = exp(v . memory_i / tau) / Z          Z = n * mean of the exponentials, estimated once, on the first batch
    loss = -log[P(own) / (P(own) + K / n)] - sum over K negatives of log[(K / n) / (P + K / n)],  both directions

Scores against the whole memory are one matrix product, of which the drawn ones are kept: much cheaper than
gathering K rows for every image of the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hksd import bounds
from hksd.errors import UserError
from hksd.models.taps import Out, TapShapes
from hksd.terms.base import Setting, Term, TermConfig, Weight, require_teacher


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(TermConfig):
    """Usual weight 0.8, beside `ce` 1, or `ce` 1 and `kd` 1 (CONFIRMED: RepDistiller, mdistiller)."""

    weight: Weight = 0.8
    dims: Annotated[int, Field(ge=1, le=bounds.FEATURES, description="size of the compared unit vectors")] = 128
    negatives: Annotated[
        int,
        Field(ge=1, le=bounds.IMAGES, description="K: rows of other classes per image; at most as many as there are"),
    ] = 16384
    temperature: Annotated[
        float,
        Field(ge=bounds.TEMPERATURE_LEAST, le=bounds.TEMPERATURE, description="tau: divides the cosine of two vectors"),
    ] = 0.07
    momentum: Annotated[float, Field(ge=0, lt=1, description="share of the old row that a memory keeps")] = 0.5

    student_needs: ClassVar[frozenset[str]] = frozenset({"embedding"})
    teacher_needs: ClassVar[frozenset[str]] = frozenset({"embedding"})

    def data_needs(self) -> frozenset[str]:
        """Which image it is, to find its row of the memory, and labels, to tell negatives."""
        return frozenset({"labels", "index"})

    def build(self, student: TapShapes, teacher: TapShapes | None) -> Term:
        """See `TermConfig.build`."""
        assert teacher is not None
        return Contrastive(self, student.embedding, teacher.embedding)


def nce_loss(scores: Tensor, log_z: Tensor, images: int) -> Tensor:
    """Noise-contrastive loss, batch mean, computed in logarithms so that no temperature overflows.

    Args:
        scores: cosines over temperature (N, 1 + K), the own image first.
        log_z: logarithm of Z, a scalar.
        images: n, images in the memory.
    """
    odds = scores - log_z - math.log((scores.shape[1] - 1) / images)  # log of P / (K / n)
    return (F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(1)).mean()


class Negatives:
    """Draws images of other classes, on the CPU, from torch's global generator.

    Args:
        labels: (n,), int64.
        wanted: K; where a class has fewer images outside it, K becomes the smallest such number.
    """

    def __init__(self, labels: Tensor, wanted: int):
        self.labels = labels
        self.order = torch.argsort(labels, stable=True)  # images, class by class
        self.size = torch.bincount(labels)
        self.first = self.size.cumsum(0) - self.size
        others = len(labels) - self.size[self.size > 0]
        self.count = min(wanted, int(others.min()))

    def draw(self, index: Tensor) -> Tensor:
        """For images (N,) the positions (N, K) of others: distinct, uniform, none of the image's own class.

        One shuffled list serves the whole batch, and every image reads it from another start.
        """
        classes = self.labels[index]
        others = len(self.labels) - self.size[classes]
        shuffled = torch.randperm(len(self.labels))
        start = (torch.rand(len(index)) * others).long()
        found = torch.empty(len(index), self.count, dtype=torch.int64)
        for number in sorted(set(others.tolist())):  # a few: classes are of few sizes
            rows = (others == number).nonzero()[:, 0]
            found[rows] = shuffled[shuffled < number][(start[rows, None] + torch.arange(self.count)) % number]
        own = self.first[classes, None]
        return self.order[found + self.size[classes, None] * (found >= own)]  # step over the images of the own class


class Contrastive(Term):
    """Both projections, which learn with the student, and a memory of unit vectors for each network.

    The memories, float32, are buffers and part of every checkpoint: 8 n dims bytes, 46 MB for 45,000 images, 1.3 GB for
    ImageNet. A batch is written into them after its student step, at the start of the next `own_step`.
    """

    student_memory: Tensor
    teacher_memory: Tensor
    log_z: Tensor

    def __init__(self, config: ContrastiveConfig, student: int, teacher: int):
        super().__init__()
        self.config = config
        self.of_student, self.of_teacher = nn.Linear(student, config.dims), nn.Linear(teacher, config.dims)
        self.started = False
        self.pending: tuple[Tensor, ...] = ()  # index, student and teacher vectors of the last batch

    def meet(self, setting: Setting) -> None:
        """Make the memories: random vectors, which the first epoch replaces."""
        count, dims = len(setting.labels), self.config.dims
        classes = int((torch.bincount(setting.labels) > 0).sum())
        if classes < 2:
            raise UserError(
                f"terms.crd compares training images with those of other classes and keeps a row for each, but this "
                f"run has {count} stored image(s) of {classes} class(es); take the term away"
            )
        self.negatives = Negatives(setting.labels.cpu(), self.config.negatives)
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, (2 * torch.rand(count, dims) - 1) / math.sqrt(dims / 3))
        self.register_buffer("log_z", torch.zeros(2))

    def get_extra_state(self) -> dict[str, Any]:
        """What the next `own_step` will write into the memories, and whether Z is known."""
        return {"started": self.started, "pending": list(self.pending)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See `get_extra_state`."""
        self.started, self.pending = state["started"], tuple(state["pending"])

    def own_step(self, student: Out, teacher: Out | None, target: Tensor) -> dict[str, Tensor]:
        """Write the last batch into the memories, once, and keep this one for the next step."""
        with torch.no_grad():
            self._remember()
            vectors = self._vectors(student, require_teacher(teacher))
            if not self.started:
                scores = self._scores(vectors, self._index(student))
                self.log_z.copy_(torch.stack([self._estimate(one) for one in scores]))
                self.started = True
            self.pending = (self._index(student).clone(), *vectors)
        return {}

    def forward(self, student: Out, teacher: Out | None, target: Tensor) -> Tensor:
        """See `Term.forward`."""
        scores = self._scores(self._vectors(student, require_teacher(teacher)), self._index(student))
        count = len(self.student_memory)
        log_z = self.log_z if self.started else [self._estimate(one.detach()) for one in scores]
        losses = [nce_loss(one, z, count) for one, z in zip(scores, log_z, strict=True)]
        return losses[0] + losses[1]

    def _vectors(self, student: Out, teacher: Out) -> tuple[Tensor, Tensor]:
        """Unit vectors (N, dims) of both networks, at least in single precision."""
        pairs = ((self.of_student, student.embedding), (self.of_teacher, teacher.embedding))
        mine, goal = (F.normalize(_single(project(embedding)), dim=1) for project, embedding in pairs)
        return mine, goal

    def _scores(self, vectors: tuple[Tensor, Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1 + K) of both directions: student against the teacher's memory, teacher against the student's."""
        negatives = self.negatives.draw(index.cpu()).to(index.device)
        wanted = torch.cat([index[:, None], negatives], 1)
        with torch.autocast(index.device.type, enabled=False):
            mine, goal = (
                (vector @ _single(memory).T).gather(1, wanted) / self.config.temperature
                for vector, memory in zip(vectors, (self.teacher_memory, self.student_memory), strict=True)
            )
        return mine, goal

    def _estimate(self, scores: Tensor) -> Tensor:
        """log of n times the mean of exp(scores)."""
        return scores.logsumexp((0, 1)) - math.log(scores.numel()) + math.log(len(self.student_memory))

    def _remember(self) -> None:
        if not self.pending:
            return
        index, *vectors = (one.to(self.student_memory.device) for one in self.pending)
        for memory, vector in zip((self.student_memory, self.teacher_memory), vectors, strict=True):
            kept = self.config.momentum
            mixed = kept * memory[index] + (1 - kept) * vector.to(memory.dtype)
            memory.index_copy_(0, index, F.normalize(mixed, dim=1))

    @staticmethod
    def _index(student: Out) -> Tensor:
        if student.index is None:
            raise UserError(
                "terms.crd keeps a row for every training image, but these images have no index, because they do not "
                "come again; take the term away, or train on stored images"
            )
        return student.index


def _single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
