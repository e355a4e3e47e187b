"""Statistics over seeds: as scipy and hand computation say, and silent where nothing can be said."""

from __future__ import annotations

import statistics as standard

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from hksd_search.confirm.statistics import ALPHA, Difference, Mean, holm, mean_of, paired, recovered_gap

accuracy = st.integers(0, 10_000).map(lambda right: right / 10_000)
pairs = st.lists(st.tuples(accuracy, accuracy), min_size=2, max_size=12)


# --- means


@given(values=st.lists(accuracy, min_size=2, max_size=12))
def test_a_mean_is_what_the_standard_library_and_scipy_say(values: list[float]) -> None:
    found = mean_of(values)
    assert found.n == len(values)
    assert found.mean == pytest.approx(standard.fmean(values))
    assert found.std == pytest.approx(standard.stdev(values), abs=1e-9)
    if len(set(values)) > 1:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=standard.fmean(values), scale=stats.sem(values))
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_a_mean_computed_by_hand() -> None:
    # 1, 2, 3: std 1, t(0.975, 2) = 4.302653, half width 4.302653 / sqrt(3) = 2.484138
    found = mean_of([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.std) == (3, 2.0, 1.0)
    assert found.low == pytest.approx(-0.484138, abs=1e-6)
    assert found.high == pytest.approx(4.484138, abs=1e-6)


def test_one_value_has_neither_spread_nor_interval() -> None:
    assert mean_of([0.9]) == Mean(1, 0.9, None, None, None)
    assert paired([0.9], [0.8]).p is None


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7123, 1.0])
@pytest.mark.parametrize("n", [2, 3, 7])
def test_values_without_spread_claim_no_certainty(value: float, n: int) -> None:
    found = mean_of([value] * n)
    assert (found.std, found.low, found.high) == (0.0, None, None)
    assert found.mean == pytest.approx(value)


# --- paired differences


@given(sample=pairs)
def test_a_paired_difference_is_what_scipy_says(sample: list[tuple[float, float]]) -> None:
    first, second = [a for a, _ in sample], [b for _, b in sample]
    found = paired(first, second)
    assume(found.std)
    expected = stats.ttest_rel(first, second)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (found.low, found.high) == (pytest.approx(interval.low, abs=1e-9), pytest.approx(interval.high, abs=1e-9))


@given(sample=pairs)
def test_the_interval_holds_zero_exactly_where_the_test_finds_nothing(sample: list[tuple[float, float]]) -> None:
    found = paired([a for a, _ in sample], [b for _, b in sample])
    if found.p is None or found.low is None or found.high is None:
        assert found.low is found.high is found.p is None
    elif abs(found.p - ALPHA) > 1e-9:
        assert (found.low <= 0 <= found.high) == (found.p > ALPHA)


@given(sample=pairs)
def test_swapped_sides_change_the_sign_and_nothing_else(sample: list[tuple[float, float]]) -> None:
    first, second = [a for a, _ in sample], [b for _, b in sample]
    one, other = paired(first, second), paired(second, first)
    assert one.mean == pytest.approx(-other.mean)
    assert one.p == pytest.approx(other.p)


def test_a_difference_that_rounding_alone_spreads_is_not_tested() -> None:
    # 0.9 - 0.8 and 0.8 - 0.7 differ in their last bit: a t test of that says p = 1e-16.
    found = paired([0.9, 0.8, 0.3], [0.8, 0.7, 0.2])
    assert found == Difference(3, pytest.approx(0.1), 0.0, None, None, None)


def test_samples_of_different_length_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired([0.1, 0.2], [0.1])


def test_a_paired_test_computed_by_hand() -> None:
    # Differences 1, 2, 3: t = 2 / (1 / sqrt(3)) = 3.4641, two-sided with 2 degrees of freedom: p = 0.0742
    assert paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).p == pytest.approx(0.0742, abs=5e-5)


# --- Holm


def test_holm_computed_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_a_test_that_could_not_be_made_still_counts() -> None:
    assert holm([0.01, None, None]) == [pytest.approx(0.03), None, None]


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_never_makes_a_p_value_smaller(values: list[float]) -> None:
    adjusted = [p for p in holm(values) if p is not None]
    assert len(adjusted) == len(values)
    assert all(p <= a <= min(1.0, p * len(values)) for p, a in zip(values, adjusted, strict=True))
    for p, a in zip(values, adjusted, strict=True):
        assert all(a <= b for q, b in zip(values, adjusted, strict=True) if q >= p)


# --- the recovered gap


def test_half_of_the_gap_computed_by_hand() -> None:
    gap = recovered_gap([0.75, 0.76, 0.74], [0.70, 0.71, 0.69], 0.80)
    assert gap.share == pytest.approx(0.5)
    assert gap.reason is None
    # The gain is 0.05 on every seed, so only the gap spreads: 0.05 / (0.1 +- 4.302653 * 0.01 / sqrt(3)).
    assert gap.low == pytest.approx(0.05 / 0.12484138, rel=1e-6)
    assert gap.high == pytest.approx(0.05 / 0.07515862, rel=1e-6)


@given(
    sample=st.lists(st.tuples(st.floats(0.3, 0.9), st.floats(0.4, 0.45)), min_size=3, max_size=8),
    teacher=st.floats(0.7, 0.95),  # so far above that most gaps are significant
)
def test_the_ends_of_the_gap_are_the_shares_that_the_t_test_just_rejects(
    sample: list[tuple[float, float]], teacher: float
) -> None:
    student, plain = [a for a, _ in sample], [b for _, b in sample]
    gap = recovered_gap(student, plain, teacher)
    assume(gap.share is not None)
    assert gap.low is not None
    assert gap.high is not None
    assert gap.share is not None
    assert gap.low <= gap.share + 1e-9
    assert gap.share <= gap.high + 1e-9
    for end in (gap.low, gap.high):
        rest = paired([s - p for s, p in zip(student, plain, strict=True)], [end * (teacher - p) for p in plain])
        assume(rest.std is not None and rest.std > 1e-5)
        assert rest.p == pytest.approx(ALPHA, rel=1e-3)


@pytest.mark.parametrize(
    ("plain", "teacher", "why"),
    [
        ([0.8, 0.9, 0.7], 0.82, "not significantly better"),
        ([0.8, 0.81, 0.79], 0.5, "not significantly better"),
        ([0.8], 0.9, "cannot be tested"),
        ([0.8, 0.8, 0.8], 0.9, "cannot be tested"),
    ],
)
def test_the_gap_is_undefined_where_the_teacher_is_not_shown_to_be_better(
    plain: list[float], teacher: float, why: str
) -> None:
    gap = recovered_gap([p + 0.01 for p in plain], plain, teacher)
    assert (gap.share, gap.low, gap.high) == (None, None, None)
    assert why in str(gap.reason)
