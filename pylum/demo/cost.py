"""Exactness of the answers, and what they cost beside the same model run by plain torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pylum.cache import UserCache
from pylum.data import Events, Histories
from pylum.generation import generate
from pylum.model import LUM
from pylum.model.transformer import NORM_EPS


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
    grouped = generate(model, histories, conditions, k=0).embeddings
    grouped = grouped.view(len(histories), len(conditions), -1)
    alone = torch.stack([generate(model, histories, [c], k=0).embeddings for c in conditions], 1)
    turned = generate(model, histories, conditions[::-1], k=0).embeddings.view_as(grouped).flip(1)
    cache = UserCache(model, max_tokens=_room(histories))
    generate(model, histories, conditions, k=0, cache=cache)
    cached = generate(model, histories, conditions, k=0, cache=cache).embeddings.view_as(grouped)
    return Exactness(*(float((other - grouped).abs().max()) for other in (alone, turned, cached)))


def cost(model: LUM, histories: Histories, conditions: list[Any]) -> list[Cost]:
    """The same questions: plain torch one by one, grouped, and grouped on a warm cache."""
    cache = UserCache(model, max_tokens=_room(histories))
    events = histories.encode(model.vocabs, model.schema)
    codes = _codes(model, conditions)

    def one_by_one() -> int:
        return sum(_torch_answers(model, events, code) for code in codes)

    def grouped() -> int:
        return int(generate(model, histories, conditions, k=0).stats["tokens_computed"])

    def warm() -> int:
        result = generate(model, histories, conditions, k=0, cache=cache)
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
def _torch_answers(model: LUM, events: Events, code: dict[str, torch.Tensor]) -> int:
    """One question to every user in plain torch; returns the tokens of the pass."""
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

    def rotate(t: torch.Tensor) -> torch.Tensor:
        a, b = t.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        parts = [t.transpose(0, 1).split(lengths, 1) for t in (rotate(q), rotate(k), v)]
        out = [
            torch.nn.functional.scaled_dot_product_attention(
                a[None], b[None], c[None], is_causal=True, enable_gqa=True
            )[0]
            for a, b, c in zip(*parts, strict=True)
        ]
        return torch.cat(out, 1).transpose(0, 1)

    for block in encoder.blocks:
        x = block(x, attend)
    last = torch.tensor(lengths).cumsum(0) - 1
    model.answers(torch.nn.functional.rms_norm(x[last], encoder.norm.shape, encoder.norm, NORM_EPS))
    return len(x)
