"""Whether a teacher from elsewhere is taken as it was meant: its outputs, its accuracy, and what would mend them.

A teacher that sees its images on another scale, or whose classes are numbered otherwise, is no worse a network; it is
told the wrong things. So before a loaded teacher is called bad, the usual mistakes are undone one by one on a few
hundred images, and the message says which repair gives which accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hksd.config.networks import TeacherConfig
from hksd.data import DataSet
from hksd.errors import UserError
from hksd.models.taps import TappedNet
from hksd.run.evaluate import kind_of, refuse_probabilities
from hksd.teacher.inputs import Inputs, OwnInputs
from hksd.teacher.repairs import FAR, FINE, RARE, Some, answers, at_least, far_more, keys_of, repairs

BELOW = 0.05  # so much below `teacher.expected_accuracy` is far below
REPAIRS = 3  # shown in a message
CAUSES = (
    "usual causes: another normalisation (teacher.preprocess, or teacher.mean and teacher.std), pixels on 0..255, "
    "blue before red (teacher.channels), another size (teacher.image_size), another order of the classes "
    "(teacher.classes), batch statistics that were not saved, weights of another training"
)


def kind_of_outputs(network: TappedNet, name: str, images: Tensor) -> str:
    """What a teacher in eval mode gives for some images; see `hksd.run.evaluate.kind_of`.

    Raises:
        UserError: it gives probabilities, or no numbers.
    """
    given = answers(network, images)
    if not given.isfinite().all():
        raise UserError(f"teacher.model: {name} gives values that are not finite (NaN or infinite) for some images")
    refuse_probabilities(given, f"teacher.model: {name}")
    return kind_of(given)


def look(
    network: TappedNet, settings: TeacherConfig, data: DataSet, seen: Some, known: Inputs | None
) -> dict[str, Any]:
    """What a teacher whose weights come from elsewhere knows, and where it is little, what the usual repairs give.

    Args:
        network: the teacher, in eval mode.
        settings: its section.
        data: the images.
        seen: some of them.
        known: what it was trained on, where its file says so.

    Returns:
        Facts for `judge`: ``tried``, a number of images; ``chance``, why it knows no more than chance; ``helpful``, the
        repairs that give far more, the best one first; ``otherwise``, how its training images were others.
    """
    given = answers(network, seen.images)
    right, count = int((given.argmax(1) == seen.labels).sum()), len(seen.labels)
    chance, reason = chance_of(given.argmax(1), seen.labels), ""
    if right / count < (1 + chance) / 2 and at_least(right, count, chance) > RARE:
        reason = (
            f"no better than chance ({right} of {count} images right; the same answers in random order would be "
            f"right for {chance * count:.0f} +- {math.sqrt(count * chance * (1 - chance)):.0f})"
        )
    found = [] if right / count > FINE else repairs(network, settings, data, seen, known)
    known_before = max(right / count, 1 / len(data.classes))
    helpful = [str(one) for one in found if far_more(one.accuracy, known_before, one.count)][:REPAIRS]
    otherwise = _otherwise(network, data, known) if known else ""
    return {"tried": count, "chance": reason, "helpful": helpful, "otherwise": otherwise}


def judge(
    settings: TeacherConfig, facts: Mapping[str, Any], images: int, compared: Sequence[str], refuse: bool = True
) -> tuple[str, ...]:
    """What is to be told of a teacher.

    Args:
        settings: its section.
        facts: its ``accuracy`` on the validation split, ``outputs``, and what `look` found.
        images: number of validation images.
        compared: what in the run compares the values of logits themselves, in words.
        refuse: raise what a run stops for; otherwise it is told with the rest.

    Raises:
        UserError: it knows no more than chance, or far less than `teacher.expected_accuracy`.
    """
    name, measured, expected = f"the teacher {settings.model}", facts["accuracy"], settings.expected_accuracy
    helpful = "; ".join(facts.get("helpful", ()))
    reason = facts.get("chance", "") if expected is None else ""
    if expected is not None and measured < expected - BELOW:
        far = at_most(round(measured * images), images, expected) < RARE
        reason = f"far below teacher.expected_accuracy {expected:.2%}" if far else ""
    if reason:
        tried = (
            f"of {facts['tried']} images tried, {helpful}"
            if helpful
            else f"no repair that was tried mends it; {CAUSES}"
        )
        text = f"{name} has {measured:.2%} on the validation split, {reason}; {tried}"
        if refuse:
            raise UserError(f"{text} (teacher.expected_accuracy: 0 takes it as it is)")
        return (*facts.get("renamed", ()), f"{text}; a run with it is refused (unless teacher.expected_accuracy is 0)")
    remarks = [f"{name}: {facts['otherwise']}"] if facts.get("otherwise") and not helpful else []
    if facts.get("chance") and not helpful:
        remarks.append(f"{name} has {measured:.2%} on the validation split, {facts['chance']}")
    if helpful:
        remarks.append(
            f"{name} has {measured:.2%} on the validation split, but of {facts['tried']} images tried, {helpful}"
        )
    if facts.get("outputs") == "shares":
        remarks.append(
            f"{name} gives numbers between 0 and 1 alone, as after a sigmoid, where logits are expected: softmax makes "
            "nearly even answers of them; let it return what its last layer gives"
        )
    if facts.get("outputs") == "log-probabilities" and compared:
        remarks.append(
            f"{name} gives log-probabilities in place of logits: every softmax of them, at any temperature, is the "
            f"same, but {' and '.join(compared)} compares the values themselves; better let it return logits"
        )
    return (*facts.get("renamed", ()), *remarks)


def _otherwise(network: TappedNet, data: DataSet, known: Inputs) -> str:
    """That the images are others than those it was trained on; empty where they are not."""
    now = network.inputs if isinstance(network, OwnInputs) else Inputs(data.mean, data.std)
    if len(known.mean) != len(now.mean) or now.bgr:
        return ""
    # In units of the standard deviation, as the network sees it.
    shift = max(abs(a - b) / s for a, b, s in zip(known.mean, now.mean, known.std, strict=True))
    stretch = max(abs(math.log(a / b)) for a, b in zip(known.std, now.std, strict=True))
    if max(shift, stretch) > FAR:
        return f"it was trained on images of another normalisation; set {keys_of(known)}"
    size = now.size or data.image_size
    if known.size not in (None, size):
        return f"it was trained on images of {known.size} pixels and sees {size}; set teacher.image_size: {known.size}"
    return ""


def chance_of(predicted: Tensor, labels: Tensor) -> float:
    """Share of right answers that the same answers would have if they had nothing to do with the images."""
    size = int(max(predicted.max(), labels.max())) + 1
    shares = [torch.bincount(part, minlength=size).double() / len(part) for part in (predicted, labels)]
    return float(shares[0] @ shares[1])


def at_most(right: int, count: int, share: float) -> float:
    """Probability that at most `right` of `count` independent answers are right, each with probability `share`."""
    return at_least(count - right, count, 1 - share)
