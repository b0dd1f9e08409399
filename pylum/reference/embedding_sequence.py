"""Reference of :func:`pylum.ops.embedding_sequence`."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def embedding_sequence(
    tables: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor],
    *,
    positions: tuple[torch.Tensor, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
    combine: str = "concat",
) -> torch.Tensor:
    """Rounded to ``dtype`` only where it is given: the default is the exact float64 result."""
    rows = [table.double()[index] for table, index in zip(tables, indices, strict=True)]
    out = torch.cat(rows, 1) if combine == "concat" else torch.stack(rows).sum(0)
    if positions is not None:
        table, index = positions
        out = out + table.double()[index]
    return out if dtype is None else out.to(dtype)
