"""Reference of :func:`pylum.ops.embedding_bag`."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def embedding_bag(
    tables: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor],
    offsets: Sequence[torch.Tensor],
    *,
    mode: str = "sum",
) -> torch.Tensor:
    """Unrounded float64."""
    columns = []
    for table, index, offset in zip(tables, indices, offsets, strict=True):
        bags = []
        for begin, end in zip(offset[:-1].tolist(), offset[1:].tolist(), strict=True):
            bag = table.double()[index[begin:end]].sum(0)
            bags.append(bag / (end - begin) if mode == "mean" and end > begin else bag)
        columns.append(torch.stack(bags) if bags else table.double()[:0])
    return torch.cat(columns, 1)
