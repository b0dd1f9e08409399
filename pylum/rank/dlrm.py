"""DLRM (arXiv 1906.00091): embedding bags, a bottom MLP, pairwise dots, a top MLP."""

from __future__ import annotations

import torch

from pylum import ops
from pylum.data.vocab import Vocab
from pylum.rank.coding import Coded
from pylum.rank.embeddings import Embeddings
from pylum.rank.known import KnownSizes
from pylum.rank.network import Network, Read, mlp
from pylum.rank.schema import Schema
from pylum.rank.settings import Settings


class DLRM(Network):
    """Section 2 of the paper; the mean of the behaviours is one vector more.

    Args:
        schema, vocabs: of the rows.
        known: inputs of knowledge, which enter the top MLP.
    """

    def __init__(
        self, schema: Schema, vocabs: dict[str, Vocab], settings: Settings, known: KnownSizes
    ) -> None:
        super().__init__()
        self.schema = schema
        self.embeddings = Embeddings(schema, vocabs, settings.dim, settings.initial_scale)
        numbers = len(schema.of("number"))
        self.bottom = mlp(numbers, (*settings.bottom, settings.dim)) if numbers else None
        count = len(self.embeddings.pooled) + bool(schema.of("sequence")) + bool(numbers)
        width = count * (count - 1) // 2 + settings.dim * bool(numbers)
        if width < 1:
            raise ValueError("a dlrm needs numbers or at least two other features, got one")
        self.add_heads(width, settings, known)

    def read(self, rows: Coded) -> Read:
        read = self.embeddings(rows)
        vectors = [read.fields]
        if self.schema.of("sequence"):
            vectors.append(read.remembered[:, None])
        dense = []
        if self.bottom is not None:
            dense = [self.bottom(read.numbers)]
            vectors.insert(0, dense[0][:, None])
        return Read(torch.cat([*dense, ops.dot_interaction(torch.cat(vectors, 1))], 1))
