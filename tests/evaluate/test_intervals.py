"""Intervals against known standard errors and their coverage."""

import numpy as np
import pytest

from pylum.evaluate.impressions import compare
from pylum.evaluate.intervals import bootstrap, bootstrap_statistic, user_weights


def test_width_is_the_standard_error_of_a_mean():
    rng = np.random.default_rng(0)
    hits = (rng.uniform(size=943) < 0.2).astype(float)
    interval = bootstrap(hits, np.arange(943), samples=4000)
    error = np.sqrt(hits.var() / 943)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    assert interval.value == hits.mean()


def test_rows_of_a_user_stand_together():
    """Ten copies of each user's row tell nothing new."""
    hits = (np.random.default_rng(0).uniform(size=200) < 0.3).astype(float)
    once = bootstrap(hits, np.arange(200))
    copied = bootstrap(np.repeat(hits, 10), np.repeat(np.arange(200), 10))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))


def test_pairing_removes_what_users_share():
    rng = np.random.default_rng(0)
    level = rng.normal(size=400)
    a, b = level + 0.1 + 0.05 * rng.normal(size=400), level + 0.05 * rng.normal(size=400)
    paired = bootstrap(a, np.arange(400), against=b)
    assert 0.08 < paired.low < paired.value < paired.high < 0.12
    alone = bootstrap(a, np.arange(400))
    assert alone.high - alone.low > 5 * (paired.high - paired.low)
    same = bootstrap(a, np.arange(400), against=a)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_seeds_widen_the_interval():
    rng = np.random.default_rng(0)
    users = rng.uniform(size=300)
    seeds = users + np.array([[-0.3], [0.0], [0.3]])
    crossed = bootstrap(seeds, np.arange(300))
    single = bootstrap(users, np.arange(300))
    assert crossed.high - crossed.low > 3 * (single.high - single.low)
    alike = bootstrap(np.stack([users, users]), np.arange(300), seed=1)
    assert alike.high - alike.low == pytest.approx(single.high - single.low, rel=0.15)


def test_coverage():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        values = rng.normal(loc=1.0, size=60)
        interval = bootstrap(values, np.arange(60), samples=300, seed=trial)
        inside += interval.low <= 1.0 <= interval.high
    assert 0.88 <= inside / 200 <= 0.99


def test_statistic_agrees_with_the_mean():
    values = np.random.default_rng(0).normal(size=150)
    users = np.arange(150) // 3
    mean = bootstrap(values, users, samples=2000)
    weighted = bootstrap_statistic(
        lambda w: float((w * values).sum() / w.sum()), users, samples=2000
    )
    assert weighted.value == pytest.approx(mean.value)
    assert (weighted.low, weighted.high) == pytest.approx((mean.low, mean.high), abs=0.02)


def test_reproducible_and_checked():
    values = np.random.default_rng(0).normal(size=5)
    assert bootstrap(values, np.arange(5)) == bootstrap(values, np.arange(5))
    assert bootstrap(values, np.arange(5), seed=1) != bootstrap(values, np.arange(5))
    weights = user_weights(7, 3, np.random.default_rng(0))
    assert weights.shape == (3, 7)
    assert (weights.sum(1) == 7).all()
    with pytest.raises(ValueError, match="users must be"):
        bootstrap(values, np.arange(4))
    with pytest.raises(ValueError, match="against must be"):
        bootstrap(values, np.arange(5), against=values[:3])


@pytest.mark.parametrize("samples", [0, -1])
def test_no_draw_is_no_interval(samples):
    with pytest.raises(ValueError, match="samples must be at least 1"):
        bootstrap([[0.0, 1.0]], [1, 2], samples=samples)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        compare([0, 1], [1, 2], {"a": [0.1, 0.2]}, samples=samples)
