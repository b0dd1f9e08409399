"""Stochastic length (arXiv 2402.17152, section 3.3): long histories are trained on in part."""

from __future__ import annotations

import torch

from pylum.data.events import Events
from pylum.ragged import lengths_to_offsets


def shortened(events: Events, most: int, alpha: float, selector: str) -> Events:
    """Each history whole or in part; random numbers come from torch's own generator.

    A history of ``n`` behaviours stays whole where ``n <= N^(alpha / 2)``, else with probability
    ``N^alpha / n^2``; otherwise ``N^(alpha / 2)`` of its behaviours are kept, in their order.
    Attention over any history so costs ``2 N^alpha`` pairs at most in expectation.

    Args:
        events: histories.
        most: ``N``, the longest history.
        alpha: in (1, 2].
        selector: ``"greedy"`` keeps the last ones; ``"uniform"`` draws without replacement;
            ``"recency"`` draws with weights ``1 - age / sum of ages``, ages being the times since
            behaviours until the history's last.
    """
    lengths = events.lengths
    limit = max(1, int(most ** (alpha / 2)))
    chance = most**alpha / lengths.clamp(min=1).double() ** 2
    device = lengths.device
    cut = (lengths > limit) & (
        torch.rand(len(lengths), device=device, dtype=torch.float64) > chance
    )
    if not bool(cut.any()):
        return events
    owner = torch.repeat_interleave(lengths)
    place = torch.arange(events.total, device=device) - events.offsets[owner]
    if selector == "greedy":
        key = place.double()
    else:
        # The largest of log(weight) plus Gumbel noise are a draw without replacement.
        uniform = torch.rand(events.total, device=device, dtype=torch.float64).clamp(min=1e-300)
        key = -torch.log(-torch.log(uniform))
        if selector == "recency":
            key = key + _recency(events, owner).log()
    order = torch.argsort(key, descending=True, stable=True)
    order = order[torch.argsort(owner[order], stable=True)]
    kept = torch.empty(events.total, dtype=torch.bool, device=device)
    kept[order] = (place < limit) | ~cut[owner]
    counts = torch.where(cut, limit, lengths)
    return events.take(kept.nonzero()[:, 0], lengths_to_offsets(counts))


def _recency(events: Events, owner: torch.Tensor) -> torch.Tensor:
    """``[N]`` float64 weights."""
    last = events.times[(events.offsets[1:] - 1).clamp(min=0)]
    age = (last[owner] - events.times).double()
    total = torch.zeros(len(events), dtype=torch.float64, device=age.device)
    total.index_add_(0, owner, age)
    return (1 - age / total[owner].clamp(min=1.0)).clamp(min=1e-12)
