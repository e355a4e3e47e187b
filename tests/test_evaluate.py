"""Scores of a classifier, against pencil and paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hksd.data.augment import Batch
from hksd.run.evaluate import accuracy, agreement, predict, score

# Probabilities of the first of two classes; answers 0, 0, 0, 1.
PROBABILITIES = [0.92, 0.92, 0.62, 0.38]
LOGITS = torch.tensor([[math.log(p), math.log(1 - p)] for p in PROBABILITIES])
LABELS = torch.tensor([0, 1, 0, 1])


def test_accuracy_is_the_share_of_right_answers_without_rounding() -> None:
    assert accuracy(LOGITS, LABELS) == 0.75
    assert accuracy(torch.eye(3), torch.tensor([0, 1, 0])) == 2 / 3
    assert accuracy(torch.eye(3).repeat(1000, 1), torch.tensor([0, 1, 0]).repeat(1000)) == 2 / 3


def test_the_likelihood_is_the_mean_of_the_right_classes() -> None:
    expected = -(math.log(0.92) + math.log(0.08) + math.log(0.62) + math.log(0.62)) / 4
    assert score(LOGITS, LABELS).nll == pytest.approx(expected, rel=1e-6)


def test_calibration_compares_confidence_and_accuracy_bin_by_bin() -> None:
    # Bin of 0.92: two images, one right; bin of 0.62: two images, both right.
    expected = (abs(1 - 2 * 0.92) + abs(2 - 2 * 0.62)) / 4
    assert score(LOGITS, LABELS).ece == pytest.approx(expected, rel=1e-5)


def test_calibration_does_not_cancel_between_bins() -> None:
    logits = torch.tensor([[math.log(p), math.log(1 - p)] for p in (0.9, 0.6)])
    # Too sure in one bin, not sure enough in the other: |0 - 0.9| and |1 - 0.6|.
    assert score(logits, torch.tensor([1, 0])).ece == pytest.approx((0.9 + 0.4) / 2, rel=1e-5)


def test_a_classifier_that_is_certain_and_right_is_calibrated_and_one_that_is_wrong_is_not() -> None:
    certain = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    assert score(certain, torch.tensor([0, 1])).ece == pytest.approx(0, abs=1e-9)
    assert score(certain, torch.tensor([1, 0])).ece == pytest.approx(1, abs=1e-9)


def test_every_class_has_its_own_accuracy_and_a_class_without_images_none() -> None:
    logits = torch.tensor([[2.0, 1, 0, 0], [2, 1, 0, 0], [0, 3, 0, 0], [0, 0, 5, 0]])
    found = score(logits, torch.tensor([0, 1, 1, 2]))
    assert found.per_class[:3] == (1.0, 0.5, 1.0)
    assert math.isnan(found.per_class[3])
    assert (found.accuracy, found.count) == (0.75, 4)


def test_agreement_is_the_share_of_equal_answers_whatever_the_labels() -> None:
    assert agreement(LOGITS, LOGITS) == 1
    assert agreement(LOGITS, LOGITS.flip(1)) == 0
    assert agreement(LOGITS, torch.tensor([[1.0, 0.0]]).repeat(4, 1)) == 0.75
    assert agreement(LOGITS, 7 * LOGITS + 3) == 1


class Moody(nn.Module):
    """Answers differently in training mode, and remembers how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[bool, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append((self.training, torch.is_grad_enabled()))
        return images.flatten(1)


@pytest.mark.parametrize("training", [True, False])
def test_predictions_are_made_in_eval_mode_without_gradients_and_the_mode_is_given_back(training: bool) -> None:
    model = Moody().train(training)
    images, labels = torch.randn(5, 3, 1, 1), torch.arange(5)
    logits, found = predict(model, (Batch(images[i : i + 2], labels[i : i + 2]) for i in (0, 2, 4)))
    assert torch.equal(logits, images.flatten(1))
    assert torch.equal(found, labels)
    assert model.asked == [(False, False)] * 3
    assert model.training == training


def test_predictions_of_half_precision_are_given_in_single_precision() -> None:
    images = torch.randn(2, 3, 1, 1)
    logits, _ = predict(nn.Flatten().bfloat16(), [Batch(images.bfloat16(), torch.arange(2))])
    assert logits.dtype == torch.float32
