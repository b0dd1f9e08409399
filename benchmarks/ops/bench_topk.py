"""topk beside torch's matmul + topk and faiss. flops = 2 * queries * items * dim."""

import sys

import torch

import pylum
from benchmarks.harness import compare, save

try:
    import faiss
except ImportError:
    faiss = None


def torch_chunked(queries, items, k, chunk=65536):
    """The k best of each chunk of items, then the k best of those."""
    scores, rows = [], []
    for begin in range(0, len(items), chunk):
        part = queries @ items[begin : begin + chunk].T
        best = part.topk(min(k, part.shape[1]))
        scores.append(best.values)
        rows.append(best.indices + begin)
    best = torch.cat(scores, 1).topk(k)
    return best.values, torch.cat(rows, 1).gather(1, best.indices)


def measure(num_queries, num_items, dim, k, dtype=torch.float32):
    queries = torch.randn(num_queries, dim).to(dtype)
    items = torch.randn(num_items, dim).to(dtype)
    contestants = {
        "torch matmul + topk": lambda: (queries @ items.T).topk(k),
        "torch in chunks": lambda: torch_chunked(queries, items, k),
        "pylum.ops.topk": lambda: pylum.ops.topk(queries, items, k),
    }
    if faiss is not None and dtype == torch.float32:
        faiss.omp_set_num_threads(torch.get_num_threads())
        # With its own threshold faiss may score without a matrix product, several times slower.
        faiss.cvar.distance_compute_blas_threshold = 1
        index = faiss.IndexFlatIP(dim)
        index.add(items.numpy())
        contestants["faiss IndexFlatIP"] = lambda: index.search(queries.numpy(), k)
    return compare(
        f"topk {num_queries} x {num_items} x {dim}, k {k}, {dtype}",
        contestants,
        baseline="torch matmul + topk",
        flops=2.0 * num_queries * num_items * dim,
        bytes=float(items.nbytes),
    )


def main() -> None:
    """With a path as argument the rows are written there as JSON."""
    rows = [
        measure(num_queries, num_items, 64, 100, dtype)
        for dtype in (torch.float32, torch.bfloat16)
        for num_queries, num_items in ((1, 1_000_000), (256, 200_000), (1024, 1682))
    ]
    if len(sys.argv) > 1:
        save(sys.argv[1], rows)


if __name__ == "__main__":
    main()
