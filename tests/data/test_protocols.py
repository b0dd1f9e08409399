"""Protocols: who is trained on, who is scored, and what may be seen."""

import itertools
import os
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pylum.data import Interactions, movielens_100k
from pylum.data.protocols import core, one_by_one, stages
from pylum.evaluate.floors import mean_floors
from pylum.evaluate.metrics import auc


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
    expected = {"train": [], "valid": [], "test": []}
    by_user = {}
    for row in raw_targets(data):
        by_user.setdefault(row[0], []).append(row)
    for rows in by_user.values():
        last = len(rows) if len(rows) < 3 else len(rows) - 2
        expected["train"] += rows[:last]
        expected["valid"] += rows[last : last + 1]
        expected["test"] += rows[last + 1 :]
    assume(all(expected.values()))
    train, valid, test = data.split("loo-full")
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
    with pytest.raises(ValueError, match="loo-full, global-time, rest-auc, din-auc, got 'random'"):
        data.split("random")
    with pytest.raises(ValueError, match="must be whole"):
        data.split("loo-full")[0].split("loo-full")
    with pytest.raises(ValueError, match="train part without a target"):
        Interactions.from_arrays([1, 1, 2], [1, 2, 3], [7, 7, 7]).split("global-time")
    with pytest.raises(ValueError, match="same data set"):
        data.merged(data)


def in_core(rows, least=5):
    while True:
        users = Counter(r[0] for r in rows)
        items = Counter(r[1] for r in rows)
        left = [r for r in rows if users[r[0]] >= least and items[r[1]] >= least]
        if left == rows:
            return rows
        rows = left


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_rest_auc_against_a_loop(seed):
    data = random_data(seed, False)
    kept = in_core(raw_targets(data))
    by_user = {}
    for row in kept:
        by_user.setdefault(row[0], []).append(row)
    expected = {"train": [], "valid": [], "test": []}
    for rows in by_user.values():
        for place, row in enumerate(rows):
            share = place / len(rows)
            expected["train" if share < 0.8 else "valid" if share < 0.9 else "test"].append(row)
    assume(all(expected.values()))
    for part in data.split("rest-auc"):
        assert raw_targets(part) == expected[part.part]
    assert raw_targets(core(data)) == kept
    for a, b in zip(core(data).split("rest-auc"), data.split("rest-auc"), strict=True):
        assert raw_targets(a) == raw_targets(b)


def many_users(users=400):
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(users), rng.integers(1, 12, users))
    return Interactions.from_arrays(owner, rng.integers(0, 9, len(owner)), np.arange(len(owner)))


def test_din_auc_divides_users_by_their_id_alone():
    data = many_users()
    parts = data.split("din-auc")
    users = [set(part.users) for part in parts]
    assert sum(map(len, users)) == len(set().union(*users))
    scored = int((data.events.lengths > 5).sum())
    assert sum(map(len, users)) == scored
    for share, part in zip((0.65, 0.07, 0.28), parts, strict=True):
        assert len(part) == pytest.approx(share * scored, abs=0.06 * scored)
        place = part.events.targets.nonzero().squeeze(1)
        owner = torch.repeat_interleave(part.events.lengths)[place]
        assert ((place - part.events.offsets[owner]) >= 5).all()
        assert torch.equal(part.events.lengths, data.histories(part.users).events.lengths)
    # Another data set of some of these users puts them where they were.
    fewer = many_users(200)
    for part, other in zip(parts, fewer.split("din-auc"), strict=True):
        assert {u for u in other.users if u < 190} == {u for u in part.users if u < 190}


@pytest.mark.parametrize("by", ["time", "user", "users"])
def test_stages_share_no_target(by):
    data = many_users()
    parts = stages(data, by)
    assert [part.part for part in parts] == ["user model", "ranker", "valid", "test"]
    hashes = np.concatenate([part.event_hashes() for part in parts])
    assert len(np.unique(hashes)) == len(hashes)
    if by == "time":
        latest = [part.events.times[:].max() for part in parts]
        assert latest == sorted(latest)
        assert all(
            int(b.events.times[targets_of(b)].min()) > int(a.events.times[targets_of(a)].max())
            for a, b in itertools.pairwise(parts)
        )
    if by == "users":
        users = [set(part.users) for part in parts]
        assert sum(map(len, users)) == len(set().union(*users))
    else:
        assert len(hashes) == data.events.total
    with pytest.raises(ValueError, match="by must be 'time', 'user' or 'users', got 'item'"):
        stages(data, "item")


def targets_of(part):
    return slice(None) if part.events.targets is None else part.events.targets


def test_one_by_one_orders_events_of_a_second():
    data = Interactions.from_arrays([1, 1, 1, 2, 1], list("abcde"), [7, 7, 9, 7, 9])
    after = one_by_one(data)
    assert torch.equal(after.events.items, data.events.items)
    assert after.events.times.tolist() == [0, 1, 2000, 2001, 0]
    for user in range(2):
        times = after.events.times[after.events.offsets[user] : after.events.offsets[user + 1]]
        assert bool((times.diff() > 0).all())
    with pytest.raises(ValueError, match="1001 events in one second"):
        one_by_one(Interactions.from_arrays([1] * 1001, [1] * 1001, [5] * 1001))


@pytest.fixture(scope="module")
def films():
    wheel = os.environ.get("PYLUM_TEST_ML100K")
    if wheel is None:
        pytest.skip("PYLUM_TEST_ML100K names no recbole wheel")
    return core(movielens_100k(path=wheel))


@pytest.mark.parametrize(
    "protocol, item, both", [("rest-auc", 0.735, 0.770), ("global-time", 0.697, 0.696)]
)
def test_floors_of_movielens_100k(films, protocol, item, both):
    """The figures of the literature check: they say that protocol and labels are what is meant."""
    train, valid, test = films.split(protocol)
    if protocol == "global-time":
        test = valid.merged(test)  # 80/20, as the figures were taken
    label = films.events.outcomes["rating"].numpy() >= 4
    owner = np.repeat(np.arange(len(films)), films.events.lengths.numpy())
    items = films.events.items.numpy()
    fit, asked = (part.whole_rows[targets_of(part)] for part in (train, test))
    floors = mean_floors(label[fit], owner[fit], items[fit], owner[asked], items[asked])
    values = [auc(label[asked], score) for score in floors.values()]
    assert values == pytest.approx([item, both], abs=0.003)
