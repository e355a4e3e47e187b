"""Memory that one inference needs, counted on shapes alone: weights and the activations that are alive together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Activations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the memory that the operators of a forward pass write and read.

    A block of memory is alive from the operator that writes it first to the last one that reads it, however long
    Python holds it: what a runtime needs that frees at once. Views and operators that work in place share a block; an
    output that nobody reads (the positions of a max-pool) is not counted. Every operator of the network counts as
    written: a runtime that fuses batch norm and ReLU into the convolution needs less, and the scratch memory inside an
    operator comes on top.

    Works on the meta device as well, where it costs no memory.

    Args:
        weights: tensors that are there anyway (parameters and buffers).
    """

    def __init__(self, weights: Iterable[Tensor]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = {_block(tensor) for tensor in weights}
        self.held: list[Tensor] = []  # so that no block's identity is used again
        self.bytes: dict[int, int] = {}
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self.step = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator; note what it reads and writes."""
        result = func(*args, **(kwargs or {}))
        self.step += 1
        for tensor in _tensors((args, kwargs)):
            self._see(tensor, 0)  # what no operator wrote came from outside: the image
            self.last[_block(tensor)] = self.step
        for tensor in _tensors(result):
            self._see(tensor, self.step)
        return result

    def _see(self, tensor: Tensor, step: int) -> None:
        block = _block(tensor)
        if block not in self.first:
            self.held.append(tensor)
            self.first[block], self.bytes[block] = step, tensor.untyped_storage().nbytes()

    def peak(self, result: Tensor) -> int:
        """Largest sum of live blocks, in bytes; `result` lives to the end."""
        last = {**self.last, _block(result): self.step}
        change = [0] * (self.step + 2)
        for block in last.keys() & self.first.keys() - self.weights:
            change[self.first[block]] += self.bytes[block]
            change[last[block] + 1] -= self.bytes[block]
        return max(accumulate(change))


def weights_of(network: nn.Module) -> list[Tensor]:
    """Parameters and floating-point buffers: what inference reads (not the counters of batch norm)."""
    return [*network.parameters(), *(buffer for buffer in network.buffers() if buffer.is_floating_point())]


def weight_bytes(network: nn.Module) -> int:
    """Bytes of `weights_of`; tensors that share memory count once."""
    sizes = {_block(tensor): tensor.untyped_storage().nbytes() for tensor in weights_of(network)}
    return sum(sizes.values())


def _block(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor; holds while something refers to that memory."""
    return int(tensor.untyped_storage()._cdata)


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
