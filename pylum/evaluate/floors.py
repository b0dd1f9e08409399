"""Popularity and means: what any model must beat, scored by the same rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pylum.data.events import Events
from pylum.evaluate.metrics import ranks
from pylum.generation.packing import spread
from pylum.ragged import Ragged, lengths_to_offsets


def popularity(
    train: Events, items: int, targets: torch.Tensor, exclude: Ragged | None
) -> torch.Tensor:
    """``[Q]`` rank of each target when items are ordered by how often they were chosen.

    Args:
        train: the events that count; where some are no targets, those do not.
        items: rows of the vocabulary of ``train``; row 0 does not compete.
        targets: ``[Q]`` int64 rows, at least 1.
        exclude: rows of each query that do not compete.
    """
    counts = torch.bincount(_chosen(train, train.items), minlength=items)
    return _ranks(counts.double(), targets, exclude)


def popularity_by_condition(
    train: Events,
    items: int,
    field: str,
    targets: torch.Tensor,
    asked: torch.Tensor,
    exclude: Ragged | None,
) -> torch.Tensor:
    """As :func:`popularity`, counting only the events under the condition that is asked.

    Items equally frequent under it, above all those never chosen, are ordered by their popularity
    overall.

    Args:
        field: a condition of kind category.
        asked: ``[Q]`` int64 its row in each query.
    """
    chosen = _chosen(train, train.items)
    conditions = _chosen(train, train.conditions[field])
    overall = torch.bincount(chosen, minlength=items).double() / (len(chosen) + 1)
    out = torch.empty(len(targets), dtype=torch.int64)
    for condition in asked.unique():
        counts = torch.bincount(chosen[conditions == condition], minlength=items) + overall
        mine = (asked == condition).nonzero().squeeze(1)
        limits = None
        if exclude is not None:
            lengths = exclude.lengths[mine]
            rows = exclude.values[spread(exclude.offsets[mine], lengths)]
            limits = Ragged(rows, lengths_to_offsets(lengths))
        out[mine] = _ranks(counts, targets[mine], limits)
    return out


def mean_floors(
    labels: npt.ArrayLike,
    users: npt.ArrayLike,
    items: npt.ArrayLike,
    asked_users: npt.ArrayLike,
    asked_items: npt.ArrayLike,
) -> dict[str, npt.NDArray[np.float64]]:
    """Scores of rows by the mean label of their item, and by that plus the mean of their user.

    Args:
        labels, users, items: ``[N]`` 0 or 1 and raw ids of the training rows.
        asked_users, asked_items: ``[Q]`` raw ids of the rows to score; one that was not trained on
            has the mean of all.

    Returns:
        ``"item mean"`` and ``"item + user mean"``, ``[Q]`` each.
    """
    y = np.asarray(labels, np.float64)
    item = _means(y, np.asarray(items), np.asarray(asked_items))
    return {
        "item mean": item,
        "item + user mean": item + _means(y, np.asarray(users), np.asarray(asked_users)),
    }


def _means(
    y: npt.NDArray[np.float64], known: npt.NDArray[Any], asked: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    ids, place = np.unique(known, return_inverse=True)
    means = np.bincount(place, y) / np.bincount(place)
    at = np.minimum(np.searchsorted(ids, asked), len(ids) - 1)
    return np.where(ids[at] == asked, means[at], y.mean())


def _chosen(train: Events, column: torch.Tensor) -> torch.Tensor:
    return column if train.targets is None else column[train.targets]


def _ranks(counts: torch.Tensor, targets: torch.Tensor, exclude: Ragged | None) -> torch.Tensor:
    counts = counts.clone()
    counts[0] = -1  # the unknown item comes after all others
    return ranks(
        torch.ones(len(targets), 1, dtype=torch.float64), counts[:, None], targets, exclude=exclude
    )
