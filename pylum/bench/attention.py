"""Rows of attention: dense, packed, SiLU, and targets over a cached history."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from pylum import ops
from pylum.bench.entry import Entry, inference, name, training
from pylum.ops import LayerWeights, Mask, PagedPrefix
from pylum.ragged import lengths_to_offsets

HEADS = 8
WIDTH, HEAD_DIM, FFN, LAYERS = 512, 64, 1376, 4
flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
MODES = (("forward", inference, 4), ("forward + backward", training, 14))


def entries() -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Ops and makers of their rows; tensors are allocated when a row is made."""
    for dtype in (torch.bfloat16, torch.float32):
        for head_dim in (64, 128):
            for length, goal in ((256, 3.0), (1024, 3.0), (4096, 2.5)):
                for mode in (0, 1):
                    wanted = (3.0 if mode else goal) if dtype == torch.bfloat16 else 1.0
                    title = f"dense causal, {MODES[mode][0]}"
                    yield title, partial(dense, dtype, head_dim, length, mode, wanted)
        for mode in (0, 1):
            wanted = ((5.0, 8.0) if dtype == torch.bfloat16 else (2.3, 2.5))[mode]
            yield f"packed causal, {MODES[mode][0]}", partial(packed, dtype, mode, wanted)
        for mode in (0, 1):
            yield f"few heads, {MODES[mode][0]}", partial(few_heads, dtype, mode)
    for length, goal in ((256, 5.0), (1024, 8.0), (4096, 12.0)):
        for mode in (0, 1):
            wanted = 5.0 if mode else goal
            yield f"HSTU SiLU, {MODES[mode][0]}", partial(silu, length, mode, wanted)
    for dtype in (torch.bfloat16, torch.float32):
        for prefix in (512, 2048, 8192):
            for count in (1, 8, 64, 256):
                yield "group query, one layer", partial(group_query, dtype, prefix, count)
        for count in (1, 8, 64, 256):
            yield "warm query, 4 layers, d 512", partial(warm_query, dtype, count)


def qkv(rows: int, head_dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.randn(rows, HEADS, head_dim).to(dtype) for _ in range(3)]


def by_sequence(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sizes: list[int]) -> Any:
    """One causal SDPA call a sequence. Slices instead of ``split`` would zero-fill gradients."""
    parts = zip(*(x.split(sizes) for x in (q, k, v)), strict=True)
    outs = [
        F.scaled_dot_product_attention(
            *[x.transpose(0, 1)[None] for x in part],  # type: ignore[misc]
            is_causal=True,
        )
        for part in parts
    ]
    return torch.cat([out[0].transpose(0, 1) for out in outs])


def dense(dtype: torch.dtype, head_dim: int, length: int, mode: int, goal: float) -> Entry:
    title, run, factor = MODES[mode]
    tensors = qkv(length, head_dim, dtype)
    offsets = torch.tensor([0, length])
    share = None if dtype == torch.bfloat16 or mode else 0.8 if length >= 1024 else 0.65
    return Entry(
        f"dense causal, {title}",
        f"L {length}, D {head_dim}, {name(dtype)}",
        goal,
        run(lambda q, k, v: ops.attention(q, k, v, offsets), *tensors),
        {"SDPA": run(lambda q, k, v: by_sequence(q, k, v, [length]), *tensors)},
        factor * HEADS * head_dim * length * (length + 1) / 2,
        0,
        dtype,
        share,
    )


def packed(dtype: torch.dtype, mode: int, goal: float) -> Entry:
    title, run, factor = MODES[mode]
    generator = torch.Generator().manual_seed(3)
    raw = (0.75 * torch.randn(64, generator=generator)).exp()
    lengths = (raw / raw.mean() * 199).round().clamp(1, 696).long()
    sizes, offsets = lengths.tolist(), lengths_to_offsets(lengths)
    tensors = qkv(sum(sizes), 64, dtype)
    return Entry(
        f"packed causal, {title}",
        f"64 lognormal lengths, mean 199, {name(dtype)}",
        goal,
        run(lambda q, k, v: ops.attention(q, k, v, offsets), *tensors),
        {"SDPA by sequence": run(lambda q, k, v: by_sequence(q, k, v, sizes), *tensors)},
        factor * HEADS * 64 * float((lengths * (lengths + 1) // 2).sum()),
        0,
        dtype,
    )


def few_heads(dtype: torch.dtype, mode: int) -> Entry:
    """One sequence and key head: its rows are all there is to share among threads."""
    title, run, factor = MODES[mode]
    length, heads = 4096, 2
    q, k, v = (
        x[:, :n].contiguous() for x, n in zip(qkv(length, 64, dtype), (heads, 1, 1), strict=True)
    )
    offsets = torch.tensor([0, length])

    def composed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    return Entry(
        f"few heads, {title}",
        f"L {length}, D 64, {heads} heads of one key head, {name(dtype)}",
        None,
        run(lambda q, k, v: ops.attention(q, k, v, offsets), q, k, v),
        {"SDPA": run(composed, q, k, v)},
        factor * heads * 64 * length * (length + 1) / 2,
        0,
        dtype,
    )


def silu(length: int, mode: int, goal: float) -> Entry:
    title, run, factor = MODES[mode]
    tensors = qkv(length, 64, torch.bfloat16)
    offsets, keep = torch.tensor([0, length]), torch.ones(length, length).tril().bfloat16() * 1e-3

    def eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        a, b, c = (x.transpose(0, 1) for x in (q, k, v))
        return (F.silu(a @ b.mT) * keep @ c).transpose(0, 1)

    compiled = torch.compile(eager, dynamic=False)

    def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return ops.attention(q, k, v, offsets, score="silu", score_scale=1e-3)

    return Entry(
        f"HSTU SiLU, {title}",
        f"L {length}, D 64, bfloat16",
        goal,
        run(ours, *tensors),
        {"torch": run(eager, *tensors), "torch.compile": run(compiled, *tensors)},
        factor * HEADS * 64 * length * (length + 1) / 2,
        0,
        torch.bfloat16,
    )


def pages(k: torch.Tensor, v: torch.Tensor) -> PagedPrefix:
    """One user's history in pages."""
    count = (len(k) + 63) // 64
    prefix = PagedPrefix(
        *ops.pages_like(k, v, count), torch.arange(count)[None], torch.tensor([len(k)])
    )
    ops.append_pages(prefix, k, v, torch.tensor([0, len(k)]), starts=torch.tensor([0]))
    return prefix


def over_history(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Targets ``[heads, N, head_dim]`` over a history, each then over itself, by log-sum-exp."""
    out, lse = flash(q[None], keys, values)
    own = (q.float() * k.float()).sum(-1) * q.shape[-1] ** -0.5
    share = torch.sigmoid(own - lse[0].float())[..., None]
    return ((1 - share) * out[0].float() + share * v.float()).to(v.dtype)


def group_query(dtype: torch.dtype, length: int, count: int) -> Entry:
    old = qkv(length, HEAD_DIM, dtype)[:2]
    prefix = pages(*old)
    keys, values = (x.transpose(0, 1)[None].contiguous() for x in old)
    q, k, v = qkv(count, HEAD_DIM, dtype)
    heads = [x.transpose(0, 1).contiguous() for x in (q, k, v)]
    offsets, mask = torch.tensor([0, count]), Mask(num_targets=[count])
    return Entry(
        "group query, one layer",
        f"N {count} on {length:,} tokens, {name(dtype)}",
        {1: None, 8: 4.0}.get(count, 3.0),
        inference(lambda q, k, v: ops.prefix_attention(q, k, v, offsets, prefix, mask), q, k, v),
        {"two SDPA merged": inference(lambda q, k, v: over_history(q, k, v, keys, values), *heads)},
        4.0 * count * HEADS * HEAD_DIM * length,
        2.0 * length * HEADS * HEAD_DIM * dtype.itemsize,
        dtype,
        0.85 if count <= 8 else None,
        either=True,
    )


def warm_query(dtype: torch.dtype, count: int) -> Entry:
    """Four layers of width 512 on 2,048 cached tokens."""
    length = 2048
    shapes = ((WIDTH,), (3 * WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH,), (2 * FFN, WIDTH))
    layers = []
    for _ in range(LAYERS):
        weights = [torch.randn(s).mul(s[-1] ** -0.5).to(dtype) for s in (*shapes, (WIDTH, FFN))]
        old = qkv(length, HEAD_DIM, dtype)[:2]
        dense = [x.transpose(0, 1)[None].contiguous() for x in old]
        layers.append((LayerWeights(*weights), pages(*old), dense))
    x = torch.randn(count, WIDTH).to(dtype)
    positions = torch.full((count,), 3)
    angle = torch.arange(4)[:, None] * 100.0 ** (-torch.arange(HEAD_DIM // 2) / 32)
    cos, sin = angle.cos(), angle.sin()
    c, s = (part[positions, None].to(dtype) for part in (cos, sin))
    offsets, mask = torch.tensor([0, count]), Mask(num_targets=[count])

    def ours(x: torch.Tensor) -> torch.Tensor:
        for w, prefix, _ in layers:
            x = ops.query_layer(x, offsets, positions, cos, sin, w, prefix, mask, heads=HEADS)
        return x

    def rotate(h: torch.Tensor) -> torch.Tensor:
        a, b = h.chunk(2, -1)
        return torch.cat([a * c - b * s, b * c + a * s], -1)

    def composed(x: torch.Tensor) -> torch.Tensor:
        for w, _, dense in layers:
            h = F.rms_norm(x, (WIDTH,), w.attention_norm, 1e-6)
            q, k, v = F.linear(h, w.qkv).unflatten(1, (3, HEADS, HEAD_DIM)).unbind(1)
            heads = [part.transpose(0, 1) for part in (rotate(q), rotate(k), v)]
            attended = over_history(*heads, *dense)
            x = x + F.linear(attended.transpose(0, 1).flatten(1), w.out)
            h = F.rms_norm(x, (WIDTH,), w.ffn_norm, 1e-6)
            gate, up = F.linear(h, w.gate_up).chunk(2, 1)
            x = x + F.linear(F.silu(gate) * up, w.down)
        return x

    numbers = sum(part.numel() for w, _, _ in layers for part in w)
    numbers += LAYERS * 2 * length * HEADS * HEAD_DIM
    return Entry(
        "warm query, 4 layers, d 512",
        f"N {count} on {length:,} tokens, {name(dtype)}",
        3.0,
        inference(ours, x),
        {"torch, two SDPA merged": inference(composed, x)},
        2.0 * count * numbers,
        float(dtype.itemsize) * numbers,
        dtype,
        0.8 if count < 64 else 0.5,
        either=True,
    )
