"""What networks return beside logits: auxiliary outputs, in a tuple, a list, a mapping or an object with names.

Many networks return more while they train (the auxiliary heads of GoogLeNet and Inception, the second head of a
distilled transformer), or always. The main output is what hksd trains, evaluates and exports; the rest teaches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

NAMES = ("logits", "out")  # of the main output where outputs have names: transformers' and torchvision's
ACCEPTED = "logits (N, C), alone, first in a tuple, or under the name `logits` or `out`"


def main_output(output: Any) -> Any:
    """The logits of what a network returned; what has none comes back as it is."""
    if isinstance(output, Tensor):
        return output
    for name in NAMES:
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(output, Mapping):
        tensors = [value for value in output.values() if isinstance(value, Tensor)]
        return tensors[0] if len(tensors) == 1 else output
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    return output


def say(output: Any) -> str:
    """What a network returned, in words: ``a tuple of 2`` or ``a dict with aux, main``."""
    kind = type(output).__name__
    named = f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"
    if isinstance(output, Mapping):
        return f"{named} with {', '.join(map(str, output)) or 'nothing'}"
    return f"{named} of {len(output)}" if isinstance(output, tuple | list) else named
