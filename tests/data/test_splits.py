"""Properties of the pure functions that choose rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hksd.data.splits import balanced_subset, stratified_split

# A busy machine may pause in any example.
patient = settings(deadline=None)
seeds = st.integers(0, 2**32)


@st.composite
def labels_of(draw: st.DrawFn, least: int) -> np.ndarray:
    counts = draw(st.lists(st.integers(least, 30), min_size=1, max_size=8))
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(draw(seeds)).permutation(labels).astype(np.int64)


@patient
@given(labels_of(1), st.data(), seeds)
def test_a_subset_has_the_asked_number_of_distinct_ascending_rows(labels, data, seed):
    limit = data.draw(st.integers(1, len(labels)))
    rows = balanced_subset(labels, limit, seed)
    assert rows.dtype == np.int64
    assert len(rows) == limit
    assert (np.diff(rows) > 0).all()
    assert rows[0] >= 0
    assert rows[-1] < len(labels)


@patient
@given(labels_of(1), st.data(), seeds)
def test_class_counts_differ_by_more_than_one_only_where_a_class_is_used_up(labels, data, seed):
    limit = data.draw(st.integers(1, len(labels)))
    available = np.bincount(labels)
    kept = np.bincount(labels[balanced_subset(labels, limit, seed)], minlength=len(available))
    assert (kept <= available).all()
    assert ((kept == available) | (kept >= kept.max() - 1)).all()


@patient
@given(labels_of(1), st.data(), seeds)
def test_a_smaller_limit_draws_a_part_of_what_a_larger_one_draws(labels, data, seed):
    small, large = sorted(data.draw(st.tuples(*[st.integers(1, len(labels))] * 2)))
    assert set(balanced_subset(labels, small, seed)) <= set(balanced_subset(labels, large, seed))


@patient
@given(labels_of(2), st.floats(0.01, 0.99), seeds)
def test_a_split_is_disjoint_complete_and_ascending(labels, share, seed):
    train, held_out = stratified_split(labels, share, seed)
    assert train.dtype == held_out.dtype == np.int64
    assert sorted([*train, *held_out]) == list(range(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held_out) > 0).all()


@patient
@given(labels_of(2), st.floats(0.01, 0.99), seeds)
def test_every_class_stands_on_both_sides_in_its_share(labels, share, seed):
    train, held_out = stratified_split(labels, share, seed)
    assert set(labels[train]) == set(labels[held_out]) == set(labels)
    counts, held = np.bincount(labels), np.bincount(labels[held_out])
    assert (np.abs(held - counts * share) <= 1).all()


@patient
@given(st.integers(2, 40), st.integers(2, 40), st.floats(0.05, 0.95), seeds)
def test_the_held_out_total_is_the_share_of_all_images(classes, each, share, seed):
    labels = np.repeat(np.arange(classes), each)
    held_out = len(stratified_split(labels, share, seed)[1])
    # Halves may go either way: the product of floats does not end in exactly half.
    assert abs(held_out - np.clip(classes * each * share, classes, classes * (each - 1))) < 0.5 + 1e-6


@patient
@given(labels_of(2), st.floats(0.01, 0.99), seeds)
def test_one_seed_draws_the_same_rows_every_time(labels, share, seed):
    limit = (len(labels) + 1) // 2
    assert (balanced_subset(labels, limit, seed) == balanced_subset(labels.copy(), limit, seed)).all()
    for one, other in zip(stratified_split(labels, share, seed), stratified_split(labels, share, seed), strict=True):
        assert (one == other).all()


def test_another_seed_draws_other_rows():
    labels = np.arange(1000) % 10
    assert set(balanced_subset(labels, 100, 0)) != set(balanced_subset(labels, 100, 1))
    assert set(stratified_split(labels, 0.1, 0)[1]) != set(stratified_split(labels, 0.1, 1)[1])


def test_what_a_limit_keeps_says_nothing_about_what_is_held_out():
    labels = np.arange(10_000) % 10
    kept, held_out = balanced_subset(labels, 5000, 0), stratified_split(labels, 0.5, 0)[1]
    # Independent halves share a quarter of all rows: 2500, standard deviation 25.
    assert 2350 < len(np.intersect1d(kept, held_out)) < 2650


def test_rows_of_a_seed_stay_what_they_were():
    # Written down once: results of different releases are comparable only while these rows stay.
    labels = np.arange(40) % 4
    assert balanced_subset(labels, 8, 0).tolist() == [4, 5, 15, 22, 24, 31, 33, 38]
    assert stratified_split(labels, 0.2, 0)[1].tolist() == [8, 10, 13, 16, 26, 27, 29, 39]


@pytest.mark.parametrize("limit", [0, 5])
def test_a_limit_outside_the_set_is_refused(limit):
    with pytest.raises(ValueError, match="limit must be 1 to 4"):
        balanced_subset(np.zeros(4, np.int64), limit, 0)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match="share must be above 0 and below 1"):
        stratified_split(np.zeros(4, np.int64), share, 0)


@pytest.mark.parametrize("labels", [[], [0], [0, 0, 1]])
def test_a_class_with_one_image_cannot_be_split(labels):
    with pytest.raises(ValueError, match="at least two images"):
        stratified_split(np.array(labels, np.int64), 0.5, 0)
