"""Reference of :func:`pylum.ops.sampled_softmax`."""

from __future__ import annotations

import torch


def sampled_softmax(
    queries: torch.Tensor,
    items: torch.Tensor,
    targets: torch.Tensor,
    *,
    temperature: float,
    negatives: torch.Tensor | None = None,
    item_ids: torch.Tensor | None = None,
    log_q: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """As :func:`pylum.ops.sampled_softmax`, argument for argument."""
    queries, items = queries.double(), items.double()
    bias = torch.zeros(len(items)).double() if log_q is None else log_q.double()
    ids = torch.arange(len(items)) if item_ids is None else item_ids
    if negatives is None:
        negatives = torch.arange(len(items))
    rows = negatives.expand(len(queries), -1) if negatives.dim() == 1 else negatives
    logits = torch.einsum("nd,nrd->nr", queries, items[rows]) / temperature - bias[rows]
    logits = logits.masked_fill(ids[rows] == ids[targets][:, None], -torch.inf)
    target = (queries * items[targets]).sum(1) / temperature - bias[targets]
    losses = torch.cat([target[:, None], logits], 1).logsumexp(1) - target
    scales = torch.ones(len(queries)).double() if weights is None else weights.double()
    if reduction == "mean":
        scales = scales / scales.sum() if bool(scales.sum() > 0) else scales * 0
    losses = torch.where(scales == 0, 0.0, losses * scales)
    return losses.float() if reduction == "none" else losses.sum().float()
