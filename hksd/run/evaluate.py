"""How good a classifier is on a split: accuracy, likelihood, calibration, agreement, per class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hksd.data.augment import Batch

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Scores:
    """Scores of a classifier on a split.

    Attributes:
        accuracy: share of right answers, 0 to 1.
        nll: mean negative log-likelihood of the right class, in nats.
        ece: expected calibration error over 15 equal bins of confidence, 0 to 1 (Guo et al. 2017).
        per_class: accuracy of each class; NaN for a class without images.
        count: number of images.
    """

    accuracy: float
    nll: float
    ece: float
    per_class: tuple[float, ...]
    count: int


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Return logits (N, C) and labels (N,) on the CPU; the model is put into eval mode and back."""
    training = model.training
    model.eval()
    pairs = [(model(batch.images).float().cpu(), batch.labels.cpu()) for batch in batches]
    model.train(training)
    return torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of right answers of logits (N, C) for labels (N,), exact in float64."""
    return int((logits.argmax(1) == labels).sum()) / len(labels)


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Score logits (N, C) against labels (N,)."""
    confidence, answer = logits.softmax(1).max(1)
    right = (answer == labels).double()
    bins = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    gaps = torch.zeros(CALIBRATION_BINS, dtype=torch.float64).index_add_(0, bins, right - confidence.double())
    per_class = [right[labels == label].mean().item() for label in range(logits.shape[1])]
    return Scores(
        accuracy(logits, labels),
        F.cross_entropy(logits, labels).item(),
        (gaps.abs().sum() / len(labels)).item(),
        tuple(per_class),
        len(labels),
    )


def agreement(first: Tensor, second: Tensor) -> float:
    """Share of images on which two classifiers, given by logits (N, C), answer alike."""
    return int((first.argmax(1) == second.argmax(1)).sum()) / len(first)


EVALUATION_BATCH = 512
