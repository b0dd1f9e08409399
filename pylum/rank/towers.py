"""The network of a two-tower retriever."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from pylum import ops
from pylum.data.vocab import Vocab
from pylum.rank.coding import Coded
from pylum.rank.embeddings import Embeddings
from pylum.rank.known import Known, KnownSizes
from pylum.rank.network import Head
from pylum.rank.schema import Schema
from pylum.rank.settings import Settings


class Towers(nn.Module):
    """User and item vectors of unit length.

    Args:
        schema, vocabs: of the features of both.
        user, item: names of the features of each; sequences are the user's.
        known_user, known_item: sizes of knowledge.
    """

    def __init__(
        self,
        schema: Schema,
        vocabs: dict[str, Vocab],
        settings: Settings,
        user: Sequence[str],
        item: Sequence[str],
        known_user: KnownSizes,
        known_item: KnownSizes,
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(schema, vocabs, settings.dim, settings.initial_scale)
        numbers = [f.name for f in schema.of("number")]
        self.at: dict[str, tuple[list[int], list[int]]] = {}
        sides = {}
        for side, names, known in (("user", user, known_user), ("item", item, known_item)):
            fields = [n for n, name in enumerate(self.embeddings.pooled) if name in names]
            floats = [n for n, name in enumerate(numbers) if name in names]
            self.at[side] = (fields, floats)
            behaviours = side == "user" and bool(schema.of("sequence"))
            width = (len(fields) + behaviours) * settings.dim + len(floats)
            if width == 0:
                raise ValueError(f"{side} must name at least one feature, got {list(names)}")
            sides[side] = Head(width, settings.hidden, known, settings.dropout, settings.dim)
        self.sides = nn.ModuleDict(sides)
        self.remembers = bool(schema.of("sequence"))

    def forward(self, side: str, rows: Coded, known: Known | None) -> torch.Tensor:
        """``[B, dim]`` unit vectors of one side."""
        read = self.embeddings(rows)
        fields, floats = self.at[side]
        parts = [read.fields[:, fields].flatten(1), read.numbers[:, floats]]
        if side == "user" and self.remembers:
            parts.append(read.remembered)
        return nn.functional.normalize(self.sides[side](torch.cat(parts, 1), known), dim=1)


def train(
    towers: Towers,
    rows: Coded,
    items: torch.Tensor,
    known: Callable[[str, torch.Tensor], Known | None],
    settings: Settings,
    temperature: float,
) -> list[dict[str, float]]:
    """Fit in place, by a softmax over the items of the batch.

    Args:
        rows: chosen ones.
        items: ``[N]`` int64 which item each is, counted from 1.
        known: of a side, ``"user"`` or ``"item"``, and the rows of a batch.

    Returns:
        the mean loss of each epoch.
    """
    share = torch.bincount(items).double() / len(items)
    log_q = share.clamp_min(1e-12).log().float()
    adam = torch.optim.Adam(
        towers.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )
    history: list[dict[str, float]] = []
    towers.train()
    for epoch in range(settings.epochs):
        total = 0.0
        for index in torch.randperm(len(rows)).split(settings.batch_rows):
            distinct, place = items[index].unique(return_inverse=True)
            # One row of each item of the batch stands for it.
            first = torch.empty(len(distinct), dtype=torch.int64).scatter_(0, place, index)
            mine = known("user", index)
            if mine is not None and settings.knowledge_dropout:
                mine = mine.dropped(settings.knowledge_dropout)
            users = towers("user", rows.take(index), mine)
            answers = towers("item", rows.take(first), known("item", first))
            loss = ops.sampled_softmax(
                users, answers, place, temperature=temperature, log_q=log_q[distinct]
            )
            loss.backward()
            adam.step()
            adam.zero_grad()
            total += float(loss.detach()) * len(index)
        history.append({"epoch": epoch + 1, "loss": total / len(rows)})
    towers.eval()
    return history
