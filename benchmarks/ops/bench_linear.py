"""linear, forward and backward, beside torch's. flops = 6 * total * depth * width."""

import torch

import pylum
from benchmarks.harness import compare


def main() -> None:
    for total, depth, width in (
        (16_384, 50, 150),
        (16_384, 64, 352),
        (8_192, 256, 1_024),
        (2_048, 1_024, 1_024),
    ):
        x = torch.randn(total, depth, requires_grad=True)
        weight = torch.randn(width, depth, requires_grad=True)
        dy = torch.randn(total, width)
        compare(
            f"linear {total:,} x {depth} -> {width}, float32, forward and backward",
            {
                "torch": lambda x=x, w=weight, d=dy: torch.nn.functional.linear(x, w).backward(d),
                "pylum.ops.linear": lambda x=x, w=weight, d=dy: pylum.ops.linear(x, w).backward(d),
            },
            baseline="torch",
            flops=6.0 * total * depth * width,
        )


if __name__ == "__main__":
    main()
