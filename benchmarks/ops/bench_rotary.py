"""rotary, forward and backward, beside torch. Bytes: each way reads and writes x once: 4 in all."""

import torch

import pylum
from benchmarks.harness import compare


def main() -> None:
    for total, heads, head_dim in ((16_384, 1, 50), (16_384, 4, 64), (4_096, 8, 128)):
        x = torch.randn(total, 3 * heads * head_dim, requires_grad=True)
        positions = torch.arange(total) % 200
        angles = torch.arange(200.0)[:, None] * torch.rand(head_dim // 2)
        cos, sin = angles.cos(), angles.sin()
        gradients = [torch.randn(total, heads, head_dim) for _ in range(3)]

        def plain(x=x, positions=positions, cos=cos, sin=sin, gradients=gradients, heads=heads):
            c, s = cos[positions, None], sin[positions, None]
            q, k, v = x.view(len(x), 3 * heads, -1).split(heads, 1)

            def turned(h):
                a, b = h.chunk(2, 2)
                return torch.cat([a * c - b * s, b * c + a * s], 2)

            torch.autograd.backward([turned(q), turned(k), v], gradients)

        def fused(x=x, positions=positions, cos=cos, sin=sin, gradients=gradients, heads=heads):
            out = pylum.ops.rotary(x, positions, cos, sin, heads=heads, kv_heads=heads)
            torch.autograd.backward(out, gradients)

        compare(
            f"rotary {total:,} x {heads} x {head_dim}, float32, forward and backward",
            {"torch": plain, "pylum.ops.rotary": fused},
            baseline="torch",
            bytes=4.0 * 4 * x.numel(),
        )


if __name__ == "__main__":
    main()
