"""Task-driven squeezed attention with a hierarchy: blocks -> stage -> network.

Level 1 squeezes a feature map into one vector, as KSANC's attention estimator does (CONFIRMED-SHOT for
``additive_linear`` / ``fused`` / ``mean``). Levels 2 and 3 squeeze the blocks of a stage and the stages of the network
again. That hierarchy is RECONSTRUCTED: only the abstract of HKSANC was available (docs/method.md says more).

Both networks own estimators of the same form, in the channel counts of the teacher, so their vectors compare directly.
All maps of a network are queried by its own descriptor g, the vector that its classifier reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hksd.errors import UserError
from hksd.kernels import blend, compare
from hksd.models.taps import Out, TapShapes

LEVELS = 3
Compatibility = Literal["dot", "additive_tanh", "additive_linear", "gap"]
Squeezed = tuple[tuple[Tensor, ...], ...]  # level -> stage -> (N, dims); level 3 has one entry


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Structure shared by the estimators of teacher and student; see `hksd.terms.squeeze` for the meaning."""

    compatibility: Compatibility = "dot"
    attend: Literal["raw", "fused"] = "raw"
    pool: Literal["sum", "mean"] = "sum"
    temperature: float = 1.0
    share_query: bool = True
    blocks: int | Literal["all"] = "all"
    top_dim: int = 128


def tapped(count: int, blocks: int | Literal["all"]) -> tuple[int, ...]:
    """Indices of the tapped blocks of a stage with `count` blocks: all, or that many evenly spaced ending at the last.

    Raises:
        UserError: more taps than blocks.
    """
    if blocks == "all":
        return tuple(range(count))
    if blocks > count:
        raise UserError(
            f"terms.squeeze.blocks={blocks}, but a stage has only {count} block(s); use 'all' or at most {count}"
        )
    return tuple(math.ceil((i + 1) * count / blocks) - 1 for i in range(blocks))


class Attend(nn.Module):
    """Attention over the items of a set (positions, blocks or stages), by a query from the descriptor g.

    The items may live in another space than the output: `adapt` (a linear map without bias, the "channel transform")
    moves them there. Because it is linear, scores and pooled vector are computed in the small space where the
    compatibility allows, and the adapted map is never built.

    Args:
        dims: size F of items after `adapt`.
        descriptor: size G of g.
        spec: structure.
    """

    def __init__(self, dims: int, descriptor: int, spec: AttentionSpec):
        super().__init__()
        self.spec = spec
        self.query = None if spec.compatibility == "gap" else nn.Linear(descriptor, dims, bias=False)
        self.score: nn.Parameter | None = None
        if spec.compatibility in ("additive_tanh", "additive_linear"):
            self.score = nn.Parameter(torch.randn(dims) / math.sqrt(dims))

    def forward(
        self, items: Tensor, g: Tensor, adapt: Tensor | None = None, mean: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Attend over items (N, F_in, P) with descriptor g (N, G).

        Args:
            items: P vectors per sample.
            g: global descriptor.
            adapt: matrix (F, F_in), or None where the spaces are one.
            mean: divide the pooled vector by P (the paper's average pooling of an already normalised map).

        Returns:
            The pooled vector (N, F) and the attention map (N, P), which sums to 1.
        """
        count = items.shape[2]
        if self.query is None:
            attention = g.new_full((items.shape[0], count), 1 / count)
            pooled = blend(items, attention.to(items.dtype))
            return (pooled if adapt is None else pooled @ adapt.T), attention
        query = self.query(g)
        scores = self._scores(items, query, adapt).to(g.dtype)  # differences of scores need more than bfloat16
        attention = torch.softmax(scores / self.spec.temperature, 1)
        pooled = blend(items, attention.to(items.dtype))
        if adapt is not None:
            pooled = pooled @ adapt.T
        if self.spec.attend == "fused":
            pooled = pooled + query  # sum_p M (x + q) = sum_p M x + q, since M sums to 1
        return (pooled / count if mean else pooled), attention

    def _scores(self, items: Tensor, query: Tensor, adapt: Tensor | None) -> Tensor:
        """Compatibility (N, P) of every item with the query (N, F)."""
        if self.spec.compatibility == "dot":
            key = query if adapt is None else query @ adapt
            return compare(items, key.to(items.dtype)) / math.sqrt(query.shape[1])
        assert self.score is not None
        if self.spec.compatibility == "additive_linear":
            weight = self.score if adapt is None else self.score @ adapt
            return torch.einsum("f,nfp->np", weight, items) + (query @ self.score)[:, None]
        adapted = items if adapt is None else torch.einsum("of,nfp->nop", adapt, items)
        return torch.einsum("f,nfp->np", self.score, torch.tanh(adapted + query[:, :, None]))


class HierarchicalAttention(nn.Module):
    """The attention estimators of one network, for levels 1 to `depth`.

    Args:
        own: shapes of the network that is squeezed.
        target: channels per stage of the vectors (the teacher's); stages are paired from the last one backwards.
        spec: structure.
        depth: highest level, 1 to 3.
    """

    def __init__(self, own: TapShapes, target: Sequence[int], spec: AttentionSpec, depth: int = LEVELS):
        super().__init__()
        self.spec, self.depth = spec, depth
        stages = min(len(own.blocks), len(target))
        self.first = len(own.blocks) - stages
        channels, target = own.stages[self.first :], tuple(target)[-stages:]
        self.taps = [tapped(len(blocks), spec.blocks) for blocks in own.blocks[self.first :]]
        self.adapt = nn.ParameterList(
            nn.Parameter(torch.randn(goal, inputs) / math.sqrt(inputs)) if goal != inputs else None
            for inputs, goal in zip(channels, target, strict=True)
        )
        self.positions = nn.ModuleList()
        for goal, taps in zip(target, self.taps, strict=True):
            own_queries = 1 if spec.share_query else len(taps)
            self.positions.append(nn.ModuleList(Attend(goal, own.embedding, spec) for _ in range(own_queries)))
        if depth >= 2:
            self.blocks = nn.ModuleList(Attend(goal, own.embedding, spec) for goal in target)
        if depth >= 3:
            self.rise = nn.ModuleList(nn.Linear(goal, spec.top_dim, bias=False) for goal in target)
            self.network = Attend(spec.top_dim, own.embedding, spec)

    def forward(self, out: Out) -> Squeezed:
        """Squeeze the taps of one batch.

        Returns:
            Per level: level 1 and 2 one vector (N, F_s) per stage (level 1 with a number n of tapped blocks:
            (N, n F_s)), level 3 one vector (N, top_dim).
        """
        return self.explain(out)[0]

    def explain(self, out: Out) -> tuple[Squeezed, list[list[Tensor]]]:
        """Like `forward`, with the spatial attention maps: per stage and tapped block (N, H * W)."""
        g, mean = out.embedding, self.spec.pool == "mean"
        vectors: list[list[Tensor]] = []
        maps: list[list[Tensor]] = []
        for stage, taps in enumerate(self.taps):
            wanted = taps if self.depth >= 2 or self.spec.blocks != "all" else taps[-1:]
            attends: nn.ModuleList = self.positions[stage]  # type: ignore[assignment]
            found = [
                attends[0 if self.spec.share_query else i](
                    out.blocks[self.first + stage][tap].flatten(2), g, self.adapt[stage], mean
                )
                for i, tap in enumerate(taps)
                if tap in wanted
            ]
            vectors.append([vector for vector, _ in found])
            maps.append([attention for _, attention in found])
        one = tuple(v[-1] if self.spec.blocks == "all" else torch.cat(v, 1) for v in vectors)
        levels: list[tuple[Tensor, ...]] = [one]
        if self.depth >= 2:
            levels.append(
                tuple(attend(torch.stack(v, 2), g)[0] for v, attend in zip(vectors, self.blocks, strict=True))
            )
        if self.depth >= 3:
            risen = [rise(vector) for rise, vector in zip(self.rise, levels[1], strict=True)]
            levels.append((self.network(torch.stack(risen, 2), g)[0],))
        return tuple(levels), maps


def join(squeezed: Sequence[Sequence[Tensor]], level: int, stages: int | None = None) -> Tensor:
    """Join the vectors of `level` (from 1) into one descriptor (N, dims), taking the last `stages` stages."""
    vectors = squeezed[level - 1]
    return torch.cat(tuple(vectors if stages is None else vectors[-stages:]), 1)
