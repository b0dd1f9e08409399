"""Ranks found in batches against ranks found one by one."""

from dataclasses import replace

import pytest
import torch

from pylum.train.validation import Validation
from tests.model.world import ITEMS, make_events, make_model, positions


@pytest.mark.parametrize("remove_seen", [True, False])
@pytest.mark.parametrize("query_time", [True, False])
@pytest.mark.parametrize("max_length", [40, 5])
def test_ranks(max_length, query_time, remove_seen):
    model = make_model(max_length=max_length)
    events = make_events([9, 1, 0, 14, 6])
    targets = torch.arange(events.total) % 3 == 0
    events = replace(events, targets=targets)
    validation = Validation(
        events,
        max_length=max_length,
        batch_events=8,
        seed=0,
        remove_seen=remove_seen,
        query_time=query_time,
    )
    found = validation.ranks(model)
    vectors, expected = model.item_vectors(), []
    for b in range(len(events)):
        begin, end = int(events.offsets[b]), int(events.offsets[b + 1])
        for site in range(begin, end):
            if not targets[site]:
                continue
            index = torch.arange(max(begin, site - max_length), site)
            history = events.take(index, torch.tensor([0, len(index)]))
            gap = events.times[site] - events.times[site - 1] if len(index) else torch.tensor(-1)
            clock = (gap[None], events.times[site : site + 1]) if query_time else ()
            query = model.query_tokens(
                {n: c[site : site + 1] for n, c in events.conditions.items()}, *clock
            )
            x = torch.cat([model.history_tokens(history), query])
            where = torch.cat([positions(history.offsets), torch.tensor([len(index)])])
            scores = (
                model.answers(model.run(x, torch.tensor([0, len(x)]), where)[-1:]) @ vectors.T
            )[0]
            goal = int(events.items[site])
            kept = float(scores[goal].detach())
            scores[0] = -torch.inf
            scores[goal] = kept
            if remove_seen:
                scores[events.items[begin:site]] = -torch.inf
            # The target competes even where it was seen.
            scores[goal] = kept
            rows = torch.arange(ITEMS)
            better = (scores > scores[goal]) | ((scores == scores[goal]) & (rows < goal))
            expected.append(int(better.sum()))
    assert found.tolist() == expected
    assert model.training is False


def test_scores():
    model = make_model()
    validation = Validation(make_events([ITEMS]), max_length=40, batch_events=50, seed=0)
    ranks = validation.ranks(model).double()
    scores = validation.scores(model)
    assert scores["hr@10"] == float((ranks < 10).double().mean())
    gains = [1 / torch.log2(r + 2).item() for r in ranks if r < 10]
    assert scores["ndcg@10"] == pytest.approx(sum(gains) / len(ranks))


def test_no_targets():
    events = replace(make_events([4]), targets=torch.zeros(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="valid must have at least one target"):
        Validation(events, max_length=4, batch_events=8, seed=0)
