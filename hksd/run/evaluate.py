"""How good a classifier is on a split: accuracy, likelihood, calibration, agreement, per class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hksd.data.augment import Batch
from hksd.errors import UserError

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


FEWEST = 4  # rows; fewer may be alike by chance


def kind_of(outputs: Tensor) -> Literal["logits", "probabilities", "log-probabilities", "shares"]:
    """What a classifier gives, by its outputs (N, C) for some images: logits are never normalised.

    "probabilities" lie between 0 and 1 and sum to 1 in every row, as after softmax; "log-probabilities" are their
    logarithms; "shares" lie between 0 and 1 without such a sum, as after a sigmoid. A few rows tell nothing.
    """
    values, within = outputs.float(), 4e-3  # bfloat16 rounds a sum of 1 to 0.998
    if len(values) < FEWEST:
        return "logits"
    if values.logsumexp(1).abs().max() < within and values.max() <= within:
        return "log-probabilities"
    if values.min() < 0 or values.max() > 1 + within:
        return "logits"
    return "probabilities" if (values.sum(1) - 1).abs().max() < within else "shares"


NORMALISED = "gives probabilities (every row lies between 0 and 1 and sums to 1) in place of logits"


def refuse_probabilities(outputs: Tensor, name: str) -> None:
    """Refuse what is no input of a softmax.

    Args:
        outputs: of a network for some images, (N, C).
        name: of the network.

    Raises:
        UserError: they are probabilities.
    """
    if kind_of(outputs) == "probabilities":
        raise UserError(
            f"{name} {NORMALISED}; softmax would be applied twice and flatten all differences: remove the softmax at "
            "its end, so that it returns what its last layer gives, in train and in eval mode"
        )


EVALUATION_BATCH = 512
