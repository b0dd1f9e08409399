"""Wide & Deep (arXiv 1606.07792): crosses remembered, embeddings generalised, one loss."""

from __future__ import annotations

import torch
from torch import nn

from pylum import ops
from pylum.data.vocab import Vocab
from pylum.ragged import Ragged, lengths_to_offsets
from pylum.rank.coding import Coded
from pylum.rank.embeddings import Embeddings
from pylum.rank.known import KnownSizes
from pylum.rank.network import Network, Read
from pylum.rank.schema import Schema
from pylum.rank.settings import Settings

# Odd constants of a multiplicative hash; products wrap around.
MULTIPLIER = -7046029254386353131
MIX = -4658895280553007687


class WideDeep(Network):
    """``wide [x, crosses of x] + deep(embeddings, numbers)``, section 3 of the paper.

    Args:
        schema: its ``crosses`` and categories make the wide part.
        vocabs: by table.
        known: inputs of knowledge.
    """

    def __init__(
        self, schema: Schema, vocabs: dict[str, Vocab], settings: Settings, known: KnownSizes
    ) -> None:
        super().__init__()
        self.schema, self.buckets = schema, settings.buckets
        self.embeddings = Embeddings(schema, vocabs, settings.dim, settings.initial_scale)
        fields = len(self.embeddings.pooled) + bool(schema.of("sequence"))
        width = fields * settings.dim + len(schema.of("number"))
        self.add_heads(width, settings, known)
        self.wide = nn.Parameter(torch.zeros(settings.buckets, 1))
        single = [(f.name,) for f in schema.of("category", "categories")]
        self.crosses = [*single, *schema.crosses]

    def read(self, rows: Coded) -> Read:
        read = self.embeddings(rows)
        parts = [read.fields.flatten(1), read.numbers]
        if self.schema.of("sequence"):
            parts.append(read.remembered)
        x = torch.cat(parts, 1)
        if not self.crosses:
            return Read(x)
        bags = [self._cross(rows, number, cross) for number, cross in enumerate(self.crosses)]
        wide = ops.embedding_bag(
            [self.wide] * len(bags), [b.values for b in bags], [b.offsets for b in bags]
        )
        return Read(x, wide.sum(1))

    def _cross(self, rows: Coded, number: int, cross: tuple[str, ...]) -> Ragged:
        """Rows of the wide table: each combination of values, a row's repeats once."""
        many = [name for name in cross if name in rows.bags]
        size = len(rows)
        lengths = rows.bags[many[0]].lengths if many else torch.ones(size, dtype=torch.int64)
        owner = torch.arange(size).repeat_interleave(lengths)
        code = torch.full((len(owner),), number + 1, dtype=torch.int64)
        for name in cross:
            column = rows.bags[name].values if name in many else rows.categories[name][owner]
            code = (code * MULTIPLIER + column + 1) * MIX
            code = code ^ (code >> 29)
        place = code.remainder(self.buckets)
        if many:
            # φ is 0 or 1, however often a value stands in the list.
            pairs = torch.unique(owner * self.buckets + place)
            owner, place = pairs // self.buckets, pairs % self.buckets
            lengths = torch.bincount(owner, minlength=size)
        return Ragged(place, lengths_to_offsets(lengths))
