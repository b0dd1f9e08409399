"""Protocols: who is trained on, who is scored, and what may be seen."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pylum.data import Interactions


def raw_targets(data):
    """Targets as (user, item, time)."""
    owner = np.repeat(np.arange(len(data)), data.events.lengths.numpy())
    items = data.vocabs.items.values(data.events.items)
    rows = zip([data.users[u] for u in owner], items, data.events.times.tolist(), strict=True)
    mask = data.events.targets
    mask = [True] * data.events.total if mask is None else mask.tolist()
    return [row for row, scored in zip(rows, mask, strict=True) if scored]


def random_data(seed, with_targets):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 200))
    target = rng.random(n) < 0.6 if with_targets else None
    return Interactions.from_arrays(
        rng.integers(0, 8, n), rng.integers(0, 9, n), rng.integers(0, 50, n), target=target
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.booleans())
def test_loo_full_against_a_loop(seed, with_targets):
    data = random_data(seed, with_targets)
    train, valid, test = data.split("loo-full")
    expected = {"train": [], "valid": [], "test": []}
    by_user = {}
    for row in raw_targets(data):
        by_user.setdefault(row[0], []).append(row)
    for rows in by_user.values():
        last = len(rows) if len(rows) < 3 else len(rows) - 2
        expected["train"] += rows[:last]
        expected["valid"] += rows[last : last + 1]
        expected["test"] += rows[last + 1 :]
    for part in (train, valid, test):
        assert raw_targets(part) == expected[part.part]
    for part in (valid, test):
        # The scored event is the last one seen.
        assert part.events.targets[part.events.offsets[1:] - 1].all()
        for user, history in zip(part.users, range(len(part)), strict=True):
            whole = data.histories([user]).events
            seen = slice(int(part.events.offsets[history]), int(part.events.offsets[history + 1]))
            items = part.events.items[seen]
            assert torch.equal(items, whole.items[: len(items)])
    assert sorted(raw_targets(train.merged(valid))) == sorted(
        raw_targets(train) + raw_targets(valid)
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.booleans())
def test_global_time_cuts_at_quantiles(seed, with_targets):
    data = random_data(seed, with_targets)
    times = sorted(data.events.times.tolist())
    first, second = times[int(0.8 * len(times))], times[int(0.9 * len(times))]
    masks = [[r[2] < first, first <= r[2] < second, second <= r[2]] for r in raw_targets(data)]
    assume(all(any(mask) for mask in zip(*masks, strict=True)))
    train, valid, test = data.split("global-time")
    rows = raw_targets(data)
    assert raw_targets(train) == [r for r in rows if r[2] < first]
    assert raw_targets(valid) == [r for r in rows if first <= r[2] < second]
    assert raw_targets(test) == [r for r in rows if r[2] >= second]
    assert int(valid.events.times.max()) < second
    both = train.merged(valid)
    assert sorted(raw_targets(both)) == sorted(r for r in rows if r[2] < second)


@pytest.mark.parametrize("protocol", ["loo-full", "global-time"])
def test_targets_of_parts_never_meet_whatever_the_coding(protocol):
    data = random_data(3, False)
    train, valid, test = data.split(protocol)
    hashes = [part.event_hashes() for part in (train, valid, test)]
    assert sum(map(len, hashes)) == len(np.unique(np.concatenate(hashes)))
    assert np.isin(np.concatenate(hashes), data.event_hashes()).all()
    assert np.array_equal(train.merged(valid).event_hashes(), np.sort(np.concatenate(hashes[:2])))
    # The same events in another order of users and items have other rows and the same hashes.
    owner = np.repeat(np.asarray(data.users), data.events.lengths.numpy())
    items = np.asarray(data.vocabs.items.values(data.events.items))
    times = data.events.times.numpy()
    order = np.lexsort((np.arange(len(owner)), -owner))
    again = Interactions.from_arrays(owner[order], items[order], times[order])
    assert not torch.equal(again.events.items, data.events.items)
    assert np.array_equal(again.event_hashes(), data.event_hashes())
    assert again.fingerprint == data.fingerprint == test.fingerprint
    assert np.array_equal(again.split(protocol)[2].event_hashes(), hashes[2])


def test_equal_events_are_told_apart():
    data = Interactions.from_arrays(["u"] * 4, ["i"] * 4, [5] * 4)
    train, valid, test = data.split("loo-full")
    assert len(np.unique(data.event_hashes())) == 4
    assert not np.isin(test.event_hashes(), train.merged(valid).event_hashes()).any()


def test_errors():
    data = random_data(1, False)
    with pytest.raises(ValueError, match="loo-full, global-time, got 'random'"):
        data.split("random")
    with pytest.raises(ValueError, match="must be whole"):
        data.split("loo-full")[0].split("loo-full")
    with pytest.raises(ValueError, match="train part without a target"):
        Interactions.from_arrays([1, 1, 2], [1, 2, 3], [7, 7, 7]).split("global-time")
    with pytest.raises(ValueError, match="same data set"):
        data.merged(data)
