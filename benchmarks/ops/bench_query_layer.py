"""query_layer beside the same layer in plain torch, with one head's keys and values contiguous.

bytes = weights and cached keys and values, read once; flops = 2 * weights * targets + 4 * targets *
heads * head_dim * prefix.
"""

from __future__ import annotations

import argparse

import torch
from torch.nn import functional

import pylum
from benchmarks.harness import compare, save
from pylum.ops import LayerWeights, Mask, PagedPrefix

WIDTH, HEADS, HEAD_DIM, FFN, PREFIX = 512, 8, 64, 1376, 2048
flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def case(targets: int, dtype: torch.dtype):
    """Both contestants and the bytes of weights."""
    shapes = (
        (WIDTH,),
        (3 * WIDTH, WIDTH),
        (WIDTH, WIDTH),
        (WIDTH,),
        (2 * FFN, WIDTH),
        (WIDTH, FFN),
    )
    w = LayerWeights(*(torch.randn(shape).mul(shape[-1] ** -0.5).to(dtype) for shape in shapes))
    k, v = (torch.randn(PREFIX, HEADS, HEAD_DIM).to(dtype) for _ in range(2))
    pages = PREFIX // 64
    prefix = PagedPrefix(
        *pylum.ops.pages_like(k, v, pages), torch.arange(pages)[None], torch.tensor([PREFIX])
    )
    pylum.ops.append_pages(prefix, k, v, torch.tensor([0, PREFIX]), starts=torch.tensor([0]))
    keys, values = (x.transpose(0, 1)[None].contiguous() for x in (k, v))
    x = torch.randn(targets, WIDTH).to(dtype)
    offsets, mask = torch.tensor([0, targets]), Mask(num_targets=[targets])
    positions = torch.full((targets,), 3)
    angle = torch.arange(4)[:, None] * 100.0 ** (-torch.arange(HEAD_DIM // 2) / 32)
    cos, sin = angle.cos(), angle.sin()

    @torch.inference_mode()
    def ours() -> torch.Tensor:
        return pylum.ops.query_layer(x, offsets, positions, cos, sin, w, prefix, mask, heads=HEADS)

    def rotate(h: torch.Tensor) -> torch.Tensor:
        a, b = h.chunk(2, -1)
        c, s = cos[positions, None].to(dtype), sin[positions, None].to(dtype)
        return torch.cat([a * c - b * s, b * c + a * s], -1)

    @torch.inference_mode()
    def composed() -> torch.Tensor:
        h = functional.rms_norm(x, (WIDTH,), w.attention_norm, 1e-6)
        q, k, v = functional.linear(h, w.qkv).unflatten(1, (3, HEADS, HEAD_DIM)).unbind(1)
        q, k, v = (part.transpose(0, 1) for part in (rotate(q), rotate(k), v))
        out, lse = flash(q[None], keys, values)
        own = (q.float() * k.float()).sum(-1) * HEAD_DIM**-0.5
        share = torch.sigmoid(own - lse[0].float())[..., None]
        attended = ((1 - share) * out[0].float() + share * v.float()).to(dtype)
        total = x + functional.linear(attended.transpose(0, 1).flatten(1), w.out)
        h = functional.rms_norm(total, (WIDTH,), w.ffn_norm, 1e-6)
        gate, up = functional.linear(h, w.gate_up).chunk(2, 1)
        return total + functional.linear(functional.silu(gate) * up, w.down)

    assert (ours().float() - composed().float()).abs().max() < 0.1
    return ours, composed, sum(part.numel() for part in w)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", help="write JSON here")
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for targets in (1, 8, 64, 256):
            ours, composed, weights = case(targets, dtype)
            cached = 2 * PREFIX * HEADS * HEAD_DIM
            rows.append(
                compare(
                    f"{targets} targets, prefix {PREFIX}, width {WIDTH}, "
                    f"{str(dtype).removeprefix('torch.')}",
                    {"torch": composed, "pylum.ops.query_layer": ours},
                    baseline="torch",
                    flops=2.0 * targets * (weights + cached),
                    bytes=float(dtype.itemsize) * (weights + cached),
                    seconds=arguments.seconds,
                )
            )
    if arguments.save:
        save(arguments.save, rows)


if __name__ == "__main__":
    main()
