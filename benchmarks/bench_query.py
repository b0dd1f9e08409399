"""Group query, warm and cold, beside the best torch composition with the same weights.

    python -m benchmarks.bench_query [--json benchmarks/results/query.json]

Warm: one user's history lies in a cache, N conditions are asked. Torch keeps contiguous keys and
values and merges two attentions by their log-sum-exp: all conditions over the history (flash), and
each condition over itself. Cold: users of lognormal lengths, packed linear layers, one attention
call for each user's history and one for its conditions. Both contestants embed the same coded
events; pylum's is the whole of ``generate``, its checks, page hashes and table work included.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import numpy as np
import torch
from torch import nn

import pylum
from benchmarks import harness
from pylum.data.events import Events
from pylum.data.schema import Field, Schema
from pylum.data.vocabs import Vocabs
from pylum.generation.packing import Questions, layout
from pylum.ragged import lengths_to_offsets

ITEMS, SCENES = 10_000, 300
flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def make(layers: int, width: int, heads: int, max_length: int, dtype: torch.dtype) -> pylum.LUM:
    """A model with random weights over ``ITEMS`` items and ``SCENES`` scenes."""
    torch.manual_seed(0)
    vocabs = Vocabs(
        pylum.Vocab(range(ITEMS)), {"scene": pylum.Vocab(range(SCENES), any=True)}, {}, {}
    )
    config = pylum.LUMConfig(dim=64, layers=layers, width=width, heads=heads, max_length=max_length)
    items = pylum.data.ItemTable(len(vocabs.items))
    return pylum.LUM(config, Schema((Field("scene"),)), vocabs, items).to(dtype).eval()


def histories(model: pylum.LUM, lengths: list[int], seed: int = 0) -> pylum.Histories:
    """Random coded behaviours."""
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    events = Events(
        lengths_to_offsets(torch.tensor(lengths)),
        torch.from_numpy(rng.integers(1, ITEMS, total)),
        torch.arange(total),
        {"scene": torch.from_numpy(rng.integers(2, SCENES, total))},
    )
    return pylum.Histories(list(range(len(lengths))), events, model.schema, model.vocabs)


class Torch:
    """The model's pass in plain torch."""

    def __init__(self, model: pylum.LUM) -> None:
        self.model, self.encoder = model, model.user_encoder
        self.caches: list[tuple[torch.Tensor, torch.Tensor]] = []

    def qkv(self, block: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        """``[heads, T, head_dim]`` each."""
        h = nn.functional.rms_norm(x, block.attention_norm.shape, block.attention_norm, 1e-6)
        size = block.width // block.heads
        fused = nn.functional.linear(h, block.qkv).unflatten(1, (-1, size))
        q, k, v = fused.split([block.heads, block.kv_heads, block.kv_heads], 1)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        return q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)

    def rest(self, block: Any, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        x = x + nn.functional.linear(attended.transpose(0, 1).flatten(1), block.out)
        h = nn.functional.rms_norm(x, block.ffn_norm.shape, block.ffn_norm, 1e-6)
        gate, up = nn.functional.linear(h, block.gate_up).chunk(2, 1)
        return x + nn.functional.linear(nn.functional.silu(gate) * up, block.down)

    def finish(self, x: torch.Tensor) -> torch.Tensor:
        norm = self.encoder.norm
        return self.model.answers(nn.functional.rms_norm(x, norm.shape, norm, 1e-6))

    def turn(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.encoder.cos[positions, None], self.encoder.sin[positions, None]

    def fill(self, events: Events) -> None:
        """Keep one user's keys and values."""
        x = self.model.history_tokens(events)
        turn = self.turn(torch.arange(len(x)) // 2)
        self.caches = []
        for block in self.encoder.blocks:
            q, k, v = self.qkv(block, x, *turn)
            self.caches.append((k[None].contiguous(), v[None].contiguous()))
            x = self.rest(block, x, flash(q[None], k[None], v[None], is_causal=True)[0][0])

    def warm(self, columns: dict[str, torch.Tensor], length: int) -> torch.Tensor:
        """Answers of conditions on the kept history."""
        x = self.model.query_tokens(columns)
        turn = self.turn(torch.full((len(x),), length))
        for block, (keys, values) in zip(self.encoder.blocks, self.caches, strict=True):
            q, k, v = self.qkv(block, x, *turn)
            x = self.rest(block, x, over_history(q, k, v, keys, values))
        return self.finish(x)

    def cold(self, events: Events, questions: Questions) -> torch.Tensor:
        """Answers without a cache: packed linear layers, attention user by user."""
        where = layout(events.lengths, questions)
        asked = self.model.query_tokens(questions.columns)
        x = asked.new_empty(int(where.offsets[-1]), asked.shape[1])
        x[where.history] = self.model.history_tokens(events)
        x[where.targets] = asked
        turn = self.turn(where.positions)
        cuts = list(itertools.pairwise(where.offsets.tolist()))
        counts = questions.offsets.diff().tolist()
        blocks = list(self.encoder.blocks)
        for block in blocks:
            q, k, v = self.qkv(block, x, *turn)
            parts = []
            for (a, b), n in zip(cuts, counts, strict=True):
                past, new = slice(a, b - n), slice(b - n, b)
                keys, values = k[None, :, past], v[None, :, past]
                # Of the last layer only the targets are wanted.
                if block is not blocks[-1]:
                    parts.append(flash(q[None, :, past], keys, values, is_causal=True)[0][0])
                parts.append(over_history(q[:, new], k[:, new], v[:, new], keys, values))
            x = x[where.targets] if block is blocks[-1] else x
            x = self.rest(block, x, torch.cat(parts, 1))
        return self.finish(x)


def over_history(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Targets ``[heads, N, head_dim]`` over a history and each over itself."""
    out, lse = flash(q[None], keys, values)
    own = (q.float() * k.float()).sum(-1) * q.shape[-1] ** -0.5
    weight = torch.sigmoid(own - lse[0].float())[..., None]
    return ((1 - weight) * out[0].float() + weight * v.float()).to(v.dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


@torch.no_grad()
def warm(dtype: torch.dtype, tokens: int, asked: int, seconds: float) -> dict[str, Any]:
    """``asked`` conditions on a cached history of ``tokens``; 4 layers, width 512."""
    length = tokens // 2
    model = make(4, 512, 8, length, dtype)
    user = histories(model, [length])
    scenes = list(range(asked))
    cache = pylum.UserCache(model, tokens)
    plain = Torch(model)
    plain.fill(user.events)
    columns = {"scene": torch.arange(asked) + 2}
    out = pylum.generate(model, user, scenes, k=0, cache=cache)
    close = 1e-4 if dtype == torch.float32 else 3e-2
    assert (out.embeddings - plain.warm(columns, length).float()).abs().max() < close
    return harness.compare(
        f"warm, {tokens} tokens, {asked} conditions, {str(dtype)[6:]}",
        {
            "torch, two attentions": torch.inference_mode()(lambda: plain.warm(columns, length)),
            "pylum.generate": lambda: pylum.generate(model, user, scenes, k=0, cache=cache),
        },
        baseline="torch, two attentions",
        seconds=seconds,
    )


@torch.no_grad()
def cold(dtype: torch.dtype, users: int, asked: int, seconds: float) -> dict[str, Any]:
    """``users`` histories of lognormal lengths, mean about 100 behaviours, not cached."""
    model = make(4, 512, 8, 400, dtype)
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.3, 0.8, users), 1, 400).astype(int).tolist()
    many = histories(model, lengths)
    scenes = list(range(asked))
    columns = {"scene": torch.arange(asked).repeat(users) + 2}
    questions = Questions(columns, torch.arange(users + 1) * asked)
    plain = Torch(model)
    out = pylum.generate(model, many, scenes, k=0)
    close = 1e-4 if dtype == torch.float32 else 3e-2
    assert (out.embeddings - plain.cold(many.events, questions).float()).abs().max() < close
    return harness.compare(
        f"cold, {users} users, {2 * sum(lengths)} tokens, {asked} conditions, {str(dtype)[6:]}",
        {
            "torch, user by user": torch.inference_mode()(
                lambda: plain.cold(many.events, questions)
            ),
            "pylum.generate": lambda: pylum.generate(model, many, scenes, k=0),
        },
        baseline="torch, user by user",
        seconds=seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the rows here")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each contestant")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for asked in (1, 8, 64, 256):
            rows.append(warm(dtype, 2048, asked, arguments.seconds))
        rows.append(warm(dtype, 512, 64, arguments.seconds))
        rows.append(cold(dtype, 16, 8, arguments.seconds))
    if arguments.json:
        harness.save(arguments.json, rows)


if __name__ == "__main__":
    main()
