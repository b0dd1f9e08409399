"""dot_interaction, forward and backward, beside torch's product and gather of the triangle.

Bytes: vectors are read twice and their gradient written, pairs are written and read once. Flops:
2 dim for each of the pairs forward, 4 dim backward.
"""

import torch

import pylum
from benchmarks.harness import compare


def main() -> None:
    for batch, count, dim in ((512, 8, 16), (512, 27, 16), (2_048, 27, 64), (512, 60, 128)):
        vectors = torch.randn(batch, count, dim, requires_grad=True)
        pairs = count * (count - 1) // 2
        gradient = torch.randn(batch, pairs)
        row, column = torch.tril_indices(count, count, -1)

        def plain(vectors=vectors, gradient=gradient, row=row, column=column):
            products = vectors @ vectors.transpose(1, 2)
            products[:, row, column].backward(gradient)

        def fused(vectors=vectors, gradient=gradient):
            pylum.ops.dot_interaction(vectors).backward(gradient)

        compare(
            f"dot_interaction {batch:,} x {count} x {dim}, float32, forward and backward",
            {"torch": plain, "pylum.ops.dot_interaction": fused},
            baseline="torch",
            bytes=4.0 * batch * (3 * count * dim + 2 * pairs),
            flops=6.0 * batch * pairs * dim,
        )


if __name__ == "__main__":
    main()
