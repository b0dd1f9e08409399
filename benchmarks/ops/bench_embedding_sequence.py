"""embedding_sequence beside F.embedding, cat, add and cast.

Bytes: each row and position row read once, the result written once, one int64 per lookup.
"""

import torch
import torch.nn.functional as F

from benchmarks.harness import compare
from pylum import ops

TOKENS, ROWS, DIM = 81_920, 1_000_000, 64


def main() -> None:
    torch.manual_seed(0)
    tables = [torch.randn(ROWS, DIM), torch.randn(1_000, DIM)]
    indices = [torch.randint(len(table), (TOKENS,)) for table in tables]
    positions = torch.randn(4096, 2 * DIM), torch.arange(TOKENS) % 4096
    read = TOKENS * 2 * DIM * 4

    compare(
        f"one table, {TOKENS:,} rows of {ROWS:,} x {DIM}, float32",
        {
            "F.embedding": lambda: F.embedding(indices[0], tables[0]),
            "pylum": lambda: ops.embedding_sequence(tables[:1], indices[:1]),
        },
        baseline="F.embedding",
        bytes=2 * read / 2 + 8 * TOKENS,
    )

    def plain(tables, positions, dtype):
        rows = [F.embedding(i, t) for t, i in zip(tables, indices, strict=True)]
        return (torch.cat(rows, 1) + F.embedding(positions[1], positions[0])).to(dtype)

    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        compare(
            f"two tables, concat + position, float32 -> {dtype}",
            {
                "torch": lambda dtype=dtype: plain(tables, positions, dtype),
                "pylum": lambda dtype=dtype: ops.embedding_sequence(
                    tables, indices, positions=positions, dtype=dtype
                ),
            },
            baseline="torch",
            bytes=2 * read + read * size / 4 + 24 * TOKENS,
        )

    small = [torch.randn(20_000, DIM, requires_grad=True), tables[1].requires_grad_()]
    indices[0] = indices[0] % 20_000
    leaf = positions[0].requires_grad_()
    dout = torch.randn(TOKENS, 2 * DIM).bfloat16()

    def train(forward):
        torch.autograd.grad(forward(), [*small, leaf], dout)

    compare(
        "forward + backward, 20,000 and 1,000 rows + position, float32 -> bfloat16",
        {
            "torch": lambda: train(lambda: plain(small, positions, torch.bfloat16)),
            "pylum": lambda: train(
                lambda: ops.embedding_sequence(
                    small, indices, positions=positions, dtype=torch.bfloat16
                )
            ),
        },
        baseline="torch",
    )


if __name__ == "__main__":
    main()
