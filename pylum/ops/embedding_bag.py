"""Sums or means of table rows over bags of indices, many tables in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from pylum import _C
from pylum.ops._library import register, run_on
from pylum.ops.row_wise import table_gradient


def embedding_bag(
    tables: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor],
    offsets: Sequence[torch.Tensor],
    *,
    mode: Literal["sum", "mean"] = "sum",
) -> torch.Tensor:
    """Sum or average the rows of each bag; an empty bag gives zeros.

    The tables' results stand side by side in one tensor: equal dims ``d`` are viewed as
    ``[batch, tables, d]``, and ``out.split(dims, 1)`` gives one view per table. Sums are float32
    in the order of the indices, rounded once. Gradients are dense and deterministic: those of a
    row are summed in float32 in the order of its lookups.

    Args:
        tables: at least one ``[rows_t, dim_t]`` float32, bfloat16 or, on CUDA, float16, last
            dimension contiguous, rows any stride apart.
        indices: for each table ``[lookups_t]`` int64 rows, any stride.
        offsets: for each table ``[batch + 1]`` int64, contiguous, non-decreasing from 0 to
            ``lookups_t``: bag b holds the indices from ``offsets[b]`` to ``offsets[b + 1]``.
        mode: ``"sum"`` or ``"mean"``.

    Returns:
        ``[batch, dim_0 + dim_1 + …]`` in the dtype of the tables (float32 where they differ).

    Raises:
        ValueError: a shape, device or layout is not as above, or an index is not a row of its
            table. On CUDA the bag of a bad index or bad offsets becomes NaN, the index's gradient
            goes nowhere, and :func:`pylum.check` raises.
        TypeError: a dtype is not as above.
    """
    if mode not in ("sum", "mean"):
        raise ValueError(f"mode must be 'sum' or 'mean', got {mode!r}")
    tables, indices, offsets = list(tables), list(indices), list(offsets)
    if not tables or len(tables) != len(indices) or len(tables) != len(offsets):
        raise ValueError(
            "tables, indices and offsets must be as many and at least one, got "
            f"{len(tables)} tables, {len(indices)} indices and {len(offsets)} offsets"
        )
    for t, (table, offset) in enumerate(zip(tables, offsets, strict=True)):
        if table.ndim != 2:
            raise ValueError(f"tables[{t}] must be [rows, dim], got {list(table.shape)}")
        if offset.ndim != 1 or offset.shape[0] == 0:
            raise ValueError(f"offsets[{t}] must be [batch + 1], got {list(offset.shape)}")
    return _op(tables, indices, offsets, mode == "mean")


def _out(tables, offsets):
    dtype = tables[0].dtype
    for table in tables:
        dtype = torch.promote_types(dtype, table.dtype)
    return tables[0].new_empty(
        (offsets[0].shape[0] - 1, sum(table.shape[1] for table in tables)), dtype=dtype
    )


def _run(tables, indices, offsets, mean):
    out = _out(tables, offsets)
    _C.embedding_bag_forward(tables, indices, offsets, mean, out, run_on(out))
    return out


def _fake(tables, indices, offsets, mean):
    return _out(tables, offsets)


def _setup_context(ctx, inputs, output):
    tables, indices, offsets, ctx.mean = inputs
    ctx.save_for_backward(*indices, *offsets)
    ctx.tables = [(table.shape, table.dtype) for table in tables]


def _backward(ctx, dout):
    count = len(ctx.tables)
    indices, offsets = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
    dtables, column = [], 0
    for t, (shape, dtype) in enumerate(ctx.tables):
        grad = dout[:, column : column + shape[1]]
        column += shape[1]
        dtables.append(
            table_gradient(grad, indices[t], offsets[t], ctx.mean, shape[0], dtype)
            if ctx.needs_input_grad[0][t]
            else None
        )
    return dtables, [None] * count, [None] * count, None


_op = register(
    "embedding_bag(Tensor[] tables, Tensor[] indices, Tensor[] offsets, bool mean) -> Tensor",
    cpu=_run,
    cuda=_run,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
