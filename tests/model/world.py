"""A small world with every kind of field, and a plain float64 LUM to compare with."""

from __future__ import annotations

import torch

from pylum.data import ANY_ROW, Events, Field, ItemTable, Schema, Vocab, Vocabs
from pylum.model import LUM, LUMConfig
from pylum.ragged import Ragged, lengths_to_offsets

ITEMS = 30

SCHEMA = Schema(
    conditions=(Field("scene"), Field("price", "number"), Field("search", "vector", 3)),
    outcomes=(Field("rating"), Field("dwell", "number")),
    item_features=(
        Field("brand"),
        Field("genres", "categories"),
        Field("year", "number"),
        Field("text", "vector", 4),
    ),
)


def make_vocabs() -> Vocabs:
    return Vocabs(
        Vocab([f"i{n}" for n in range(ITEMS - 1)]),
        {"scene": Vocab(["home", "search", "cart"], any=True)},
        {"rating": Vocab([1, 2, 3])},
        {"brand": Vocab(["x", "y"]), "genres": Vocab(["a", "b", "c"])},
    )


def make_items() -> ItemTable:
    year = 1990 + torch.arange(ITEMS) % 7.0
    year[[0, 4]] = torch.nan
    text = torch.randn(ITEMS, 4)
    text[0] = torch.nan
    bags = Ragged.from_lists([[] if n % 5 == 0 else [1 + n % 3, 1 + n % 2] for n in range(ITEMS)])
    columns = {"brand": torch.arange(ITEMS) % 3, "genres": bags, "year": year, "text": text}
    return ItemTable(ITEMS, SCHEMA.item_features, columns)


def make_events(lengths: list[int], seed: int = 1) -> Events:
    g = torch.Generator().manual_seed(seed)
    offsets = lengths_to_offsets(torch.tensor(lengths))
    n = int(offsets[-1])
    scene = torch.randint(0, 5, (n,), generator=g)
    price = torch.rand(n, generator=g)
    price[::4] = torch.nan
    search = torch.randn(n, 3, generator=g)
    search[::3] = torch.nan
    dwell = torch.rand(n, generator=g)
    dwell[1::4] = torch.nan
    times = torch.cat(
        [torch.randint(1, 10**6, (length,), generator=g).sort()[0] for length in lengths]
    )
    return Events(
        offsets,
        torch.randint(0, ITEMS, (n,), generator=g),
        times,
        {"scene": scene, "price": price, "search": search},
        {"rating": torch.randint(0, 4, (n,), generator=g), "dwell": dwell},
    )


def make_model(**changes: object) -> LUM:
    sizes = {"dim": 12, "width": 16, "heads": 2, "layers": 2, "max_length": 40, "dropout": 0.0}
    config = LUMConfig(**{**sizes, "query_time": True, "calendar": ("hour", "weekday"), **changes})
    model = LUM(config, SCHEMA, make_vocabs(), make_items())
    with torch.no_grad():
        # Away from the small initial values, so that every field matters.
        for name, p in model.named_parameters():
            if "_norm" in name or name.endswith("encoder.norm"):
                p.copy_(1 + 0.2 * torch.randn(p.shape))
            elif p.abs().max() < 0.2:
                p.copy_(torch.randn(p.shape) * 0.5)
    return model.eval()


def positions(offsets: torch.Tensor) -> torch.Tensor:
    """Of the tokens of whole histories; ``offsets`` in behaviours."""
    lengths = offsets.diff()
    rank = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(lengths)
    return rank.repeat_interleave(2)


def answers(model: LUM, events: Events) -> torch.Tensor:
    """``[N, D]`` at every history condition."""
    x = model.history_tokens(events)
    hidden = model.run(x, events.offsets * 2, positions(events.offsets))
    return model.answers(hidden[::2])


class Plain:
    """The same model as loops over users, heads and layers, on a dict of float64 weights."""

    def __init__(self, model: LUM) -> None:
        self.config = model.config
        self.items = model.items
        self.buffers = {name: b.double() for name, b in model.named_buffers()}
        self.weights = {
            name: p.detach().double().requires_grad_() for name, p in model.named_parameters()
        }

    def feature(self, prefix: str, f: Field, column: object, n: int) -> torch.Tensor:
        w = self.weights
        if f.kind == "category":
            return w[f"{prefix}.tables.{f.name}"][column[n]]
        if f.kind == "categories":
            table = w[f"{prefix}.tables.{f.name}"]
            rows = column[n]
            return table[rows].mean(0) if len(rows) else torch.zeros(table.shape[1]).double()
        value = column[n].double().reshape(-1)
        if bool(value[0].isnan()):
            return w[f"{prefix}.missing.{f.name}"]
        if f.kind == "number":
            mean = self.buffers[f"{prefix}.mean_{f.name}"]
            value = (value - mean) * self.buffers[f"{prefix}.scale_{f.name}"]
        return value @ w[f"{prefix}.weights.{f.name}"] + w[f"{prefix}.biases.{f.name}"]

    def item(self, row: int) -> torch.Tensor:
        parts = [self.weights["item_encoder.ids"][row]]
        for f in SCHEMA.item_features:
            parts.append(self.feature("item_encoder.features", f, self.items.columns[f.name], row))
        return self.weights["item_encoder.proj.weight"] @ torch.cat(parts)

    def project(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Unit vectors, behind the projection if there is one."""
        weight = self.weights.get(f"{name}.weight")
        x = x if weight is None else x @ weight.T
        return x / x.norm(dim=1, keepdim=True)

    def condition(self, events: Events, n: int, first: int) -> torch.Tensor:
        parts = [
            self.feature("condition_encoder.features", f, events.conditions[f.name], n)
            for f in SCHEMA.conditions
        ]
        time = int(events.times[n])
        gap = 0
        if n > first:
            seconds = max(1, time - int(events.times[n - 1]))
            gap = 1 + min(63, int(torch.tensor(seconds).double().log() / 0.301))
        rows = {"gap": gap, "hour": 1 + time // 3600 % 24, "weekday": 1 + (time // 86400 + 3) % 7}
        for name in sorted(rows):
            table = self.weights.get(f"condition_encoder.clock.{name}")
            if table is not None:
                parts.append(table[rows[name]])
        projected = self.weights["condition_encoder.proj.weight"] @ torch.cat(parts)
        return projected + self.weights["condition_encoder.bias"]

    def history_item(self, events: Events, n: int) -> torch.Tensor:
        outcomes = [
            self.feature("outcome_encoder.features", f, events.outcomes[f.name], n)
            for f in SCHEMA.outcomes
        ]
        projected = self.weights["outcome_encoder.proj.weight"] @ torch.cat(outcomes)
        return self.item(int(events.items[n])) + projected

    def transformer(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        c, w = self.config, self.weights
        half = c.head_dim // 2
        angles = positions[:, None] * c.rotary_base ** (-torch.arange(half).double() / half)
        turn = torch.polar(torch.ones_like(angles), angles)

        def rotate(h: torch.Tensor) -> torch.Tensor:
            turned = torch.complex(h[:, :half], h[:, half:]) * turn
            return torch.cat([turned.real, turned.imag], 1)

        def norm(h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return h / (h.square().mean(1, keepdim=True) + 1e-6).sqrt() * weight

        sees = torch.ones(len(x), len(x)).tril().bool()
        for i in range(c.layers):
            p = f"user_encoder.blocks.{i}."
            h = norm(x, w[p + "attention_norm"])
            kv_width = c.kv_heads * c.head_dim
            q, k, v = (h @ w[p + "qkv"].T).split([c.width, kv_width, kv_width], 1)
            heads = []
            for head in range(c.heads):
                at = slice(head * c.head_dim, (head + 1) * c.head_dim)
                shared = head // (c.heads // c.kv_heads)
                kv = slice(shared * c.head_dim, (shared + 1) * c.head_dim)
                scores = rotate(q[:, at]) @ rotate(k[:, kv]).T / c.head_dim**0.5
                heads.append(scores.masked_fill(~sees, -torch.inf).softmax(1) @ v[:, kv])
            x = x + torch.cat(heads, 1) @ w[p + "out"].T
            gate, up = (norm(x, w[p + "ffn_norm"]) @ w[p + "gate_up"].T).chunk(2, 1)
            x = x + (gate * gate.sigmoid() * up) @ w[p + "down"].T
        return norm(x, w["user_encoder.norm"])

    def answers(self, events: Events) -> torch.Tensor:
        out = []
        for a, b in zip(events.offsets.tolist(), events.offsets[1:].tolist(), strict=False):
            if a == b:
                continue
            tokens = []
            for n in range(a, b):
                tokens += [self.condition(events, n, a), self.history_item(events, n)]
            hidden = self.transformer(
                torch.stack(tokens), torch.arange(b - a).double().repeat_interleave(2)
            )
            answer = hidden[::2] @ self.weights["answer.weight"].T
            out.append(answer / answer.norm(dim=1, keepdim=True))
        return torch.cat(out)

    def item_vectors(self) -> torch.Tensor:
        tokens = torch.stack([self.item(row) for row in range(ITEMS)])
        return self.project(tokens, "item_answer")


__all__ = [
    "ANY_ROW",
    "ITEMS",
    "SCHEMA",
    "Plain",
    "answers",
    "make_events",
    "make_model",
    "positions",
]
