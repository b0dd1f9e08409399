"""The network of a two-tower retriever."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pylum.data.vocab import Vocab
from pylum.rank.coding import Coded
from pylum.rank.inputs import Embeddings, Head, Known, KnownSizes
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
