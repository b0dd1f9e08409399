"""Stochastic length: how often histories stay whole, how long the others are, and what is kept."""

import pytest
import torch

from pylum.data import Events
from pylum.ragged import lengths_to_offsets
from pylum.train.stochastic_length import shortened

SELECTORS = ["recency", "greedy", "uniform"]


def histories(lengths: list[int]) -> Events:
    offsets = lengths_to_offsets(torch.tensor(lengths))
    total = int(offsets[-1])
    place = torch.arange(total) - offsets[:-1].repeat_interleave(torch.tensor(lengths))
    return Events(offsets, torch.arange(total), place * 10)


@pytest.mark.parametrize("selector", SELECTORS)
def test_lengths_follow_the_rule(selector):
    """N = 256, alpha = 1.6: a part has 84 behaviours; n = 200 stays whole with .179."""
    events = histories([200] * 4000 + [84, 85, 1, 0] * 500)
    out = shortened(events, 256, 1.6, selector)
    long = out.lengths[:4000]
    assert set(long.tolist()) == {84, 200}
    share = float((long == 200).double().mean())
    assert share == pytest.approx(256**1.6 / 200**2, abs=3 * (0.18 * 0.82 / 4000) ** 0.5)
    rest = out.lengths[4000:].view(500, 4)
    assert bool((rest[:, 0] == 84).all() and (rest[:, 2] == 1).all() and (rest[:, 3] == 0).all())
    assert int(rest[:, 1].min()) >= 84 and int(rest[:, 1].max()) == 85


def test_published_length():
    out = shortened(histories([4096] * 50), 4096, 1.6, "greedy")
    assert int(out.lengths.min()) == 776


@pytest.mark.parametrize("selector", SELECTORS)
def test_what_is_kept_stays_in_order_and_in_its_history(selector):
    events = histories([50, 3, 70, 0, 64])
    out = shortened(events, 70, 1.3, selector)
    assert torch.equal(out.times, events.times[out.items])
    for b in range(5):
        rows = out.items[out.offsets[b] : out.offsets[b + 1]]
        assert bool((rows.diff() > 0).all())
        assert bool(((rows >= events.offsets[b]) & (rows < events.offsets[b + 1])).all())
    assert out.lengths.tolist()[1] == 3


def kept_share(selector: str) -> torch.Tensor:
    """How often each place of a history of 100 is among those kept, where it is cut."""
    out = shortened(histories([100] * 5000), 100, 1.4, selector)
    cut = out.lengths < 100
    parts = out.items[cut.repeat_interleave(out.lengths)] % 100
    return torch.bincount(parts, minlength=100) / int(cut.sum())


def test_selectors_keep_what_they_say():
    greedy, uniform, recency = (kept_share(s) for s in ("greedy", "uniform", "recency"))
    limit = int(100**0.7)
    assert torch.equal(greedy, (torch.arange(100) >= 100 - limit).float())
    assert bool((uniform - limit / 100).abs().max() < 0.03)
    # Weights 1 - age / sum of ages: .98 for the first behaviour, 1 for the last.
    assert float(recency[:30].mean()) < float(recency[-30:].mean())
    assert float(recency.sum()) == pytest.approx(limit, rel=1e-5)


def test_recency_prefers_what_is_recent():
    """Three behaviours, two kept: the oldest has weight 1 - 90 / 100."""
    offsets = torch.arange(20001) * 3
    times = torch.tensor([0, 80, 90]).repeat(20000)
    events = Events(offsets, torch.arange(60000), times)
    out = shortened(events, 4, 1.001, "recency")
    assert set(out.lengths.tolist()) == {2, 3}
    cut = out.lengths == 2
    rows = out.items[cut.repeat_interleave(out.lengths)] % 3
    share = torch.bincount(rows, minlength=3) / int(cut.sum())
    weight = torch.tensor([0.1, 0.9, 1.0])
    first = weight / weight.sum()
    expected = first.clone()
    for i in range(3):
        for j in range(3):
            if i != j:
                expected[j] += first[i] * weight[j] / (weight.sum() - weight[i])
    assert torch.allclose(share, expected, atol=0.015)


def test_nothing_long_nothing_drawn():
    events = histories([3, 2])
    assert shortened(events, 100, 1.5, "recency") is events
