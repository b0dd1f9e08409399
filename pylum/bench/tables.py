"""Rows of embedding tables, losses over items and retrieval."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from pylum import ops
from pylum.bench.entry import Entry, name

LOOKUPS, ROWS, DIM = 81_920, 1_000_000, 64
TEMPERATURE = 0.05


def entries() -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Ops and makers of their rows; tensors are allocated when a row is made."""
    yield "embedding sequence gather", partial(gather, torch.float32)
    yield "embedding sequence gather", partial(gather, torch.bfloat16)
    for law in ("uniform", "Zipf"):
        for rule in ("Adagrad", "AdamW"):
            yield f"row-wise {rule} step", partial(optimiser, rule, law)
        # It has no Adam on a CPU.
        if importlib.util.find_spec("fbgemm_gpu"):
            yield "row-wise Adagrad step", partial(fbgemm, law)
    for dtype, goal in ((torch.bfloat16, 4.0), (torch.float32, 2.0)):
        for batch in (4096, 8192):
            yield "sampled softmax, forward + backward", partial(loss, dtype, batch, goal)
    for dtype, goal in ((torch.bfloat16, 8.0), (torch.float32, 4.0)):
        yield "top-k", partial(retrieval, dtype, goal)


def gather(dtype: torch.dtype) -> Entry:
    table, positions = torch.randn(ROWS, DIM), torch.randn(4096, DIM)
    rows, place = torch.randint(ROWS, (LOOKUPS,)), torch.arange(LOOKUPS) % 4096
    return Entry(
        "embedding sequence gather",
        f"{LOOKUPS:,} rows of {ROWS:,} x {DIM} + position, to {name(dtype)}",
        1.5,
        lambda: ops.embedding_sequence([table], [rows], positions=(positions, place), dtype=dtype),
        {"F.embedding + add + cast": lambda: (
            (F.embedding(rows, table) + F.embedding(place, positions)).to(dtype)
        )},
        0,
        float(LOOKUPS * (DIM * (4 + 4 + dtype.itemsize) + 16)),
        dtype,
    )  # fmt: skip


def lookups(law: str) -> torch.Tensor:
    """Rows drawn uniformly, or by Zipf's law with exponent 1.05 in random order of popularity."""
    if law == "uniform":
        return torch.randint(ROWS, (LOOKUPS,))
    weights = torch.arange(1, ROWS + 1).double().pow(-1.05).cumsum(0)
    ranks = torch.searchsorted(weights / weights[-1], torch.rand(LOOKUPS).double())
    return torch.randperm(ROWS)[ranks.clamp_max(ROWS - 1)]


class Step:
    """A step of a table: its rows out, then the update by the gradient that comes back."""

    def __init__(self, rule: str, law: str) -> None:
        self.rule, self.law, self.rows = rule, law, lookups(law)
        self.table, self.state = torch.randn(ROWS, DIM), torch.zeros(ROWS)
        self.moment = torch.zeros(ROWS, DIM)
        for tensor in (self.table, self.state, self.moment):
            ops.huge_pages(tensor)
        # What the backward of a model leaves in the grad of the rows it was given. Autograd would
        # copy it here, where the benchmark holds it too; torch's sparse gradient holds it without
        # a copy.
        self.dout = torch.randn(LOOKUPS, DIM)
        self.uses = [ops.RowUse(self.rows, self.dout)]

    def ours(self) -> None:
        ops.embedding_sequence([self.table], [self.rows])
        if self.rule == "Adagrad":
            ops.row_wise_adagrad_(self.table, self.state, self.uses, lr=0.01)
        else:
            ops.row_wise_adamw_(self.table, self.moment, self.state, self.uses, lr=0.01, step=5)

    def entry(self, peers: dict[str, Callable[[], Any]], goal: float) -> Entry:
        touched = len(self.rows.unique())
        passes = 2 if self.rule == "Adagrad" else 4
        return Entry(
            f"row-wise {self.rule} step",
            f"{LOOKUPS:,} lookups in {ROWS:,} x {DIM}, {self.law}, {touched:,} touched",
            goal,
            self.ours,
            peers,
            0,
            # The rows out, their gradients in, then the touched rows.
            4.0 * DIM * (3 * LOOKUPS + passes * touched),
            torch.float32,
        )


def optimiser(rule: str, law: str) -> Entry:
    """Beside torch's optimisers of sparse gradients."""
    step = Step(rule, law)
    small, large = (torch.nn.Parameter(step.table.clone()) for _ in range(2))
    ops.huge_pages(large.data)
    make: Any = torch.optim.Adagrad if rule == "Adagrad" else torch.optim.SparseAdam

    def sparse(parameter: torch.nn.Parameter) -> Callable[[], None]:
        update = make([parameter], lr=0.01)

        def run() -> None:
            F.embedding(step.rows, parameter, sparse=True).backward(step.dout)
            update.step()
            parameter.grad = None

        return run

    peers = {"torch sparse": sparse(small), "torch sparse, table on huge pages": sparse(large)}
    return step.entry(peers, 10.0)


def fbgemm(law: str) -> Entry:
    """Beside the fused optimiser of fbgemm-gpu-cpu, where it is installed."""
    from fbgemm_gpu import split_table_batched_embeddings_ops_common as common
    from fbgemm_gpu import split_table_batched_embeddings_ops_training as training

    step = Step("Adagrad", law)
    offsets = torch.arange(LOOKUPS + 1)
    peers: dict[str, Callable[[], Any]] = {}
    for pooling, title in (("NONE", "fbgemm, rows"), ("SUM", "fbgemm, bags of one row")):
        module = training.SplitTableBatchedEmbeddingBagsCodegen(
            [(ROWS, DIM, common.EmbeddingLocation.HOST, training.ComputeDevice.CPU)],
            optimizer=training.OptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=0.01,
            eps=1e-10,
            pooling_mode=common.PoolingMode[pooling],
        )
        (weights,) = module.split_embedding_weights()
        weights.copy_(step.table)
        ops.huge_pages(weights)
        peers[title] = partial(
            lambda module: module(step.rows, offsets).backward(step.dout), module
        )
        peers[title]()
        expected, state = step.table.clone(), torch.zeros(ROWS)
        ops.row_wise_adagrad_(expected, state, step.uses, lr=0.01)
        if not torch.allclose(weights, expected, rtol=1e-5, atol=1e-6):
            raise AssertionError(f"{title} does not compute the same step")
    return step.entry(peers, 5.0)


def loss(dtype: torch.dtype, batch: int, goal: float) -> Entry:
    """In-batch: every item of the batch is a candidate."""
    queries, items = (
        F.normalize(torch.randn(batch, 128), dim=1).to(dtype).requires_grad_() for _ in range(2)
    )
    targets = torch.arange(batch)

    def formula(queries: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy((queries @ items.T / TEMPERATURE).float(), targets)

    def step(call: Callable[..., torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            queries.grad = items.grad = None
            call(queries, items).backward()

        return run

    compiled = torch.compile(formula, dynamic=False)
    return Entry(
        "sampled softmax, forward + backward",
        f"B {batch:,}, d 128, {name(dtype)}",
        goal,
        step(lambda q, i: ops.sampled_softmax(q, i, targets, temperature=TEMPERATURE)),
        {"torch": step(formula), "torch.compile": step(compiled)},
        6.0 * batch * batch * 128,
        0,
        dtype,
    )


def retrieval(dtype: torch.dtype, goal: float) -> Entry:
    queries, items = torch.randn(256, DIM).to(dtype), torch.randn(ROWS, DIM).to(dtype)
    peers: dict[str, Callable[[], Any]] = {"torch": lambda: (queries @ items.T).topk(100)}
    try:
        import faiss
    except ImportError:
        pass
    else:
        if dtype == torch.float32:
            faiss.omp_set_num_threads(torch.get_num_threads())
            # With its own threshold faiss may score without a matrix product.
            faiss.cvar.distance_compute_blas_threshold = 1
            index = faiss.IndexFlatIP(DIM)
            index.add(items.numpy())
            peers["faiss"] = lambda: index.search(queries.numpy(), 100)
    return Entry(
        "top-k",
        f"256 x {ROWS:,} x {DIM}, k 100, {name(dtype)}",
        goal,
        lambda: ops.topk(queries, items, 100),
        peers,
        2.0 * 256 * ROWS * DIM,
        float(items.nbytes),
        dtype,
    )
