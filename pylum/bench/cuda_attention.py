"""Rows of attention on a GPU, beside torch's flash, cuDNN, jagged and Flex attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pylum import ops
from pylum.bench import cuda_peers
from pylum.bench.entry import Entry, inference, name, training
from pylum.ops import Mask, PagedPrefix
from pylum.ragged import lengths_to_offsets

HEADS = 8
TOKENS = 16_384
# By row: how it is called, and flops of a score relative to one product of its head_dim.
MODES = (("forward", inference, 4), ("forward + backward", training, 14))
# The best of the peers at every length; backward, deterministic here, may take a little more.
GOALS = (1.0, 0.85)


def entries(tiny: bool) -> Iterator[tuple[str, Callable[[], Entry]]]:
    """Ops and makers of their rows; tensors are made on the default device."""
    tokens = 96 if tiny else TOKENS
    lengths = (48,) if tiny else (128, 512, 1024, 2048, 4096, 8192)
    for dtype in (torch.bfloat16,) if tiny else (torch.bfloat16, torch.float16):
        for head_dim in (64, 128) if dtype == torch.bfloat16 else (64,):
            for length in lengths:
                for mode in (0, 1):
                    title = f"dense causal, {MODES[mode][0]}"
                    yield title, partial(dense, dtype, head_dim, length, tokens, mode)
    for head_dim in (64, 128):
        for mode in (0, 1):
            yield f"packed causal, {MODES[mode][0]}", partial(packed, head_dim, mode, tiny)
    for length in (48,) if tiny else (256, 1024, 4096):
        for mode in (0, 1):
            yield f"HSTU SiLU, {MODES[mode][0]}", partial(silu, length, tokens, mode)
    for users, length in ((2, 64),) if tiny else ((64, 512), (64, 2048), (64, 8192)):
        for count in (1, 8, 64):
            yield "group query, one layer", partial(group_query, users, length, count)


def qkv(rows: int, head_dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.randn(rows, HEADS, head_dim, dtype=dtype) for _ in range(3)]


def sdpa(backend: SDPBackend, causal: bool = True) -> Callable[..., torch.Tensor]:
    """Torch's attention by one backend, or an error."""

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    return run


BACKENDS = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION}


def causal_flops(lengths: torch.Tensor, head_dim: int, factor: int) -> float:
    pairs = float((lengths.double() * (lengths + 1) / 2).sum())
    return factor * pairs * HEADS * head_dim


def dense(dtype: torch.dtype, head_dim: int, length: int, tokens: int, mode: int) -> Entry:
    batch = max(1, tokens // length)
    offsets = torch.arange(batch + 1) * length
    called, run, factor = MODES[mode]
    mine = qkv(batch * length, head_dim, dtype)
    theirs = [x.view(batch, length, HEADS, head_dim).transpose(1, 2).contiguous() for x in mine]
    return Entry(
        f"dense causal, {called}",
        f"{batch} x {length}, {HEADS} heads of {head_dim}, {name(dtype)}",
        GOALS[mode],
        run(lambda q, k, v: ops.attention(q, k, v, offsets), *mine),
        {label: _later(run, sdpa(backend), theirs) for label, backend in BACKENDS.items()},
        causal_flops(offsets.diff(), head_dim, factor),
        float(sum(x.nbytes for x in mine) * (4 if mode else 4 / 3)),
        dtype,
    )


def _later(run: Any, call: Callable[..., Any], tensors: list[torch.Tensor]) -> Callable[[], Any]:
    """``run(call, *tensors)``, made at the first call: a backend may refuse while it is made."""
    made: list[Callable[[], Any]] = []

    def go() -> Any:
        if not made:
            made.append(run(call, *tensors))
        return made[0]()

    return go


def lognormal(count: int, mean: int, most: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randn(count, generator=generator, device="cpu").exp() * mean / 1.65
    return sizes.long().clamp(1, most)


def packed(head_dim: int, mode: int, tiny: bool) -> Entry:
    """64 histories of lognormal lengths."""
    dtype = torch.bfloat16
    sizes = lognormal(6, 16, 40) if tiny else lognormal(64, 400, 4096)
    lengths, sizes = sizes.tolist(), sizes.to(torch.get_default_device())
    offsets = lengths_to_offsets(sizes)
    called, run, factor = MODES[mode]
    mine = qkv(sum(lengths), head_dim, dtype)

    def alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
        flash = sdpa(SDPBackend.FLASH_ATTENTION)
        outs = [flash(*(x.transpose(0, 1)[None] for x in part)) for part in parts]
        return torch.cat([out[0].transpose(0, 1) for out in outs])

    def jagged(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            torch.nested.nested_tensor_from_jagged(x, offsets).transpose(1, 2) for x in (q, k, v)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).values()

    def varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn

        bounds, most = offsets.int(), max(lengths)
        attend: Any = partial(varlen_attn, q, k, v, bounds, bounds, most, most)
        try:
            return attend(window_size=(-1, 0))
        except TypeError:  # torch before 2.11
            return attend(is_causal=True)

    contestants = {
        "one SDPA call a sequence": alone,
        "SDPA of jagged tensors": jagged,
        "varlen_attn": varlen,
        "FlexAttention": flex(sizes, offsets),
    }
    ours = run(lambda q, k, v: ops.attention(q, k, v, offsets), *mine)
    peers = {label: _later(run, call, mine) for label, call in contestants.items()}
    if mode == 0:  # it has no backward pass
        peers[cuda_peers.FLASHINFER] = cuda_peers.flashinfer_packed(mine, offsets, ours)
    return Entry(
        f"packed causal, {called}",
        f"{len(lengths)} lognormal, {sum(lengths):,} tokens, {HEADS} heads of {head_dim}",
        GOALS[mode],
        ours,
        peers,
        causal_flops(sizes, head_dim, factor),
        float(sum(x.nbytes for x in mine) * (4 if mode else 4 / 3)),
        dtype,
    )


def flex(sizes: torch.Tensor, offsets: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Compiled, with a mask of documents that is made once."""
    made: list[Any] = []

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        if not made:
            owner = torch.repeat_interleave(sizes)

            def sees(b: Any, h: Any, row: Any, key: Any) -> Any:
                return (row >= key) & (owner[row] == owner[key])

            total = len(owner)
            mask = create_block_mask(sees, None, None, total, total, device=q.device.type)
            made.extend([mask, torch.compile(flex_attention, dynamic=False)])
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        return made[1](q, k, v, block_mask=made[0])[0].transpose(0, 1)

    return run


def silu(length: int, tokens: int, mode: int) -> Entry:
    """HSTU's attention beside its formula, compiled."""
    batch, head_dim, dtype = max(1, tokens // length), 64, torch.bfloat16
    offsets = torch.arange(batch + 1) * length
    called, run, factor = MODES[mode]
    mine = qkv(batch * length, head_dim, dtype)
    theirs = [x.view(batch, length, HEADS, head_dim).transpose(1, 2).contiguous() for x in mine]
    causal = torch.ones(length, length, dtype=torch.bool).tril()

    @torch.compile(dynamic=False)
    def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (F.silu(q @ k.mT) / length).masked_fill(~causal, 0.0) @ v

    def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return ops.attention(q, k, v, offsets, score="silu", score_scale=1.0 / length)

    return Entry(
        f"HSTU SiLU, {called}",
        f"{batch} x {length}, {HEADS} heads of {head_dim}, {name(dtype)}",
        None,
        run(ours, *mine),
        {"compiled formula": _later(run, formula, theirs)},
        causal_flops(offsets.diff(), head_dim, factor),
        float(sum(x.nbytes for x in mine) * (4 if mode else 4 / 3)),
        dtype,
    )


def group_query(users: int, length: int, count: int) -> Entry:
    """Conditions of each user over his cached history; the peer reads no keys of their own."""
    head_dim, dtype, page = 64, torch.bfloat16, 64
    pages = length // page
    keys, values = (
        torch.randn(users * pages, HEADS, page, head_dim, dtype=dtype) for _ in range(2)
    )
    table = torch.arange(users * pages).view(users, pages)
    prefix = PagedPrefix(keys, values, table, torch.full((users,), length))
    mine = qkv(users * count, head_dim, dtype)
    mask = Mask(num_targets=torch.full((users,), count))
    offsets = torch.arange(users + 1) * count
    q = torch.randn(users, HEADS, count, head_dim, dtype=dtype)
    k, v = (torch.randn(users, HEADS, length, head_dim, dtype=dtype) for _ in range(2))

    def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return ops.prefix_attention(q, k, v, offsets, prefix, mask)

    peers = {
        label: _later(inference, sdpa(backend, False), [q, k, v])
        for label, backend in BACKENDS.items()
    }
    peers[cuda_peers.FLASHINFER] = cuda_peers.flashinfer_prefix(mine[0], offsets, prefix)
    return Entry(
        "group query, one layer",
        f"{users} users x {count} on {length}, {HEADS} heads of {head_dim}, {name(dtype)}",
        1.0,
        inference(ours, *mine),
        peers,
        4.0 * users * count * length * HEADS * head_dim,
        float(keys.nbytes + values.nbytes),
        dtype,
    )
