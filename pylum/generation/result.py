"""What :func:`pylum.generate` gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pylum.data.columns import ANY, as_array


@dataclass(frozen=True, eq=False)
class Generation:
    """Answers to ``Q`` questions of ``B`` users.

    Args:
        embeddings: ``[Q, D]`` float32, unit length: the user's interest under the condition.
        items: ``[Q, k]`` raw item ids, best first; None where fewer than ``k`` are left.
        scores: ``[Q, k]`` float32 cosines of answer and item; -inf where there is no item.
        rows: ``[Q, k]`` int64 rows of the model's item vocabulary; -1 where there is no item.
        users: ``B`` raw ids.
        asked: the conditions as they came, by field, each a list of ``Q``.
        offsets: ``[B + 1]`` int64: user ``b`` was asked questions ``offsets[b]`` on.
        stats: counts of the work: ``tokens_computed``, ``tokens_reused``, ``approximate_users``,
            ``unknown_items``, ``unknown_conditions``, ``unknown_candidates``,
            ``behaviours_beyond_window``; and ``exclude``, the rule that was followed.
    """

    embeddings: torch.Tensor
    items: npt.NDArray[Any]
    scores: torch.Tensor
    rows: torch.Tensor
    users: list[Any]
    asked: dict[str, list[Any]]
    offsets: torch.Tensor
    stats: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of questions."""
        return len(self.embeddings)

    @property
    def conditions(self) -> list[Any]:
        """The condition of each question as it came; a dict by field where several were given."""
        if len(self.asked) == 1:
            return next(iter(self.asked.values()))
        lines = zip(*self.asked.values(), strict=True)
        return [dict(zip(self.asked, line, strict=True)) for line in lines]

    def to_arrow(self) -> pa.Table:
        """One row per answer: user, condition (or its fields), rank from 1, item, score.

        ``ANY`` is null. A place that no item fills has no row.

        Raises:
            TypeError: the users' ids are not of one type, which a column must be.
        """
        question, rank = np.nonzero(self.rows.numpy() >= 0)
        owner = np.repeat(np.arange(len(self.users)), self.offsets.diff().numpy())[question]
        names = ["condition"] if len(self.asked) == 1 else list(self.asked)
        columns = {"user": as_array(self.users, "users").take(pa.array(owner, pa.int64()))}
        for name, values in zip(names, self.asked.values(), strict=True):
            column = pa.array([None if value is ANY else value for value in values])
            columns[name] = column.take(pa.array(question, pa.int64()))
        columns["rank"] = pa.array(rank + 1, pa.int64())
        columns["item"] = pa.array(self.items[question, rank].tolist())
        columns["score"] = pa.array(self.scores.numpy()[question, rank])
        return pa.table(columns)

    def to_pandas(self) -> Any:
        """:meth:`to_arrow` as a pandas frame."""
        return self.to_arrow().to_pandas()


def concatenate(parts: Sequence[Generation]) -> Generation:
    """The generations of consecutive user batches as one; counts are added."""
    if len(parts) == 1:
        return parts[0]
    lengths = torch.cat([part.offsets.diff() for part in parts])
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=offsets[1:])
    stats = {
        name: sum(part.stats[name] for part in parts) if isinstance(value, int) else value
        for name, value in parts[0].stats.items()
    }
    return Generation(
        torch.cat([part.embeddings for part in parts]),
        np.concatenate([part.items for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.rows for part in parts]),
        [user for part in parts for user in part.users],
        {name: [v for part in parts for v in part.asked[name]] for name in parts[0].asked},
        offsets,
        stats,
    )
