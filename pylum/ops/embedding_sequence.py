"""Rows of several tables for each token of a packed sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from pylum import _C
from pylum.ops._library import register, run_on
from pylum.ops.row_wise import table_gradient


def embedding_sequence(
    tables: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor],
    *,
    positions: tuple[torch.Tensor, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
    combine: Literal["concat", "sum"] = "concat",
) -> torch.Tensor:
    """Look up one row of each table for each token, combine them, add a position row, cast.

    One pass: sums are float32 and rounded once to ``dtype``. Gradients into the tables and the
    position table are dense and deterministic: the gradients of a row are summed in float32 in the
    order of the tokens. A gradient of only the rows used is had by looking up detached tables and
    asking for the gradient of the result (see :func:`pylum.ops.row_wise_adagrad_`).

    Args:
        tables: at least one ``[rows_t, dim_t]`` float32, bfloat16 or, on CUDA, float16, last
            dimension contiguous, rows any stride apart; with ``combine="sum"`` all of one ``dim``
            and, on CUDA, at most 56.
        indices: for each table ``[tokens]`` int64 rows, any stride.
        positions: ``(table [positions, width], index [tokens] int64)``: a row added to the
            combined row; ``width`` is that of the result.
        dtype: one that tables may have; default: that of the tables (float32 where they differ).
            It is not changed by autocast.
        combine: ``"concat"`` puts the rows side by side in the order of the tables.

    Returns:
        ``[tokens, width]`` in ``dtype``; ``width`` is the sum of the tables' ``dim_t`` for
        ``"concat"``, ``dim`` for ``"sum"``.

    Raises:
        ValueError: a shape, device or layout is not as above, or an index is not a row of its
            table (also -1: no index means "nothing"). On CUDA such a row becomes NaN, its gradient
            goes nowhere, and :func:`pylum.check` raises.
        TypeError: a dtype is not as above.
    """
    if combine not in ("concat", "sum"):
        raise ValueError(f"combine must be 'concat' or 'sum', got {combine!r}")
    tables, indices = list(tables), list(indices)
    if not tables or len(tables) != len(indices):
        raise ValueError(
            "tables and indices must be as many and at least one, "
            f"got {len(tables)} tables and {len(indices)} indices"
        )
    if dtype is None:
        dtype = tables[0].dtype
        for table in tables:
            dtype = torch.promote_types(dtype, table.dtype)
    for t, (table, index) in enumerate(zip(tables, indices, strict=True)):
        if table.ndim != 2 or (combine == "sum" and table.shape[1] != tables[0].shape[1]):
            wanted = "[rows, dim]" if combine == "concat" else f"[rows, {tables[0].shape[1]}]"
            raise ValueError(f"tables[{t}] must be {wanted}, got {list(table.shape)}")
        if index.ndim != 1 or index.shape[0] != indices[0].shape[0]:
            raise ValueError(f"indices[{t}] must be [tokens] like the others, got {index.shape}")
    position, position_index = (None, None) if positions is None else positions
    width = _width(tables, combine == "sum")
    if position is not None and (position.ndim != 2 or position.shape[1] != width):
        raise ValueError(f"positions[0] must be [positions, {width}], got {list(position.shape)}")
    return _op(tables, indices, position, position_index, dtype, combine == "sum")


def _width(tables, summed):
    return tables[0].shape[1] if summed else sum(table.shape[1] for table in tables)


def _run(tables, indices, position, position_index, dtype, summed):
    out = _fake(tables, indices, position, position_index, dtype, summed)
    _C.embedding_sequence_forward(
        tables, indices, position, position_index, summed, out, run_on(out)
    )
    return out


def _fake(tables, indices, position, position_index, dtype, summed):
    return tables[0].new_empty((indices[0].shape[0], _width(tables, summed)), dtype=dtype)


def _setup_context(ctx, inputs, output):
    tables, indices, position, position_index, _, ctx.summed = inputs
    ctx.save_for_backward(*indices, position_index)
    ctx.tables = [(table.shape, table.dtype) for table in tables]
    ctx.position = None if position is None else (position.shape, position.dtype)


def _backward(ctx, dout):
    *indices, position_index = ctx.saved_tensors
    dtables, column = [], 0
    for (shape, dtype), index, needed in zip(
        ctx.tables, indices, ctx.needs_input_grad[0], strict=True
    ):
        grad = dout if ctx.summed else dout[:, column : column + shape[1]]
        column += shape[1]
        dtables.append(
            table_gradient(grad, index, None, False, shape[0], dtype) if needed else None
        )
    dposition = None
    if ctx.position is not None and ctx.needs_input_grad[2]:
        shape, dtype = ctx.position
        dposition = table_gradient(dout, position_index, None, False, shape[0], dtype)
    return dtables, [None] * len(indices), dposition, None, None, None


_op = register(
    "embedding_sequence(Tensor[] tables, Tensor[] indices, Tensor? position, "
    "Tensor? position_index, ScalarType dtype, bool summed) -> Tensor",
    cpu=_run,
    cuda=_run,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
