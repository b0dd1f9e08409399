"""topk beside torch's matmul + topk. flops = 2 * queries * items * dim."""

import torch

import pylum
from benchmarks.harness import compare


def main() -> None:
    queries, items, k = torch.randn(64, 64), torch.randn(100_000, 64), 100
    compare(
        "topk 64 x 100,000 x 64, k 100, float32",
        {
            "torch matmul + topk": lambda: (queries @ items.T).topk(k),
            "pylum.ops.topk": lambda: pylum.ops.topk(queries, items, k),
        },
        baseline="torch matmul + topk",
        flops=2.0 * queries.shape[0] * items.numel(),
    )


if __name__ == "__main__":
    main()
