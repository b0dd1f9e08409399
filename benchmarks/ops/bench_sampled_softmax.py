"""sampled_softmax beside torch's formula, eager and compiled, forward and backward.

flops = 6 * queries * candidates * dim: the logits and two gradients.
"""

import sys

import torch
import torch.nn.functional as F

import pylum
from benchmarks.harness import compare, save

TEMPERATURE = 0.05


def torch_loss(queries, items, targets, negatives):
    if negatives is None:
        return F.cross_entropy((queries @ items.T / TEMPERATURE).float(), targets)
    target = (queries * items[targets]).sum(1, keepdim=True)
    if negatives.dim() == 1:
        logits = queries @ items[negatives].T
    else:
        logits = torch.einsum("nd,nrd->nr", queries, items[negatives])
    logits = torch.cat([target, logits], 1).float() / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros_like(targets))


def measure(num_queries, num_items, dim, dtype=torch.float32, negatives=None, compiled=False):
    queries = F.normalize(torch.randn(num_queries, dim), dim=1).to(dtype).requires_grad_()
    items = F.normalize(torch.randn(num_items, dim), dim=1).to(dtype).requires_grad_()
    targets = torch.randint(num_items, (num_queries,))
    rows = None if negatives is None else torch.randint(num_items, negatives)

    def step(loss):
        queries.grad = items.grad = None
        loss(queries, items, targets, rows).backward()

    def pylum_loss(queries, items, targets, rows):
        return pylum.ops.sampled_softmax(
            queries, items, targets, temperature=TEMPERATURE, negatives=rows
        )

    contestants = {
        "torch eager": lambda: step(torch_loss),
        "pylum.ops.sampled_softmax": lambda: step(pylum_loss),
    }
    if compiled:
        torch_compiled = torch.compile(torch_loss)
        contestants["torch compiled"] = lambda: step(torch_compiled)
    candidates = num_items if rows is None else rows.shape[-1]
    kind = "all" if rows is None else f"negatives {list(negatives)}"
    return compare(
        f"sampled_softmax {num_queries} x {num_items} x {dim}, {kind}, {dtype}",
        contestants,
        baseline="torch eager",
        flops=6.0 * num_queries * candidates * dim,
    )


def main() -> None:
    """With a path as argument the rows are written there as JSON."""
    rows = [
        measure(8192, 1682, 64, compiled=True),
        measure(8192, 1682, 64, torch.bfloat16, compiled=True),
        measure(8192, 1682, 64, negatives=(128,)),
        measure(8192, 1682, 64, negatives=(8192, 128)),
        measure(8192, 8192, 128, compiled=True),
    ]
    if len(sys.argv) > 1:
        save(sys.argv[1], rows)


if __name__ == "__main__":
    main()
