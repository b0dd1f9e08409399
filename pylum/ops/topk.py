"""The k best items of each query by inner product."""

from __future__ import annotations

import torch

from pylum import _C
from pylum.ops._library import register, run_on
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
    query and an item is always the same sum in the same order. On a CPU lists of ``exclude`` and
    ``candidates`` that are strictly ascending are used as they are, others are sorted first. On
    CUDA the scores of the k best of a part of the items are all that is ever stored.

    Args:
        queries: ``[queries, dim]`` float32, bfloat16 or, on CUDA, float16, last dimension
            contiguous.
        items: ``[items, dim]``, dtype of ``queries``, last dimension contiguous.
        k: number of results, at least 0, on CUDA at most 4,096.
        exclude: for each query, rows it may not return.
        candidates: for each query, the only rows it may return; default: all.

    Returns:
        scores ``[queries, k]`` float32, sums accumulated in float32;
        indices ``[queries, k]`` int64.

    Raises:
        ValueError: a shape, device, layout or row is not as above. On CUDA a query with a bad row
            in its lists has NaN scores and rows of -1, and :func:`pylum.check` raises.
        TypeError: a dtype or an argument is not as above.
    """
    if k < 0:
        raise ValueError(f"k must be at least 0, got {k}")
    limits = [*_parts("exclude", exclude), *_parts("candidates", candidates)]
    return _op(queries, items, k, *limits)


def _parts(name, rows):
    if rows is None:
        return None, None
    if not isinstance(rows, Ragged):
        raise TypeError(f"{name} must be a pylum.Ragged or None, got {type(rows).__name__}")
    if isinstance(rows.values, list):
        if rows.values:
            raise TypeError(f"{name} must hold rows of items, got {rows.values[0]!r}")
        # Lists that are all empty are of any type.
        return rows.offsets.new_empty(0), rows.offsets
    return rows.values, rows.offsets


def _run(queries, items, k, exclude, exclude_offsets, candidates, candidates_offsets):
    size = _C.topk_workspace(queries, items, k, exclude, candidates, run_on(queries))
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
        run_on(queries),
    )
    return scores, indices


def _fake(queries, items, k, exclude, exclude_offsets, candidates, candidates_offsets):
    shape = (queries.shape[0], k)
    scores = queries.new_empty(shape, dtype=torch.float32)
    return scores, queries.new_empty(shape, dtype=torch.int64)


_op = register(
    "topk(Tensor queries, Tensor items, SymInt k, Tensor? exclude, Tensor? exclude_offsets, "
    "Tensor? candidates, Tensor? candidates_offsets) -> (Tensor, Tensor)",
    cpu=_run,
    cuda=_run,
    fake=_fake,
)
