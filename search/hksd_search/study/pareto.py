"""Domination among points of which every coordinate is to be minimised.

A point dominates another that it is not worse than in any coordinate and better than in one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def dominating(points: ArrayLike, point: Sequence[float]) -> NDArray[np.bool_]:
    """Which of some points (n, k) dominate `point` (k,): a mask (n,)."""
    others, mine = _table(points, point)
    better: NDArray[np.bool_] = np.all(others <= mine, axis=1) & np.any(others < mine, axis=1)
    return better


def dominated(points: ArrayLike, point: Sequence[float]) -> NDArray[np.bool_]:
    """Which of some points (n, k) `point` (k,) dominates: a mask (n,)."""
    others, mine = _table(points, point)
    worse: NDArray[np.bool_] = np.all(others >= mine, axis=1) & np.any(others > mine, axis=1)
    return worse


def beaten(points: Sequence[Sequence[float]]) -> list[int]:
    """How many of some points (n, k) dominate each of them (Fonseca and Fleming 1993 rank by it)."""
    return [int(dominating(points, point).sum()) for point in points]


def _table(points: ArrayLike, point: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.asarray(points, dtype=float).reshape(-1, len(point)), np.asarray(point, dtype=float)
