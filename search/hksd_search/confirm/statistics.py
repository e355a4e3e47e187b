"""What a few seeds can tell: means with intervals, paired tests, a correction for many tests, the recovered gap.

Pure functions of numbers. Intervals are t intervals: they describe how the result varies with the seed, not how it
would vary with other test images. Where nothing can be said (one seed, or values without any spread), an interval and
a p value are None, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
ROUNDING = 1e-9  # a smaller spread of accuracies is rounding: one image in a million, once in 100 seeds, makes 1e-7


@dataclass(frozen=True)
class Mean:
    """The mean of a sample with its 95 % t interval.

    Attributes:
        n: number of values, at least 1.
        mean: their mean.
        std: sample standard deviation (n - 1); None for one value.
        low: lower end of the interval; None for one value, and for values without spread.
        high: upper end, likewise.
    """

    n: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference(Mean):
    """The mean of paired differences.

    Attributes:
        p: two-sided p value of the paired t test of "no difference"; None where there is no interval.
    """

    p: float | None


@dataclass(frozen=True)
class Gap:
    """The share of a gap that was closed.

    Attributes:
        share: 0 = no better than without a teacher, 1 = as good as the teacher; None where it is undefined.
        low: lower end of its 95 % interval; None where it is undefined.
        high: upper end, likewise.
        reason: why the share is undefined, or None.
    """

    share: float | None
    low: float | None
    high: float | None
    reason: str | None


def mean_of(values: Sequence[float]) -> Mean:
    """Return mean, standard deviation and t interval of at least one value.

    The interval is mean +- t(0.975, n - 1) std / sqrt(n) (Student 1908).
    """
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Mean(n, mean, None, None, None)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    if std < ROUNDING:
        return Mean(n, mean, 0.0, None, None)
    reach = _t(n) * std / math.sqrt(n)
    return Mean(n, mean, std, mean - reach, mean + reach)


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two samples whose values belong together one by one: `first` - `second`, paired t test.

    Args:
        first: at least one value.
        second: as many.
    """
    found = mean_of([a - b for a, b in zip(first, second, strict=True)])
    p = None
    if found.std:
        t = found.mean / (found.std / math.sqrt(found.n))
        p = 2 * float(stats.t.sf(abs(t), found.n - 1))
    return Difference(found.n, found.mean, found.std, found.low, found.high, p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust the p values of a family of tests, so that the chance of any false finding stays below ALPHA.

    Step down: the i-th smallest of m (from 0) is multiplied by m - i, never falls below a smaller one's, and is at
    most 1 (Holm 1979). A test that could not be made (None) stays None and still counts in m.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        adjusted[i] = highest
    return adjusted


def recovered_gap(student: Sequence[float], plain: Sequence[float], teacher: float) -> Gap:
    """Return (student - plain) / (teacher - plain), each a mean over the same seeds, with its interval.

    The interval is Fieller's (1954) for a ratio of paired means: all shares s for which student - plain -
    s (teacher - plain) does not differ from 0 by the t test. It is bounded exactly where the teacher is significantly
    better than `plain`; elsewhere the share is undefined.

    Args:
        student: accuracies of the student, at least one.
        plain: accuracies without a teacher, on the same seeds.
        teacher: accuracy of the one teacher.
    """
    gap, gain = paired([teacher] * len(plain), plain), paired(student, plain)
    if gap.p is None or gap.p >= ALPHA or gap.mean <= 0:
        why = "is not significantly better" if gap.p is not None else "cannot be tested to be better"
        return Gap(None, None, None, f"the teacher {why} than the student without distillation")
    # A share s is inside where (gain - s gap)^2 <= t^2 var(gain - s gap) / n: a quadratic a s^2 - 2 b s + c <= 0.
    scale = _t(gap.n) ** 2 / gap.n
    gains, gaps = [s - p for s, p in zip(student, plain, strict=True)], [teacher - p for p in plain]
    shared = math.fsum((x - gain.mean) * (y - gap.mean) for x, y in zip(gains, gaps, strict=True)) / (gap.n - 1)
    a = gap.mean**2 - scale * (gap.std or 0.0) ** 2
    b = gap.mean * gain.mean - scale * shared
    c = gain.mean**2 - scale * (gain.std or 0.0) ** 2
    root = math.sqrt(max(0.0, b * b - a * c))
    return Gap(gain.mean / gap.mean, (b - root) / a, (b + root) / a, None)


def _t(n: int) -> float:
    """The t quantile that goes with `n` values."""
    return float(stats.t.ppf(1 - ALPHA / 2, n - 1))
