"""The k best items of each query by inner product."""

from __future__ import annotations

import torch

from pylum import _C
from pylum.ops._library import register, threads
from pylum.ragged import Ragged


def topk(
    queries: torch.Tensor,
    items: torch.Tensor,
    k: int,
    *,
    exclude: Ragged | None = None,
    candidates: Ragged | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k items of highest inner product with each query, exactly.

    Equal scores go to the lower row. A NaN score is never selected. Where fewer than ``k`` items
    can be selected, the rest is row -1 with score -inf. An item is returned once, also where it
    stands in a query's candidates several times.

    A query's result depends neither on the other queries of the call nor on threads: the score of a
    query and an item is always the same sum in the same order. Lists of ``exclude`` and
    ``candidates`` that are strictly ascending are used as they are, others are sorted first.

    Args:
        queries: ``[queries, dim]`` float32 or bfloat16, last dimension contiguous.
        items: ``[items, dim]``, dtype of ``queries``, last dimension contiguous.
        k: number of results, at least 0.
        exclude: for each query, rows it may not return.
        candidates: for each query, the only rows it may return; default: all.

    Returns:
        scores ``[queries, k]`` float32, sums accumulated in float32;
        indices ``[queries, k]`` int64.

    Raises:
        ValueError: a shape, device, layout or row is not as above.
        TypeError: a dtype is not as above.
    """
    if k < 0:
        raise ValueError(f"k must be at least 0, got {k}")
    return _op(
        queries,
        items,
        k,
        *(None, None) if exclude is None else (exclude.values, exclude.offsets),
        *(None, None) if candidates is None else (candidates.values, candidates.offsets),
    )


def _cpu(queries, items, k, exclude, exclude_offsets, candidates, candidates_offsets):
    size = _C.topk_workspace(queries, items, k, exclude, candidates, threads())
    workspace = queries.new_empty(size // 8 + 1, dtype=torch.int64)
    scores, indices = _fake(queries, items, k, *[None] * 4)
    _C.topk_forward(
        queries,
        items,
        exclude,
        exclude_offsets,
        candidates,
        candidates_offsets,
        scores,
        indices,
        workspace,
        threads(),
    )
    return scores, indices


def _fake(queries, items, k, exclude, exclude_offsets, candidates, candidates_offsets):
    shape = (queries.shape[0], k)
    scores = queries.new_empty(shape, dtype=torch.float32)
    return scores, queries.new_empty(shape, dtype=torch.int64)


_op = register(
    "topk(Tensor queries, Tensor items, SymInt k, Tensor? exclude, Tensor? exclude_offsets, "
    "Tensor? candidates, Tensor? candidates_offsets) -> (Tensor, Tensor)",
    cpu=_cpu,
    fake=_fake,
)
