"""Ranking and classification metrics, exact, from ranks and scores.

A rank is 0-based: the number of allowed items before the target. Equal scores go to the lower
row, as in :func:`pylum.ops.topk`, so that a constant score is not mistaken for a good one.
"""

from __future__ import annotations

import numpy as np
import torch

from pylum.ragged import Ragged
from pylum.transfer import moved

CHUNK_SCORES = 1 << 24  # scores held at once


def ranks(
    queries: torch.Tensor,
    items: torch.Tensor,
    targets: torch.Tensor,
    *,
    exclude: Ragged | None = None,
    candidates: Ragged | None = None,
) -> torch.Tensor:
    """Rank of each query's target in the whole catalogue.

    Args:
        queries: ``[Q, D]``.
        items: ``[M, D]`` on the same device; what follows is on the host.
        targets: ``[Q]`` int64 rows of ``items``.
        exclude: for each query, rows that do not compete; the target always competes.
        candidates: for each query, the only rows that compete, beside the target; default: all.

    Returns:
        ``[Q]`` int64 on cpu, from 0 to ``M - 1``; a NaN score of the target ranks last.

    Raises:
        ValueError: shapes or rows do not fit.
    """
    count, total = len(queries), len(items)
    if targets.shape != (count,):
        raise ValueError(f"targets must be [{count}], got {list(targets.shape)}")
    if count and (int(targets.min()) < 0 or int(targets.max()) >= total):
        raise ValueError(
            f"targets must be rows in [0, {total}), got {int(targets.min())} to "
            f"{int(targets.max())}"
        )
    for name, rows in (("exclude", exclude), ("candidates", candidates)):
        if rows is not None and len(rows) != count:
            raise ValueError(f"{name} must have {count} rows, one a query, got {len(rows)}")
    out = torch.empty(count, dtype=torch.int64)
    step = max(1, CHUNK_SCORES // max(1, total))
    for start in range(0, count, step):
        stop = min(start + step, count)
        scores = queries[start:stop] @ items.T
        found = ranks_of_scores(
            scores,
            moved(targets[start:stop], scores.device),
            exclude=_slice(exclude, start, stop),
            candidates=_slice(candidates, start, stop),
        )
        out[start:stop] = found.cpu()
    return out


def ranks_of_scores(
    scores: torch.Tensor,
    targets: torch.Tensor,
    *,
    exclude: Ragged | None = None,
    candidates: Ragged | None = None,
) -> torch.Tensor:
    """As :func:`ranks`, from scores ``[Q, M]``."""
    line = torch.arange(len(scores), device=scores.device)
    own = scores[line, targets].unsqueeze(1)
    lower = torch.arange(scores.shape[1], device=scores.device) < targets.unsqueeze(1)
    before = (scores > own) | ((scores == own) & lower)
    if candidates is not None:
        allowed = torch.zeros_like(before)
        allowed[_places(candidates, scores.device)] = True
        before &= allowed
    if exclude is not None:
        before[_places(exclude, scores.device)] = False
    out = before.sum(1)
    return torch.where(own.squeeze(1).isnan(), scores.shape[1] - 1, out)


def hit_rate(ranks: np.ndarray, k: int) -> np.ndarray:
    """``[Q]`` float64: 1 where the target is among the first ``k``; its mean is HR@k."""
    return (np.asarray(ranks) < k).astype(np.float64)


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """``[Q]`` float64: 1 / log2(rank + 2) among the first ``k``, else 0: NDCG@k of one target."""
    ranks = np.asarray(ranks, dtype=np.float64)
    return np.where(ranks < k, 1.0 / np.log2(ranks + 2.0), 0.0)


def reciprocal_rank(ranks: np.ndarray) -> np.ndarray:
    """``[Q]`` float64: 1 / (rank + 1); its mean is MRR."""
    return 1.0 / (np.asarray(ranks, dtype=np.float64) + 1.0)


def recall(found: np.ndarray, relevant: Ragged, k: int) -> np.ndarray:
    """Share of each query's relevant items among its first ``k`` answers.

    Args:
        found: ``[Q, >= k]`` int64 item rows, best first; -1 is no item.
        relevant: ``Q`` ragged rows of distinct items; a query without any gives NaN.

    Returns:
        ``[Q]`` float64.
    """
    found = np.asarray(found)[:, :k]
    if len(found) != len(relevant):
        raise ValueError(f"relevant must have {len(found)} rows, got {len(relevant)}")
    lines, rows = _lines(relevant).numpy(), _rows(relevant).numpy()
    hits = (found[lines] == rows[:, None]).any(1)
    lengths = relevant.lengths.numpy()
    sums = np.bincount(lines, weights=hits, minlength=len(found))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(lengths > 0, sums / lengths, np.nan)


def auc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve; equal scores count one half. NaN where a class is missing.

    Args:
        labels: ``[N]`` 0 or 1.
        scores: ``[N]``, higher is more likely 1.
        weights: ``[N]``, not negative; default 1.
    """
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores, dtype=np.float64)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    if np.isnan(scores).any():
        raise ValueError(f"scores must not be NaN, got {int(np.isnan(scores).sum())} of them")
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    if len(ordered) == 0:
        return float("nan")
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    positive = np.add.reduceat((weights * labels)[order], first)
    negative = np.add.reduceat((weights * ~labels)[order], first)
    pairs = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative
    return float((positive * (below + 0.5 * negative)).sum() / pairs) if pairs > 0 else float("nan")


def gauc(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> float:
    """AUC of each group that holds both classes, weighted by its rows (GAUC of the DIN paper).

    Args:
        labels, scores: ``[N]`` as for :func:`auc`.
        groups: ``[N]`` integers or strings, e.g. users.
    """
    per_group, rows = group_auc(labels, scores, groups)
    both = ~np.isnan(per_group)
    if not both.any():
        return float("nan")
    return float((per_group[both] * rows[both]).sum() / rows[both].sum())


def group_auc(
    labels: np.ndarray, scores: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUC and number of rows of each group, groups sorted; NaN where a class is missing."""
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores, dtype=np.float64)
    if np.isnan(scores).any():
        raise ValueError(f"scores must not be NaN, got {int(np.isnan(scores).sum())} of them")
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    count = int(group.max()) + 1 if len(group) else 0
    order = np.lexsort((scores, group))
    group, labels, scores = group[order], labels[order], scores[order]
    change = (group[1:] != group[:-1]) | (scores[1:] != scores[:-1])
    tie = np.cumsum(np.r_[False, change]) if len(group) else np.zeros(0, dtype=np.int64)
    positive, negative = np.bincount(tie, labels), np.bincount(tie, ~labels)
    owner = np.zeros(len(positive), dtype=np.int64)
    owner[tie] = group
    negatives = np.bincount(group, ~labels, minlength=count)
    positives = np.bincount(group, labels, minlength=count)
    below = np.cumsum(negative) - negative - (np.cumsum(negatives) - negatives)[owner]
    won = np.bincount(owner, positive * (below + 0.5 * negative), minlength=count)
    pairs = positives * negatives
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, won / pairs, np.nan), positives + negatives


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean binary cross-entropy in nats; probabilities are clipped to [1e-15, 1 - 1e-15]."""
    labels = np.asarray(labels, dtype=np.float64)
    p = np.clip(np.asarray(probabilities, dtype=np.float64), 1e-15, 1 - 1e-15)
    return float(-(labels * np.log(p) + (1 - labels) * np.log1p(-p)).mean())


def normalised_entropy(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Log loss over that of always predicting the share of ones; NaN where a class is missing.

    Below 1 is better than the share itself (He et al. 2014).
    """
    rate = np.asarray(labels, dtype=np.float64).mean()
    if not 0 < rate < 1:
        return float("nan")
    constant = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return log_loss(labels, probabilities) / float(constant)


def _lines(ragged: Ragged) -> torch.Tensor:
    return torch.arange(len(ragged)).repeat_interleave(ragged.lengths)


def _rows(ragged: Ragged) -> torch.Tensor:
    return torch.as_tensor(ragged.values, dtype=torch.int64)


def _places(ragged: Ragged, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return moved(_lines(ragged), device), moved(_rows(ragged), device)


def _slice(ragged: Ragged | None, start: int, stop: int) -> Ragged | None:
    if ragged is None:
        return None
    bounds = ragged.offsets[start : stop + 1]
    return Ragged(ragged.values[int(bounds[0]) : int(bounds[-1])], bounds - bounds[0])
