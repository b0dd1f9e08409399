"""HSTU as loops over users, heads and layers on float64 weights, written from the paper."""

from __future__ import annotations

import math

import torch

from pylum.data import ANY_ROW, Events
from pylum.model import HSTU, HSTUConfig, Task
from tests.model.world import SCHEMA, Plain, make_items, make_vocabs

TASKS = (
    Task("liked", "rating", (2, 3)),
    Task("loved", "rating", (3,)),
    Task("dwelt", "dwell"),
)
MEAN, SCALE = 0.4, 0.3  # by which the numbers are standardised


def make_hstu(**changes: object) -> HSTU:
    sizes = {"dim": 12, "width": 16, "heads": 2, "head_dim": 5, "value_dim": 7, "layers": 2}
    options = {**sizes, "max_length": 40, "dropout": 0.0, **changes}
    if options.get("task") == "ranking":
        options.setdefault("tasks", TASKS)
    model = HSTU(HSTUConfig(**options), SCHEMA, make_vocabs(), make_items())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm_weight" in name:
                p.copy_(1 + 0.2 * torch.randn(p.shape))
            elif p.abs().max() < 0.3:
                p.copy_(torch.randn(p.shape) * 0.4)
        if options.get("tasks") == TASKS:
            model.tasks.mean_2.fill_(MEAN)
            model.tasks.scale_2.fill_(SCALE)
    return model.eval()


class PlainHSTU(Plain):
    """One user at a time, token by token."""

    def __init__(self, model: HSTU) -> None:
        super().__init__(model)
        self.model = model

    def condition_token(self, columns: dict, n: int) -> torch.Tensor:
        parts = [
            self.feature("condition_encoder.features", f, columns[f.name], n)
            for f in SCHEMA.conditions
            if f.name not in self.config.context
        ]
        projected = self.weights["condition_encoder.proj.weight"] @ torch.cat(parts)
        return projected + self.weights["condition_encoder.bias"]

    def outcome_token(self, events: Events, n: int) -> torch.Tensor:
        outcomes = [
            self.feature("outcome_encoder.features", f, events.outcomes[f.name], n)
            for f in SCHEMA.outcomes
        ]
        return self.weights["outcome_encoder.proj.weight"] @ torch.cat(outcomes)

    def passed(self, events: Events, n: int) -> torch.Tensor:
        if self.config.task == "ranking":
            return self.outcome_token(events, n) + self.weights["action_bias"]
        return self.choice(events.items[n], events.conditions, n) + self.outcome_token(events, n)

    def choice(self, row: int, columns: dict, n: int) -> torch.Tensor:
        scale = 1 if self.config.project else self.config.width**0.5
        return self.item(int(row)) * scale + self.condition_token(columns, n)

    def context(self, columns: dict | None, n: int) -> list:
        """Tokens of the user's fields, read off row ``n``."""
        fields = {f.name: f for f in SCHEMA.conditions}
        tokens = []
        for name in self.config.context:
            f, missing = fields[name], ANY_ROW if name == "scene" else torch.nan
            column = [missing] if columns is None else columns[name]
            value = column if isinstance(column, torch.Tensor) else torch.tensor(column)
            tokens.append(self.feature("context_encoder", f, value, n))
        return tokens

    def sequence(
        self, events: Events, asked: int | None, shown: tuple[dict, int] | None = None
    ) -> tuple[list, list, list]:
        """Tokens, timestamps and query times of one user's whole history, behind its context."""
        times = events.times.tolist()
        tokens, own = [self.weights["begin"]], [times[0] if times else (asked or 0)]
        for n, time in enumerate(times):
            if self.config.task == "ranking":
                tokens.append(self.choice(events.items[n], events.conditions, n))
                own.append(time)
            tokens.append(self.passed(events, n))
            own.append(time)
        queries = [*own[1:], own[-1] if asked is None else asked]
        if shown is None:
            shown = (events.conditions if times else None, 0)
        context = self.context(*shown)
        none = [0] * len(context)
        return [*context, *tokens], [*none, *own], [*none, *queries]

    def hidden(self, tokens: list, own: list, queries: list) -> torch.Tensor:
        """``[T, width]`` of all tokens but the context's, causal; the last one is a target."""
        w, c = self.weights, self.config
        production, n, first = c.variant == "production", len(tokens), len(c.context)
        x = torch.stack(tokens)
        gaps = torch.tensor([[abs(q - t) for t in own] for q in queries])
        sees = torch.ones(n, n).tril()
        if production:
            x = x + torch.stack([w["places.position_tables.0"][i] for i in range(n)])
            if c.time:
                roots = [min(math.isqrt(int(gaps[i, i]) // 60), c.time_buckets) for i in range(n)]
                x = x + torch.stack([w["places.time_tables.0"][r] for r in roots])
            if c.window:
                far = torch.ones(n, n).tril(-c.window).bool()
                far[:, :first] = False
                if c.min_full:
                    far[max(0, n - 1 - c.min_full) :] = False
                sees[far] = 0
            sees[:, :first] = 1
            sees[:first, first:] = 0
        for i in range(c.layers):
            p = f"layers.{i}."
            h = self.norm(x, p + "norm")
            fused = h @ w[p + "uvqk"].T
            fused = fused + w[p + "uvqk_bias"] if production else fused * fused.sigmoid()
            gate, keys = c.heads * c.value_dim, c.heads * c.head_dim
            u, v, q, k = fused.split([gate, gate, keys, keys], 1)
            if production:
                u = u * u.sigmoid()
            outs = []
            for head in range(c.heads):
                a = slice(head * c.head_dim, (head + 1) * c.head_dim)
                b = slice(head * c.value_dim, (head + 1) * c.value_dim)
                scores = q[:, a] @ k[:, a].T
                scores = scores / c.head_dim**0.5 if production else scores + self.bias(gaps, i)
                weights = scores * scores.sigmoid() * sees / c.max_tokens
                outs.append(weights @ v[:, b])
            attention = torch.cat(outs, 1)
            y = u * self.norm(attention, p + "attention_norm")
            if production:
                x = x + torch.cat([u, attention, y], 1) @ w[p + "out"].T
            else:
                x = x + y @ w[p + "out"].T + w[p + "out_bias"]
        return x[first:]

    def bias(self, gaps: torch.Tensor, layer: int) -> torch.Tensor:
        w, n = self.weights, len(gaps)
        length = self.config.max_tokens + 1
        out = w[f"places.position_tables.{layer}"][
            torch.tensor([[j - i + length - 1 for j in range(n)] for i in range(n)])
        ]
        if self.config.time:
            buckets = (gaps.clamp(min=1).double().log() / 0.301).floor().long().clamp(max=128)
            out = out + w[f"places.time_tables.{layer}"][buckets]
        return out

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(1, keepdim=True)
        y = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        if name + "_weight" in self.weights:
            y = y * self.weights[name + "_weight"] + self.weights[name + "_bias"]
        return y

    def answer(
        self, events: Events, asked: int | None = None, user: tuple[dict, int] | None = None
    ) -> torch.Tensor:
        """``[n + 1, D]`` unit vectors: after each prefix of one user's history.

        Args:
            user: columns and the row of them that has the context; None: the history's first.
        """
        return self.project(self.hidden(*self.sequence(events, asked, user)), "answer")

    def score(self, events: Events, row: int, columns: dict, at: int, asked: int | None):
        """``[tasks]`` logits of one candidate, whose conditions are row ``at`` of ``columns``."""
        shown = None if events.total else (columns, at)
        tokens, own, queries = self.sequence(events, asked, shown)
        time = queries[-1]
        tokens = [*tokens, self.choice(row, columns, at)]
        hidden = self.hidden(tokens, [*own, time], [*queries, time])
        return hidden[-1] @ self.weights["tasks.weight"].T + self.weights["tasks.bias"]
