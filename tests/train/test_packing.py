"""Windows and batches: every event once, in order, in windows that fit."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pylum.data import Events
from pylum.ragged import lengths_to_offsets
from pylum.train.packing import gather, plan_epoch


def plan(lengths, max_length, batch_events, seed=0):
    offsets = lengths_to_offsets(torch.tensor(lengths))
    return plan_epoch(offsets, max_length, batch_events, torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 70), min_size=1, max_size=12),
    st.integers(1, 20),
    st.integers(1, 50),
    st.integers(0, 9),
)
def test_every_event_once_in_windows_that_fit(lengths, max_length, batch_events, seed):
    offsets = lengths_to_offsets(torch.tensor(lengths))
    owner = torch.repeat_interleave(torch.tensor(lengths))
    seen = []
    for starts, sizes in plan(lengths, max_length, batch_events, seed):
        assert int(sizes.min()) >= 1 and int(sizes.max()) <= max_length
        # A batch ends with the window that fills it.
        assert int(sizes[:-1].sum()) < batch_events + max_length
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            assert len(owner[start : start + size].unique()) == 1
            seen += range(start, start + size)
    assert sorted(seen) == list(range(int(offsets[-1])))


def test_windows_move_between_epochs_and_follow_the_seed():
    def begins(seed):
        return sorted(s for starts, _ in plan([100], 30, 1000, seed) for s in starts.tolist())

    assert begins(1) == begins(1)
    assert len({tuple(begins(seed)) for seed in range(20)}) > 5
    assert all(begins(seed)[0] == 0 for seed in range(20))


def test_users_are_drawn_at_a_rate_of_their_length():
    """A user of n events is in the epoch with probability min(1, rate / n), whole."""
    lengths, rate, epochs = [2, 5, 10, 40, 0], 4.0, 3000
    offsets = lengths_to_offsets(torch.tensor(lengths))
    owner = torch.repeat_interleave(torch.tensor(lengths))
    found = torch.zeros(5)
    for seed in range(epochs):
        generator = torch.Generator().manual_seed(seed)
        batches = plan_epoch(offsets, 15, 1000, generator, rate)
        read = torch.zeros(5, dtype=torch.int64)
        for starts, sizes in batches:
            read.index_add_(0, owner[starts], sizes)
        assert all(r in (0, n) for r, n in zip(read.tolist(), lengths, strict=True))
        found += read > 0
    expected = torch.tensor([1.0, 0.8, 0.4, 0.1, 0.0])
    # Five deviations of a share of 3,000 draws.
    assert bool((found / epochs - expected).abs().max() < 5 * 0.5 / epochs**0.5)


def test_an_epoch_has_a_user_however_small_the_rate():
    offsets = lengths_to_offsets(torch.tensor([3, 4, 900]))
    owner = torch.repeat_interleave(torch.tensor([3, 4, 900]))
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        batches = plan_epoch(offsets, 1000, 10, generator, 1e-6)
        assert len(torch.cat([owner[starts] for starts, _ in batches])) == 1


def test_short_users_are_never_cut():
    (starts, sizes), *_ = plan([30, 30], 30, 1000)
    assert sorted(starts.tolist()) == [0, 30] and sizes.tolist() == [30, 30]


def test_no_events():
    assert plan([0, 0], 5, 10) == []


def test_gather_takes_every_column():
    n = 10
    events = Events(
        torch.tensor([0, 6, 10]),
        torch.arange(n),
        torch.arange(n) * 10,
        {"c": torch.arange(n) + 100},
        {"o": torch.arange(n) / 2},
        torch.arange(n) % 2 == 0,
    )
    batch = gather(events, torch.tensor([7, 1]), torch.tensor([2, 3]))
    assert batch.offsets.tolist() == [0, 2, 5]
    assert batch.items.tolist() == [7, 8, 1, 2, 3]
    assert batch.times.tolist() == [70, 80, 10, 20, 30]
    assert batch.conditions["c"].tolist() == [107, 108, 101, 102, 103]
    assert batch.outcomes["o"].tolist() == [3.5, 4.0, 0.5, 1.0, 1.5]
    assert batch.targets.tolist() == [False, True, False, True, False]
