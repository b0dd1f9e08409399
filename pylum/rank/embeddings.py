"""Categories and behaviours as vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from pylum import ops
from pylum.data.vocab import Vocab
from pylum.rank.coding import Coded
from pylum.rank.schema import Schema


@dataclass(frozen=True, eq=False)
class Embedded:
    """``B`` rows as vectors.

    Args:
        fields: ``[B, fields, dim]`` one vector a category or categories feature.
        numbers: ``[B, numbers]``.
        behaviours: ``[B, longest, dim]``, zeros beyond a row's length.
        present: ``[B, longest]`` bool.
        target: ``[B, dim]`` of what is scored, in the space of ``behaviours``.
    """

    fields: torch.Tensor
    numbers: torch.Tensor
    behaviours: torch.Tensor
    present: torch.Tensor
    target: torch.Tensor

    @property
    def remembered(self) -> torch.Tensor:
        """``[B, dim]`` mean of the behaviours; zeros for an empty history."""
        return self.behaviours.sum(1) / self.present.sum(1, keepdim=True).clamp_min(1)


class Embeddings(nn.Module):
    """Tables of the schema's categories, shared where features share.

    A behaviour is the sum of the vectors of all sequences that share a table, times that of each
    sequence with a table of its own (how it went), which begins at one.

    Args:
        schema: of the rows.
        vocabs: by table.
        dim: of every vector.
        initial_scale: standard deviation of new vectors.
    """

    def __init__(
        self, schema: Schema, vocabs: dict[str, Vocab], dim: int, initial_scale: float
    ) -> None:
        super().__init__()
        self.schema, self.dim = schema, dim
        gates = {f.name for f in schema.of("sequence") if f.shares is None}
        self.names = list(vocabs)
        self.tables = nn.ParameterList()
        for name, vocab in vocabs.items():
            table = torch.randn(len(vocab), dim) * initial_scale
            self.tables.append(nn.Parameter(table + 1 if name in gates else table))
        self.pooled = [f.name for f in schema.of("category", "categories")]
        self.sources = [f.table for f in schema.of("category", "categories")]

    def table(self, name: str) -> torch.Tensor:
        """``[rows, dim]`` of a table by its name."""
        return self.tables[self.names.index(name)]

    def forward(self, rows: Coded) -> Embedded:
        size = len(rows)
        single = torch.arange(size + 1)
        indices, offsets = [], []
        for name in self.pooled:
            if name in rows.categories:
                indices.append(rows.categories[name])
                offsets.append(single)
            else:
                indices.append(rows.bags[name].values)
                offsets.append(rows.bags[name].offsets)
        fields = rows.numbers.new_zeros(size, 0, self.dim)
        if self.pooled:
            tables = [self.table(name) for name in self.sources]
            flat = ops.embedding_bag(tables, indices, offsets, mode="mean")
            fields = flat.view(size, len(tables), self.dim)
        behaviours, present = self._behaviours(rows)
        shared = {f.table for f in self.schema.of("sequence") if f.shares is not None}
        at = [place for place, name in enumerate(self.pooled) if name in shared]
        return Embedded(fields, rows.numbers, behaviours, present, fields[:, at].sum(1))

    def _behaviours(self, rows: Coded) -> tuple[torch.Tensor, torch.Tensor]:
        sequences = self.schema.of("sequence")
        if not sequences:
            none = rows.numbers.new_zeros(len(rows), 0, self.dim)
            return none, torch.zeros(len(rows), 0, dtype=torch.bool)
        lengths = rows.bags[sequences[0].name].lengths
        longest = int(lengths.max()) if len(lengths) else 0
        present = torch.arange(longest) < lengths[:, None]
        total = rows.numbers.new_zeros(int(lengths.sum()), self.dim)
        gates = []
        for f in sequences:
            looked_up = nn.functional.embedding(rows.bags[f.name].values, self.table(f.table))
            if f.shares is None:
                gates.append(looked_up)
            else:
                total = total + looked_up
        for gate in gates:
            total = total * gate
        out = rows.numbers.new_zeros(len(rows), longest, self.dim)
        out = out.masked_scatter(present[:, :, None], total)
        return out, present
