"""Exactness of the answers, and what they cost beside the same model run by plain torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F

from pylum.cache import UserCache
from pylum.data import Events, Histories
from pylum.generation import generate
from pylum.model import LUM
from pylum.model.transformer import Block


@dataclass(frozen=True)
class Exactness:
    """Largest difference of an element of two unit answers."""

    alone: float
    shuffled: float
    cached: float


@dataclass(frozen=True)
class Cost:
    """Tokens and milliseconds of one way to ask."""

    name: str
    tokens: int
    ms: float


def exactness(model: LUM, histories: Histories, conditions: list[Any]) -> Exactness:
    """The group query against each question alone, in another order, and on a cache."""
    grouped = generate(model, histories, conditions, k=0, exclude="none").embeddings
    grouped = grouped.view(len(histories), len(conditions), -1)
    alone = torch.stack(
        [generate(model, histories, [c], k=0, exclude="none").embeddings for c in conditions], 1
    )
    turned = (
        generate(model, histories, conditions[::-1], k=0, exclude="none")
        .embeddings.view_as(grouped)
        .flip(1)
    )
    cache = UserCache(model, max_tokens=_room(histories))
    generate(model, histories, conditions, k=0, exclude="none", cache=cache)
    cached = generate(
        model, histories, conditions, k=0, exclude="none", cache=cache
    ).embeddings.view_as(grouped)
    return Exactness(*(float((other - grouped).abs().max()) for other in (alone, turned, cached)))


def cost(model: LUM, histories: Histories, conditions: list[Any]) -> list[Cost]:
    """The same questions: plain torch one by one, grouped, and grouped on a warm cache."""
    cache = UserCache(model, max_tokens=_room(histories))
    events = histories.encode(model.vocabs, model.schema)
    codes = _codes(model, conditions)

    def one_by_one() -> int:
        return sum(torch_answers(model, events, code)[1] for code in codes)

    def grouped() -> int:
        return int(
            generate(model, histories, conditions, k=0, exclude="none").stats["tokens_computed"]
        )

    def warm() -> int:
        result = generate(model, histories, conditions, k=0, exclude="none", cache=cache)
        return int(result.stats["tokens_computed"])

    warm()
    return [
        _timed("torch, each question alone", one_by_one),
        _timed("pylum.generate", grouped),
        _timed("pylum.generate, cached", warm),
    ]


def _timed(name: str, ask: Callable[[], int], runs: int = 3) -> Cost:
    tokens = ask()
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        ask()
        times.append(1e3 * (time.perf_counter() - begin))
    return Cost(name, tokens, sorted(times)[runs // 2])


def _room(histories: Histories) -> int:
    """Tokens of all histories, in whole pages."""
    return int(((2 * histories.events.lengths + 64) // 64 * 64).sum()) + 64


def _codes(model: LUM, conditions: list[Any]) -> list[dict[str, torch.Tensor]]:
    from pylum.conditions import normalise

    asked = normalise(conditions, 1, model.schema.conditions, model.vocabs.conditions)
    return [
        {name: column[i : i + 1] for name, column in asked.columns.items()}
        for i in range(len(conditions))
    ]


@torch.inference_mode()
def torch_answers(
    model: LUM, events: Events, code: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, int]:
    """``[B, D]`` answers of one question to every user, in plain torch; tokens of the pass."""
    window = model.config.max_length
    rows = torch.arange(len(events))
    events = events.users(rows, last=window)
    x = model.history_tokens(events)
    query = model.query_tokens(code, count=1)
    lengths = (2 * events.lengths).tolist()
    x = torch.cat([torch.cat([part, query]) for part in x.split(lengths)])
    lengths = [n + 1 for n in lengths]
    positions = torch.cat([torch.arange(n) // 2 for n in lengths])
    encoder = model.user_encoder
    cos, sin = encoder.cos[positions, None], encoder.sin[positions, None]

    def norm(t: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(t, weight.shape, weight, 1e-6)

    def rotate(t: torch.Tensor) -> torch.Tensor:
        a, b = t.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    for block in cast(list[Block], list(encoder.blocks)):
        h = F.linear(norm(x, block.attention_norm), block.qkv)
        heads = h.view(len(x), block.heads + 2 * block.kv_heads, -1)
        q, k, v = heads.split([block.heads, block.kv_heads, block.kv_heads], 1)
        parts = [t.transpose(0, 1).split(lengths, 1) for t in (rotate(q), rotate(k), v)]
        out = [
            F.scaled_dot_product_attention(
                a[None], b[None], c[None], is_causal=True, enable_gqa=True
            )
            for a, b, c in zip(*parts, strict=True)
        ]
        x = x + F.linear(torch.cat(out, 2)[0].transpose(0, 1).flatten(1), block.out)
        gate, up = F.linear(norm(x, block.ffn_norm), block.gate_up).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, block.down)
    last = torch.tensor(lengths).cumsum(0) - 1
    return model.answers(norm(x[last], encoder.norm)), len(x)
