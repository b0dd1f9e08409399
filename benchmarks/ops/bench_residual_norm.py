"""residual_norm, forward and backward, beside torch's dropout, addition and rms_norm.

Bytes: forward reads branch and residual and writes sum and normed; backward reads dsum, dnormed
and sum and writes both gradients: 9 tensors.
"""

import torch
import torch.nn.functional as F

import pylum
from benchmarks.harness import compare


def main() -> None:
    for rows, width in ((16_384, 50), (8_192, 256), (4_096, 1_024)):
        branch, residual = (torch.randn(rows, width, requires_grad=True) for _ in range(2))
        weight = torch.ones(width, requires_grad=True)
        gradients = [torch.randn(rows, width) for _ in range(2)]

        def plain(branch=branch, residual=residual, weight=weight, gradients=gradients):
            total = residual + F.dropout(branch, 0.2)
            normed = F.rms_norm(total, weight.shape, weight, 1e-6)
            torch.autograd.backward([total, normed], gradients)

        def fused(branch=branch, residual=residual, weight=weight, gradients=gradients):
            out = pylum.ops.residual_norm(branch, residual, weight, dropout=0.2, seed=1)
            torch.autograd.backward(out, gradients)

        compare(
            f"residual_norm {rows:,} x {width}, float32, dropout .2, forward and backward",
            {"torch": plain, "pylum.ops.residual_norm": fused},
            baseline="torch",
            bytes=9.0 * 4 * rows * width,
        )


if __name__ == "__main__":
    main()
