"""What the outputs of a network stand for: names of classes, and a network whose classes are in another order.

Output number 3 of a model from elsewhere means what its author numbered 3. Where both sides have names, they decide.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hksd.class_names import composed, difference
from hksd.errors import UserError, some
from hksd.models.taps import TappedNet

MOVED = "the same classes as those of the data, in another order; they are matched by their names"


def classes_of(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Names of a model's classes from the header of its weights file; () where it has none."""
    try:
        found = json.loads(metadata.get("classes", "[]"))
    except ValueError:
        return ()
    return tuple(found) if isinstance(found, list) and all(isinstance(name, str) for name in found) else ()


def order_of(known: Sequence[str], wanted: Sequence[str], where: str) -> list[int] | None:
    """Which output of a model stands for each class of the data.

    Args:
        known: names of the model's classes, in the order of its outputs; empty where nobody knows them.
        wanted: names of the data's classes, in their order.
        where: where `known` stands, for messages.

    Returns:
        For every class of the data the number of the model's output; None where nothing has to be moved: the order is
        the same, or one side has mere numbers where the other has names.

    Raises:
        UserError: the classes are others; shows both lists and the nearest names.
    """
    known, wanted = [composed(name) for name in known], [composed(name) for name in wanted]
    if not known or known == wanted:
        return None
    if set(known) != set(wanted) and (_numbered(known) != _numbered(wanted)) and len(known) == len(wanted):
        return None
    if sorted(known) == sorted(wanted) and len(set(known)) == len(known):
        return [known.index(name) for name in wanted]
    twice = next((name for name in known if known.count(name) > 1), None)
    if twice is not None:
        why = f"'{twice}' stands there twice"
    else:
        said = difference(wanted, known, "it does not know", "it alone knows")
        why = f"{said} (the model: {some(known)}; the data: {some(wanted)})"
    raise UserError(f"{where}: the classes of the model are not those of the data: {why}")


def _numbered(names: Sequence[str]) -> bool:
    """Whether names are the mere numbers of the classes, as a data set without names has them."""
    return list(names) == [str(number) for number in range(len(names))]


@torch.no_grad()
def rearrange(network: TappedNet, order: Sequence[int], images: Tensor, where: str) -> None:
    """Move the rows of the classifier of `network`, in eval mode, so that output i becomes what output order[i] was.

    Args:
        network: the network; changed in place.
        order: see `order_of`.
        images: (N, channels, H, W), some images on which the outcome is checked.
        where: where the names of its classes stand, for messages.

    Raises:
        UserError: the logits are not those of the classifier's rows, so that this is no way to order them.
    """
    before = network(images)[:, list(order)]
    layer = network.classifier
    rows = [part for part in layer.parameters() if part.shape[:1] == (len(order),)]
    for part in rows:
        part.copy_(part[list(order)])
    if not torch.allclose(network(images), before, rtol=1e-3, atol=1e-3):
        raise UserError(
            f"{where}: the classes stand in another order than those of the data, and the classifier "
            f"'{network.classifier_path}' ({type(layer).__name__}) is none whose rows can be moved; give the data the "
            "order of the model"
        )
