"""embedding_bag beside F.embedding_bag for each table, then cat.

Bytes: each row read once, the result written once, one int64 per lookup and per bag.
"""

import torch
import torch.nn.functional as F

from benchmarks.harness import compare
from pylum import ops

BATCH, TABLES, ROWS, DIM, LENGTH = 2048, 8, 200_000, 64, 10


def main() -> None:
    torch.manual_seed(0)
    tables = [torch.randn(ROWS, DIM) for _ in range(TABLES)]
    offsets = [torch.arange(BATCH + 1) * LENGTH for _ in tables]
    indices = [torch.randint(ROWS, (BATCH * LENGTH,)) for _ in tables]

    def plain():
        bags = [
            F.embedding_bag(i, t, o, mode="sum", include_last_offset=True)
            for t, i, o in zip(tables, indices, offsets, strict=True)
        ]
        return torch.cat(bags, 1)

    lookups = TABLES * BATCH * LENGTH
    compare(
        f"{TABLES} tables of {ROWS:,} x {DIM}, {BATCH} bags of {LENGTH}, float32",
        {"torch": plain, "pylum": lambda: ops.embedding_bag(tables, indices, offsets)},
        baseline="torch",
        bytes=4.0 * DIM * (lookups + TABLES * BATCH) + 8.0 * lookups,
    )

    tables = [table[:20_000].clone().requires_grad_() for table in tables]
    indices = [index % 20_000 for index in indices]
    dout = torch.randn(BATCH, TABLES * DIM)
    compare(
        "forward + backward, 20,000 rows each",
        {
            "torch": lambda: torch.autograd.grad(plain(), tables, dout),
            "pylum": lambda: torch.autograd.grad(
                ops.embedding_bag(tables, indices, offsets), tables, dout
            ),
        },
        baseline="torch",
    )


if __name__ == "__main__":
    main()
