"""Peers of the CUDA table that are packages of their own: FBGEMM's tables, FlashInfer's attention.

Each is made at its first call and held against ours or torch's there. Where the package is missing
or its result differs, the row says so instead of a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from pylum.ops import PagedPrefix

FBGEMM, FLASHINFER = "FBGEMM TBE", "FlashInfer"
WORKSPACE_BYTES = 128 << 20


# A call, its first result and what that should have been.
Made = tuple[Callable[[], Any], torch.Tensor, torch.Tensor]


def _checked(make: Callable[[], Made], tolerance: float) -> Callable[[], Any]:
    """The call of ``make()``, which is made at the first time and then checked."""
    made: list[Callable[[], Any]] = []

    @torch.no_grad()
    def run() -> Any:
        if not made:
            call, first, expected = make()
            error = float((first.float() - expected.float()).abs().max())
            if not error <= tolerance:
                raise RuntimeError(f"the first result differs by {error:.3g}")
            made.append(call)
        return made[0]()

    return run


def _tables(table: torch.Tensor, pooling: str, **options: Any) -> Any:
    """A module of one table with the values of ``table`` [rows, dim]."""
    from fbgemm_gpu import split_table_batched_embeddings_ops_common as common
    from fbgemm_gpu import split_table_batched_embeddings_ops_training as training

    where, device = common.EmbeddingLocation, training.ComputeDevice
    place = (where.DEVICE, device.CUDA) if table.is_cuda else (where.HOST, device.CPU)
    module = training.SplitTableBatchedEmbeddingBagsCodegen(
        [(*table.shape, *place)],
        optimizer=training.OptimType.EXACT_ROWWISE_ADAGRAD,
        pooling_mode=common.PoolingMode[pooling],
        bounds_check_mode=common.BoundsCheckMode.NONE,
        **options,
    )
    (weights,) = module.split_embedding_weights()
    weights.copy_(table)
    return module


def fbgemm_rows(table: torch.Tensor, index: torch.Tensor) -> Callable[[], Any]:
    """Rows of a table, one after the other."""

    def make() -> Made:
        module, offsets = _tables(table, "NONE"), torch.arange(len(index) + 1)
        return lambda: module(index, offsets), module(index, offsets), F.embedding(index, table)

    return _checked(make, 0.0)


def fbgemm_bags(
    table: torch.Tensor, index: torch.Tensor, offsets: torch.Tensor
) -> Callable[[], Any]:
    """Sums of rows."""

    def make() -> Made:
        module = _tables(table, "SUM")
        sums = F.embedding_bag(index, table, offsets, mode="sum", include_last_offset=True)
        return lambda: module(index, offsets), module(index, offsets), sums

    return _checked(make, 1e-4)


def fbgemm_step(
    table: torch.Tensor,
    index: torch.Tensor,
    grad: torch.Tensor,
    lr: float,
    eps: float,
    ours: Callable[[], Any],
) -> Callable[[], Any]:
    """Rows out, and their update in the backward pass; ``ours`` does the same to ``table``."""

    def make() -> Made:
        module = _tables(table, "NONE", learning_rate=lr, eps=eps)
        (weights,) = module.split_embedding_weights()
        offsets = torch.arange(len(index) + 1)

        def call() -> None:
            with torch.enable_grad():
                module(index, offsets).backward(grad)

        call()
        ours()
        return call, F.embedding(index, weights), F.embedding(index, table)

    return _checked(make, 1e-4)


def _workspace() -> torch.Tensor:
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8)


def flashinfer_packed(
    tensors: list[torch.Tensor], offsets: torch.Tensor, ours: Callable[[], torch.Tensor]
) -> Callable[[], Any]:
    """Causal attention of a packed batch; the plan is made once."""

    def make() -> Made:
        import flashinfer

        q, k, v = tensors
        bounds = offsets.int()
        wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(_workspace(), "NHD")
        wrapper.plan(
            bounds, bounds, q.shape[1], k.shape[1], q.shape[2], causal=True, q_data_type=q.dtype
        )
        return lambda: wrapper.run(q, k, v), wrapper.run(q, k, v), ours()

    return _checked(make, 0.05)


def flashinfer_prefix(
    q: torch.Tensor, offsets: torch.Tensor, prefix: PagedPrefix
) -> Callable[[], Any]:
    """Queries over the pages of whole prefixes of one length, no keys of their own."""

    def make() -> Made:
        import flashinfer

        pools = prefix.k, prefix.v
        users, pages = prefix.table.shape
        _, heads, page, dim = prefix.k.shape
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(_workspace(), "HND")
        wrapper.plan(
            offsets.int(),
            torch.arange(users + 1, dtype=torch.int32) * pages,
            prefix.table.flatten().int(),
            torch.full((users,), page, dtype=torch.int32),
            q.shape[1],
            heads,
            dim,
            page,
            causal=False,
            q_data_type=q.dtype,
        )
        keys, values = (
            x[prefix.table].transpose(1, 2).reshape(users, heads, pages * page, dim) for x in pools
        )
        queries = q.view(users, -1, heads, dim).transpose(1, 2)
        out = F.scaled_dot_product_attention(queries, keys, values)
        expected = out.transpose(1, 2).flatten(0, 1)
        return lambda: wrapper.run(q, pools), wrapper.run(q, pools), expected

    return _checked(make, 0.05)
