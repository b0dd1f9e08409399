"""Reference of :func:`pylum.ops.topk`."""

from __future__ import annotations

import torch

from pylum.ragged import Ragged


def topk(
    queries: torch.Tensor,
    items: torch.Tensor,
    k: int,
    *,
    exclude: Ragged | None = None,
    candidates: Ragged | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`pylum.ops.topk`, argument for argument."""
    scores = queries.double() @ items.double().T
    allowed = ~scores.isnan()
    for q in range(len(scores)):
        if candidates is not None:
            mine = torch.zeros_like(allowed[q])
            mine[candidates[q]] = True
            allowed[q] &= mine
        if exclude is not None:
            allowed[q, exclude[q]] = False
    scores = scores.masked_fill(~allowed, -torch.inf)
    top = torch.full((len(scores), k), -torch.inf)
    rows = torch.full((len(scores), k), -1, dtype=torch.int64)
    for q in range(len(scores)):
        order = torch.sort(scores[q], descending=True, stable=True).indices
        order = order[allowed[q, order]][:k]
        top[q, : len(order)] = scores[q, order].float()
        rows[q, : len(order)] = order
    return top, rows
