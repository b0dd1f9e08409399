"""swiglu, forward and backward, beside torch's silu and product.

Bytes: forward reads 2 widths and writes 1; backward reads 3 and writes 2: 8 in all.
"""

import torch
import torch.nn.functional as F

import pylum
from benchmarks.harness import compare


def main() -> None:
    for rows, width in ((16_384, 48), (16_384, 136), (4_096, 1_376)):
        gate_up = torch.randn(rows, 2 * width, requires_grad=True)
        gradient = torch.randn(rows, width)

        def plain(gate_up=gate_up, gradient=gradient):
            gate, up = gate_up.chunk(2, 1)
            (F.silu(gate) * up).backward(gradient)

        def fused(gate_up=gate_up, gradient=gradient):
            pylum.ops.swiglu(gate_up).backward(gradient)

        compare(
            f"swiglu {rows:,} x {width}, float32, forward and backward",
            {"torch": plain, "pylum.ops.swiglu": fused},
            baseline="torch",
            bytes=8.0 * 4 * rows * width,
        )


if __name__ == "__main__":
    main()
