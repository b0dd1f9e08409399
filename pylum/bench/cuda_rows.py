"""Rows of embedding tables, losses over items, retrieval and row-wise layers on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from pylum import ops
from pylum.bench import cuda_peers
from pylum.bench.entry import Entry, inference, name, training
from pylum.ops import RowUse

TEMPERATURE = 0.05


def entries(tiny: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Ops and makers of their rows; tensors are made on the default device."""
    rows, counts = (500, (64,)) if tiny else (10_000_000, (81_920, 1_000_000))
    for count in counts:
        for law in ("uniform", "Zipf"):
            for dim in (64, 128):
                yield "embedding sequence gather", partial(gather, rows, count, dim, law)
                yield "embedding bag", partial(bag, rows, count, dim, law)
                yield "row-wise Adagrad step", partial(optimiser, rows, count, dim, law)
                yield "row-wise Adagrad step, with lookup", partial(step, rows, count, dim, law)
    for width in (64, 512) if tiny else (64, 512, 4096):
        for mode in (0, 1):
            yield "residual norm", partial(norm, 64 if tiny else 65_536, width, mode)
            yield "swiglu", partial(gate, 64 if tiny else 65_536, width, mode)
    for batch in (64,) if tiny else (4096, 8192, 16_384):
        for dtype in (torch.bfloat16, torch.float32):
            yield "sampled softmax, forward + backward", partial(loss, batch, dtype)
    for queries in (3,) if tiny else (1, 256, 4096):
        for dtype in (torch.bfloat16, torch.float32):
            yield "top-k", partial(retrieval, queries, 300 if tiny else 1_000_000, dtype)


def lookups(rows: int, count: int, law: str) -> torch.Tensor:
    """Rows drawn uniformly, or by Zipf's law with exponent 1.05 in random order of popularity."""
    if law == "uniform":
        return torch.randint(rows, (count,))
    weights = torch.arange(1, rows + 1).double().pow(-1.05).cumsum(0)
    ranks = torch.searchsorted(weights / weights[-1], torch.rand(count).double())
    return torch.randperm(rows)[ranks.clamp_max(rows - 1)]


def gather(rows: int, count: int, dim: int, law: str) -> Entry:
    table, index = torch.randn(rows, dim), lookups(rows, count, law)
    return Entry(
        "embedding sequence gather",
        f"{count:,} {law} rows of {rows:,} x {dim}, float32",
        1.0,
        inference(lambda t: ops.embedding_sequence([t], [index]), table),
        {
            "F.embedding": inference(lambda t: F.embedding(index, t), table),
            cuda_peers.FBGEMM: cuda_peers.fbgemm_rows(table, index),
        },
        0.0,
        float(count * (8 * dim + 8)),
        torch.float32,
    )


def bag(rows: int, count: int, dim: int, law: str) -> Entry:
    table, index = torch.randn(rows, dim), lookups(rows, count, law)
    offsets = torch.arange(0, count + 1, 16)
    index = index[: int(offsets[-1])]
    return Entry(
        "embedding bag",
        f"{len(offsets) - 1:,} bags of 16 {law} rows of {rows:,} x {dim}, float32",
        1.0,
        inference(lambda t: ops.embedding_bag([t], [index], [offsets]), table),
        {
            "F.embedding_bag": inference(
                lambda t: F.embedding_bag(index, t, offsets, mode="sum", include_last_offset=True),
                table,
            ),
            cuda_peers.FBGEMM: cuda_peers.fbgemm_bags(table, index, offsets),
        },
        0.0,
        float(len(index) * (4 * dim + 8) + (len(offsets) - 1) * 4 * dim),
        torch.float32,
    )  # fmt: skip


def optimiser(rows: int, count: int, dim: int, law: str) -> Entry:
    """Gradients of looked-up rows into the table: sorted, deterministic, in place."""
    index, grad = lookups(rows, count, law), torch.randn(count, dim)
    table, state = torch.randn(rows, dim), torch.ones(rows)
    theirs = table.clone().requires_grad_()
    adagrad = torch.optim.Adagrad([theirs], lr=0.01)

    def torch_step() -> None:
        theirs.grad = torch.sparse_coo_tensor(index[None], grad, (rows, dim))
        adagrad.step()

    touched = len(index.unique())
    return Entry(
        "row-wise Adagrad step",
        f"{count:,} {law} rows of {rows:,} x {dim}, float32",
        None,
        lambda: ops.row_wise_adagrad_(table, state, [RowUse(index, grad)], lr=0.01, eps=1e-8),
        {"torch sparse Adagrad": torch_step},
        0.0,
        float(count * (4 * dim + 8) + touched * (8 * dim + 8)),
        torch.float32,
    )


def step(rows: int, count: int, dim: int, law: str) -> Entry:
    """Rows out, and the update by their gradients: what FBGEMM does as one."""
    index, grad = lookups(rows, count, law), torch.randn(count, dim)
    table, state = torch.randn(rows, dim), torch.zeros(rows)

    def ours() -> None:
        ops.embedding_sequence([table], [index])
        ops.row_wise_adagrad_(table, state, [RowUse(index, grad)], lr=0.01, eps=1e-8)

    touched = len(index.unique())
    return Entry(
        "row-wise Adagrad step, with lookup",
        f"{count:,} {law} rows of {rows:,} x {dim}, float32",
        1.0,
        ours,
        {cuda_peers.FBGEMM: cuda_peers.fbgemm_step(table, index, grad, 0.01, 1e-8, ours)},
        0.0,
        float(count * (12 * dim + 16) + touched * (8 * dim + 8)),
        torch.float32,
    )


def norm(rows: int, width: int, mode: int) -> Entry:
    dtype = torch.bfloat16
    x, residual = (torch.randn(rows, width, dtype=dtype) for _ in range(2))
    weight = torch.ones(width, dtype=dtype)

    @torch.compile(dynamic=False)
    def formula(x: torch.Tensor, r: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        total = x + r
        return F.rms_norm(total, (width,), w, 1e-6) + total

    def ours(x: torch.Tensor, r: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        total, normed = ops.residual_norm(x, r, w)
        return total + normed

    return _row_wise("residual norm", ours, formula, [x, residual, weight], mode, 4, 6)


def gate(rows: int, width: int, mode: int) -> Entry:
    x = torch.randn(rows, 2 * width, dtype=torch.bfloat16)

    @torch.compile(dynamic=False)
    def formula(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, 1)
        return F.silu(gate) * up

    return _row_wise("swiglu", ops.swiglu, formula, [x], mode, 1.5, 4)


def _row_wise(
    op: str,
    ours: Callable[..., torch.Tensor],
    formula: Callable[..., torch.Tensor],
    tensors: list[torch.Tensor],
    mode: int,
    forward: float,
    backward: float,
) -> Entry:
    """``forward`` and ``backward``: how often the bytes of the first tensor move."""
    run: Any = training if mode else inference
    called = "forward + backward" if mode else "forward"
    return Entry(
        op,
        f"{' x '.join(map(str, tensors[0].shape))}, {name(tensors[0].dtype)}, {called}",
        None,
        run(ours, *tensors),
        {"compiled formula": run(formula, *tensors)},
        0.0,
        float(tensors[0].nbytes * (forward + backward * mode)),
        tensors[0].dtype,
    )


def loss(batch: int, dtype: torch.dtype) -> Entry:
    """In-batch InfoNCE, d 128."""
    dim = 128
    queries, items = (F.normalize(torch.randn(batch, dim), dim=1).to(dtype) for _ in range(2))
    goals = torch.arange(batch)

    @torch.compile(dynamic=False)
    def formula(q: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy((q @ i.T).float() / TEMPERATURE, goals)

    def ours(q: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return ops.sampled_softmax(q, i, goals, temperature=TEMPERATURE)

    return Entry(
        "sampled softmax, forward + backward",
        f"in-batch {batch:,} x {dim}, {name(dtype)}",
        1.0,
        training(ours, queries, items),
        {"compiled cross-entropy": training(formula, queries, items)},
        6.0 * batch * batch * dim,
        float(4 * queries.nbytes),
        dtype,
    )


def retrieval(count: int, rows: int, dtype: torch.dtype) -> Entry:
    dim, k = 64, 100
    queries, items = (torch.randn(n, dim).to(dtype) for n in (count, rows))
    return Entry(
        "top-k",
        f"{count} queries, {rows:,} items x {dim}, k {k}, {name(dtype)}",
        1.0,
        inference(lambda q, i: ops.topk(q, i, k)[0], queries, items),
        {"torch matmul + topk": inference(lambda q, i: (q @ i.T).topk(k)[0], queries, items)},
        2.0 * count * rows * dim,
        float(items.nbytes),
        dtype,
    )
