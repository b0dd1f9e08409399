"""attention beside one torch SDPA call per sequence over torch.split: slices zero-fill gradients.

flops = 4 * heads * head_dim * pairs forward and 10 backward, over the pairs of row and key seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F

import pylum
from benchmarks.harness import compare, save
from pylum.ragged import lengths_to_offsets

HEADS, HEAD_DIM = 8, 64


def lognormal_lengths(batch: int = 64) -> torch.Tensor:
    """Lognormal lengths of mean 199 and largest 696."""
    generator = torch.Generator().manual_seed(3)
    raw = (0.75 * torch.randn(batch, generator=generator)).exp()
    lengths = (raw / raw.mean() * 199).round().clamp(1, 696).long()
    return lengths


def loop(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    parts = [x.split(lengths) for x in (q, k, v)]
    outs = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in part), is_causal=True)
        for part in zip(*parts, strict=True)
    ]
    return torch.cat([out[0].transpose(0, 1) for out in outs])


def loop_silu(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int]):
    outs = []
    for part in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
        a, b, c = (x.transpose(0, 1) for x in part)
        outs.append((F.silu(a @ b.mT).tril() * 1e-3 @ c).transpose(0, 1))
    return torch.cat(outs)


def bias_of(lengths: torch.Tensor) -> pylum.ops.RelativeBias:
    """HSTU's: minutes to days between the events of a sequence."""
    total, longest = int(lengths.sum()), int(lengths.max())
    generator = torch.Generator().manual_seed(4)
    times = (torch.randn(total, generator=generator) * 3 + 6).exp().long().cumsum(0)
    return pylum.ops.RelativeBias(
        torch.randn(2 * longest - 1, generator=generator),
        torch.randn(129, generator=generator),
        pylum.ops.log_thresholds(),
        times,
        torch.cat([times[1:], times[-1:]]),
    )


def loop_bias(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], bias):
    outs = []
    columns = (q, k, v, bias.timestamps, bias.query_times)
    for a, b, c, own, asked in zip(*(x.split(lengths) for x in columns), strict=True):
        n, middle = len(own), len(bias.position_table) // 2
        distance = torch.arange(n) - torch.arange(n)[:, None] + middle
        gap = (asked[:, None] - own).abs()
        bucket = torch.bucketize(gap, bias.thresholds, right=True)
        added = (bias.position_table[distance] + bias.time_table[bucket]).to(a.dtype)
        scores = a.transpose(0, 1) @ b.transpose(0, 1).mT + added
        out = F.silu(scores).tril() * 1e-3 @ c.transpose(0, 1)
        outs.append(out.transpose(0, 1))
    return torch.cat(outs)


def training(call: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> Callable[[], object]:
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    with torch.no_grad():
        dout = torch.randn_like(call(*leaves))
    return lambda: torch.autograd.grad(call(*leaves), leaves, dout)


def inference(call: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> Callable[[], object]:
    def run() -> torch.Tensor:
        with torch.inference_mode():
            return call(*tensors)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", help="write JSON here")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", default="", help="run titles that contain this")
    arguments = parser.parse_args()
    shapes = {
        "lognormal 64 x mean 199": lognormal_lengths(),
        **{f"1 x {n}": torch.tensor([n]) for n in (256, 1024, 4096)},
    }
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for shape, lengths in shapes.items():
            offsets, bias = lengths_to_offsets(lengths), bias_of(lengths)
            sizes = lengths.tolist()
            pairs = float((lengths * (lengths + 1) // 2).sum())
            tensors = [
                torch.randn(sum(sizes), HEADS, HEAD_DIM).to(dtype)
                for _ in range(3)
            ]  # fmt: skip
            contestants = {
                "softmax": (loop, lambda q, k, v, o=offsets: pylum.ops.attention(q, k, v, o)),
                "silu": (
                    loop_silu,
                    lambda q, k, v, o=offsets: pylum.ops.attention(
                        q, k, v, o, score="silu", score_scale=1e-3
                    ),
                ),
                "silu bias": (
                    lambda q, k, v, s, b=bias: loop_bias(q, k, v, s, b),
                    lambda q, k, v, o=offsets, b=bias: pylum.ops.attention(
                        q, k, v, o, score="silu", score_scale=1e-3, bias=b
                    ),
                ),
            }
            for score, (baseline, op) in contestants.items():
                for mode, run, factor in (("forward", inference, 4), ("both", training, 14)):
                    name = str(dtype).removeprefix("torch.")
                    title = f"{score} {mode} {shape} H {HEADS} D {HEAD_DIM} {name}"
                    if arguments.only not in title:
                        continue
                    rows.append(
                        compare(
                            title,
                            {
                                "torch per sequence": run(
                                    lambda q, k, v, f=baseline, s=sizes: f(q, k, v, s), *tensors
                                ),
                                "pylum.ops.attention": run(op, *tensors),
                            },
                            baseline="torch per sequence",
                            flops=factor * HEADS * HEAD_DIM * pairs,
                            seconds=arguments.seconds,
                        )
                    )
    if arguments.save:
        save(arguments.save, rows)


if __name__ == "__main__":
    main()
