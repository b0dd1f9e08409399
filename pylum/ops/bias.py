"""HSTU's relative bias of position and time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

# HSTU's time buckets: bucket b holds gaps from e^(0.301 b) seconds on.
BUCKET_RATIO = 0.301


@dataclass(frozen=True)
class RelativeBias:
    """What a pair of row and key adds to ``scale q.k`` before SiLU, the same for every head.

    ``position_table[key - row + N - 1] + time_table[bucket(|query_times[row] - timestamps[key]|)]``
    as in arXiv 2402.17152, section 3.2: ``key`` and ``row`` are positions (a target stands at its
    visible length plus its rank in its group), and a distance beyond the table reads its last
    entry. The bucket of a gap is the number of thresholds up to it, compared as integers, so that
    every device finds the same one. Either table may be None, not both.

    Args:
        position_table: ``[2 N - 1]`` float32; its gradient, and that of ``time_table``, is a sum
            in a fixed order, whatever the number of threads.
        time_table: ``[buckets + 1]`` float32.
        thresholds: ``[buckets]`` int64, not negative, non-decreasing (:func:`log_thresholds`).
        timestamps: ``[keys]`` int64, of each sequence its history and then its targets. In
            ``attention`` these are the rows; in ``prefix_attention`` cached tokens count too.
        query_times: ``[rows]`` int64, the clock of each row as a query. HSTU gives a history row
            the timestamp of the row after it: that is when its answer is asked for.

    Raises:
        ValueError: a shape is not as above, or an argument needs another one.
        TypeError: a tensor has another dtype.
    """

    position_table: torch.Tensor | None = None
    time_table: torch.Tensor | None = None
    thresholds: torch.Tensor | None = None
    timestamps: torch.Tensor | None = None
    query_times: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.position_table is None and self.time_table is None:
            raise ValueError("a bias must have a position_table or a time_table, got neither")
        for name in ("position_table", "time_table"):
            table = getattr(self, name)
            if table is not None and table.dtype != torch.float32:
                raise TypeError(f"bias.{name} must be float32, got {table.dtype}")
        for name in ("thresholds", "timestamps", "query_times"):
            column = getattr(self, name)
            if (column is None) != (self.time_table is None):
                raise ValueError(f"bias.{name} must be given with bias.time_table, and only then")
            if column is not None and column.dtype != torch.int64:
                raise TypeError(f"bias.{name} must be int64, got {column.dtype}")
        table = self.position_table
        if table is not None and (table.dim() != 1 or table.numel() % 2 == 0):
            raise ValueError(
                f"bias.position_table must be [2 N - 1] for some N, got {list(table.shape)}"
            )


def log_thresholds(buckets: int = 128, ratio: float = BUCKET_RATIO) -> torch.Tensor:
    """``[buckets]`` int64: a gap of s is in bucket ``floor(ln(max(1, s)) / ratio)``, at most
    ``buckets``."""
    edges = [math.exp((bucket + 1) * ratio) for bucket in range(buckets)]
    return torch.tensor([math.ceil(edge) for edge in edges], dtype=torch.int64)


def bias_operands(bias: RelativeBias | None) -> tuple[torch.Tensor | None, ...]:
    """A bias as the operands of an op."""
    if bias is None:
        return (None,) * 5
    return (
        bias.position_table,
        bias.time_table,
        bias.thresholds,
        bias.timestamps,
        bias.query_times,
    )
