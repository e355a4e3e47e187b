"""Training of the teacher's attention estimators: on the frozen teacher, or together with it.

They learn with the task loss, a linear head per level of the hierarchy; that is the "task-driven" part. When and how
the papers train them is unknown: RECONSTRUCTED.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hksd.attention import LEVELS, AttentionSpec, HierarchicalAttention, join
from hksd.config.networks import TeacherConfig
from hksd.config.train import TrainConfig, learning_rate
from hksd.data.augment import Batches
from hksd.device.precision import Precision
from hksd.models.taps import Out, TappedNet
from hksd.run.evaluate import EVALUATION_BATCH

Progress = Callable[[str, int, int, float], None]  # (what, epoch, epochs, validation accuracy)


def train(
    network: TappedNet,
    spec: AttentionSpec,
    settings: TeacherConfig,
    batches: Batches,
    validation: Batches,
    classes: int,
    report: Progress,
    numbers: Precision,
) -> tuple[HierarchicalAttention, dict[str, Any]]:
    """Make estimators of all levels as ``settings.attention`` says.

    Args:
        network: the teacher. Frozen in the modes task and random; with joint it is fresh, and learns here too.
        spec: structure of the estimators.
        settings: the teacher section.
        batches: training images.
        validation: validation images.
        classes: number of classes.
        report: called after every epoch.
        numbers: arithmetic of both networks.

    Returns:
        The estimators, and the accuracy of the head of every level on the validation split (none in the mode random).
    """
    training, joint = settings.attention, settings.attention.mode == "joint"
    first = next(validation.plain(2)).images
    estimators = HierarchicalAttention(network.shapes, network.shapes.stages, spec).to(first.device)
    with torch.no_grad():
        sizes = [join(estimators(network.eval().taps(first)), level).shape[1] for level in range(1, LEVELS + 1)]
    heads = nn.ModuleList(nn.Linear(dims, classes) for dims in sizes).to(first.device)

    def look(images: Tensor) -> tuple[Out, list[Tensor]]:
        """Taps of the teacher, and the logits of every level's head."""
        with numbers.autocast():
            with torch.set_grad_enabled(joint and network.training):
                out = network.taps(images).widened()
            squeezed = estimators(out)
        # The head reads a standardised vector, so that its speed does not hang on the scale that pooling chose.
        vectors = [join(squeezed, level).float() for level in range(1, LEVELS + 1)]
        logits = [head(F.layer_norm(vector, vector.shape[1:])) for head, vector in zip(heads, vectors, strict=True)]
        return out, logits

    if training.mode == "random":
        return estimators, {"accuracy": []}
    mine = settings if joint else training
    parameters = [*estimators.parameters(), *heads.parameters(), *(network.parameters() if joint else ())]
    decay = settings.weight_decay if joint else 5e-4
    optimizer = torch.optim.SGD(parameters, lr=mine.lr, momentum=0.9, nesterov=True, weight_decay=decay)
    schedule = TrainConfig(epochs=mine.epochs, lr=mine.lr)
    for epoch in range(mine.epochs):
        network.train(joint)
        steps = batches.steps(mine.batch_size)
        for step, batch in enumerate(batches.augmented(epoch, mine.batch_size, settings.seed)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(schedule, (epoch + step / steps) / mine.epochs)
            out, logits = look(batch.images)
            loss = torch.stack([F.cross_entropy(one, batch.labels) for one in logits]).sum()
            if joint:
                loss = loss + F.cross_entropy(out.logits, batch.labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        network.eval()
        what = "teacher and attention" if joint else "attention"
        report(what, epoch + 1, mine.epochs, _head_accuracy(look, validation)[-1])
    return estimators, {"accuracy": _head_accuracy(look, validation)}


@torch.no_grad()
def _head_accuracy(look: Callable[[Tensor], tuple[Out, list[Tensor]]], validation: Batches) -> list[float]:
    """Accuracy of every level's head on the validation split."""
    right = torch.zeros(LEVELS, dtype=torch.int64)
    for batch in validation.plain(EVALUATION_BATCH):
        for level, logits in enumerate(look(batch.images)[1]):
            right[level] += int((logits.argmax(1) == batch.labels).sum())
    return [int(count) / len(validation) for count in right]
