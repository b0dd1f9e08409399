"""One training step of a table: fused row-wise updates beside torch's sparse optimisers.

torch: F.embedding(sparse=True), backward, optimiser step. pylum: gather to a leaf, backward, fused
update. Bytes of the fused Adagrad: each gradient read, each touched row read and written.
"""

import torch
import torch.nn.functional as F

from benchmarks.harness import compare
from pylum import ops

LOOKUPS, ROWS, DIM = 81_920, 1_000_000, 64


def zipf(count: int, rows: int) -> torch.Tensor:
    """Rows by a Zipf law with exponent 1.05, in random order of popularity."""
    weights = torch.arange(1, rows + 1).double().pow(-1.05).cumsum(0)
    ranks = torch.searchsorted(weights / weights[-1], torch.rand(count).double())
    return torch.randperm(rows)[ranks.clamp_max(rows - 1)]


def main() -> None:
    torch.manual_seed(0)
    table = torch.randn(ROWS, DIM)
    parameter = torch.nn.Parameter(table.clone())
    state, moment = torch.zeros(ROWS), torch.zeros(ROWS, DIM)
    dout = torch.randn(LOOKUPS, DIM)
    adagrad = torch.optim.Adagrad([parameter], lr=0.01)
    adam = torch.optim.SparseAdam([parameter], lr=0.01)

    def sparse(rows, optimizer):
        F.embedding(rows, parameter, sparse=True).backward(dout)
        optimizer.step()
        parameter.grad = None

    def fused(rows, update):
        leaf = ops.embedding_sequence([table], [rows]).requires_grad_()
        leaf.backward(dout)
        update([ops.RowUse(rows, leaf.grad)])

    for name, rows in (
        ("uniform", torch.randint(ROWS, (LOOKUPS,))),
        ("Zipf", zipf(LOOKUPS, ROWS)),
    ):
        touched = len(rows.unique())
        print(f"{name}: {touched:,} rows touched")
        for title, optimizer, update in (
            (
                "Adagrad",
                adagrad,
                lambda uses: ops.row_wise_adagrad_(table, state, uses, lr=0.01),
            ),
            (
                "Adam",
                adam,
                lambda uses: ops.row_wise_adamw_(table, moment, state, uses, lr=0.01, step=5),
            ),
        ):
            use = [ops.RowUse(rows, dout)]
            compare(
                f"{title}, {LOOKUPS:,} lookups in {ROWS:,} x {DIM}, {name}",
                {
                    "torch sparse step": lambda o=optimizer, r=rows: sparse(r, o),
                    "pylum step": lambda u=update, r=rows: fused(r, u),
                    "pylum update alone": lambda u=update, w=use: u(w),
                },
                baseline="torch sparse step",
                bytes=4.0 * DIM * (LOOKUPS + 2 * touched),
            )


if __name__ == "__main__":
    main()
