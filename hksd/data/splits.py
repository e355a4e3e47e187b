"""Which rows belong where: pure functions of (labels, seed) that know no pixels and no files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

# A stream for each function, so that which images a limit keeps says nothing about which are held out.
_SUBSET_STREAM, _SPLIT_STREAM, _SAMPLE_STREAM = 1, 2, 3


def balanced_subset(labels: Rows, limit: int, seed: int) -> Rows:
    """Draw `limit` rows with equal counts per class, up to rounding.

    A class with too few images gives all it has and the others fill the gap. For one seed a smaller limit draws a
    subset of what a larger one draws, so results at growing limits stay comparable.

    Args:
        labels: (N,), int64.
        limit: number of rows to keep, 1 to N.
        seed: at least 0.

    Returns:
        Rows kept, (limit,), ascending.

    Raises:
        ValueError: `limit` is below 1 or above N.
    """
    if not 1 <= limit <= len(labels):
        raise ValueError(f"limit must be 1 to {len(labels)}, the number of images (got {limit})")
    groups = _shuffled_classes(labels, seed, _SUBSET_STREAM)
    counts = np.array([len(group) for group in groups])
    quotas = np.zeros_like(counts)
    while (left := limit - int(quotas.sum())) > 0:
        able = np.flatnonzero(quotas < counts)
        each = left // len(able)
        if each:
            quotas[able] = np.minimum(counts[able], quotas[able] + each)
        else:
            quotas[able[:left]] += 1
    return np.sort(np.concatenate([group[:quota] for group, quota in zip(groups, quotas, strict=True)]))


def stratified_split(labels: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """Hold out `share` of every class, up to rounding; every class stands on both sides.

    Args:
        labels: (N,), int64.
        share: part to hold out, above 0 and below 1.
        seed: at least 0.

    Returns:
        Training rows and held-out rows: ascending, disjoint, together 0 to N-1.

    Raises:
        ValueError: `share` is out of range, or a class has fewer than two images.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1 (got {share})")
    groups = _shuffled_classes(labels, seed, _SPLIT_STREAM)
    counts = np.array([len(group) for group in groups])
    if not len(counts) or counts.min() < 2:
        raise ValueError("every class needs at least two images, one for each side of a split")
    held = np.clip(_apportion(counts * share), 1, counts - 1)
    train = np.concatenate([group[count:] for group, count in zip(groups, held, strict=True)])
    held_out = np.concatenate([group[:count] for group, count in zip(groups, held, strict=True)])
    return np.sort(train), np.sort(held_out)


def sample(count: int, limit: int, seed: int) -> Rows:
    """Draw `limit` of `count` rows whatever their class (all where there are not more): (M,), ascending."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng([seed, _SAMPLE_STREAM]).permutation(count)[:limit])


def _shuffled_classes(labels: Rows, seed: int, stream: int) -> list[Rows]:
    """Rows of every class that occurs, by ascending label, each in random order."""
    order = np.random.default_rng([seed, stream]).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    starts = np.flatnonzero(np.diff(labels[order])) + 1
    return [group.astype(np.int64) for group in np.split(order, starts) if len(group)]


def _apportion(quotas: NDArray[np.float64]) -> Rows:
    """Round quotas to whole numbers that keep their sum (largest remainders; ties go to lower classes).

    Rounding each class alone would hold out 100 of 1,400 images where 10 % of 100 classes of 14 are asked for.
    """
    whole = np.floor(quotas).astype(np.int64)
    missing = round(float(quotas.sum())) - int(whole.sum())
    whole[np.argsort(whole - quotas, kind="stable")[:missing]] += 1
    return whole
