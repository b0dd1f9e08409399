"""prefix_attention beside two torch SDPA calls merged by log-sum-exp.

The composition reads the prefix once, contiguous and already gathered, for all conditions as query
rows of one call; the second part is each condition on itself. flops = 4 * conditions * heads *
head_dim * prefix; bytes = the prefix's keys and values, read once.
"""

from __future__ import annotations

import argparse

import torch

import pylum
from benchmarks.harness import compare, save
from pylum.ops import Mask, PagedPrefix
from pylum.ragged import lengths_to_offsets

HEADS, HEAD_DIM = 8, 64


def case(users: int, prefix: int, conditions: int, dtype: torch.dtype):
    q, k, v = (torch.randn(users * conditions, HEADS, HEAD_DIM).to(dtype) for _ in range(3))
    old_k, old_v = (torch.randn(users * prefix, HEADS, HEAD_DIM).to(dtype) for _ in range(2))
    pages = (prefix + 63) // 64
    lengths = torch.full((users,), prefix)
    paged = PagedPrefix(
        *pylum.ops.pages_like(k, v, users * pages),
        torch.arange(users * pages).view(users, pages),
        lengths,
    )
    pylum.ops.append_pages(
        paged, old_k, old_v, lengths_to_offsets(lengths), starts=torch.zeros_like(lengths)
    )
    counts = torch.full((users,), conditions)
    offsets, mask = lengths_to_offsets(counts), Mask(num_targets=counts)
    dense = [
        x.view(users, -1, HEADS, HEAD_DIM).transpose(1, 2).contiguous() for x in (old_k, old_v)
    ]
    rows = q.view(users, conditions, HEADS, HEAD_DIM).transpose(1, 2).contiguous()

    def ours() -> torch.Tensor:
        with torch.inference_mode():
            return pylum.ops.prefix_attention(q, k, v, offsets, paged, mask)

    def composed() -> torch.Tensor:
        with torch.inference_mode():
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(rows, *dense)
            own = (q * k).sum(-1).float().mul(HEAD_DIM**-0.5).view(users, conditions, HEADS)
            own = own.transpose(1, 2)
            share = torch.sigmoid(own - lse.view(users, HEADS, conditions)).unsqueeze(-1)
            values = v.view(users, conditions, HEADS, HEAD_DIM).transpose(1, 2)
            return torch.lerp(out.float(), values.float(), share).to(dtype)

    same = composed().transpose(1, 2).reshape(-1, HEADS, HEAD_DIM)
    assert (ours().float() - same.float()).abs().max() < 3e-2
    return ours, composed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", help="write JSON here")
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for users, prefix, conditions in (
            (1, 2048, 64),
            (1, 2048, 8),
            (1, 2048, 1),
            (16, 512, 8),
            (1, 8192, 256),
        ):
            ours, composed = case(users, prefix, conditions, dtype)
            name = str(dtype).removeprefix("torch.")
            rows.append(
                compare(
                    f"{users} users, prefix {prefix}, {conditions} conditions, "
                    f"H {HEADS} D {HEAD_DIM} {name}",
                    {"two SDPA calls merged": composed, "pylum.ops.prefix_attention": ours},
                    baseline="two SDPA calls merged",
                    flops=4.0 * users * conditions * HEADS * HEAD_DIM * prefix,
                    bytes=2.0 * users * prefix * HEADS * HEAD_DIM * dtype.itemsize,
                    seconds=arguments.seconds,
                )
            )
    if arguments.save:
        save(arguments.save, rows)


if __name__ == "__main__":
    main()
