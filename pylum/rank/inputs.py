"""What every ranker reads: embeddings, numbers, behaviours and knowledge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from pylum import ops
from pylum.data.vocab import Vocab
from pylum.rank.coding import Coded
from pylum.rank.schema import Schema
from pylum.rank.settings import Settings


@dataclass(frozen=True, eq=False)
class Known:
    """Knowledge of ``B`` rows, standardised.

    Args:
        vectors: ``[B, vectors, dim]`` float32: the item's, the answers.
        numbers: ``[B, numbers]`` float32: their similarities.
        no_vector, no_number: bool: what is not known and stands for nothing.
        has_item: whether the first vector is the item's.
    """

    vectors: torch.Tensor
    numbers: torch.Tensor
    no_vector: torch.Tensor
    no_number: torch.Tensor
    has_item: bool = False

    @property
    def some(self) -> torch.Tensor:
        """``[B]`` bool: whether anything is known."""
        return ~torch.cat([self.no_vector, self.no_number], 1).all(1)

    def dropped(self, share: float) -> Known:
        """With the user or the item of a share of the rows unknown, drawn at random."""
        drawn = torch.rand(len(self.vectors), 1)
        user, item = drawn < share / 2, drawn > 1 - share / 2
        no_vector = self.no_vector | user
        if self.has_item:
            no_vector[:, :1] = self.no_vector[:, :1] | item
        number = self.no_number | user | item
        return Known(self.vectors, self.numbers, no_vector, number, self.has_item)


@dataclass(frozen=True)
class KnownSizes:
    """How many vectors of which dim, and how many numbers."""

    vectors: int = 0
    numbers: int = 0
    dim: int = 0
    narrow: int = 0

    def __bool__(self) -> bool:
        return bool(self.vectors or self.numbers)


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


class KnowledgeLayer(nn.Module):
    """Adds what is known to the first hidden layer of a ranker.

    Vectors are made narrower first, all answers by one map, so that as many conditions as one likes
    cost few weights. What is missing is a learned value of each input, trained by leaving known
    ones out.

    Args:
        sizes: of the inputs; ``narrow`` is the width that vectors get.
        hidden: outputs.
    """

    def __init__(self, sizes: KnownSizes, hidden: int) -> None:
        super().__init__()
        self.no_vector = nn.Parameter(torch.zeros(sizes.vectors, sizes.dim))
        self.no_number = nn.Parameter(torch.zeros(sizes.numbers))
        self.narrow = nn.Linear(sizes.dim, sizes.narrow, bias=False)
        self.weight = nn.Linear(sizes.vectors * sizes.narrow + sizes.numbers, hidden, bias=False)

    def forward(self, known: Known) -> torch.Tensor:
        vectors = torch.where(known.no_vector[:, :, None], self.no_vector, known.vectors)
        numbers = torch.where(known.no_number, self.no_number, known.numbers)
        return self.weight(torch.cat([self.narrow(vectors).flatten(1), numbers], 1))


class Head(nn.Module):
    """ReLU layers to one logit or a vector; knowledge enters before the first ReLU.

    Args:
        width: inputs.
        hidden: widths of the layers.
        known: inputs of knowledge; none where they are.
        dropout: of the hidden units.
        out: width of the vector; 1: a logit.
    """

    def __init__(
        self,
        width: int,
        hidden: tuple[int, ...],
        known: KnownSizes,
        dropout: float,
        out: int = 1,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden[0])
        self.knowledge = KnowledgeLayer(known, hidden[0]) if known else None
        sizes = pairwise(hidden)
        self.rest = nn.ModuleList(nn.Linear(a, b) for a, b in sizes)
        self.out = nn.Linear(hidden[-1], out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, known: Known | None) -> torch.Tensor:
        """``[B]`` logits, or ``[B, out]``, of ``[B, width]``."""
        x = self.first(x)
        if self.knowledge is not None and known is not None:
            x = x + self.knowledge(known)
        x = self.dropout(x.relu())
        for layer in self.rest:
            x = self.dropout(layer(x).relu())
        return self.out(x).squeeze(1) if self.out.out_features == 1 else self.out(x)


@dataclass(frozen=True, eq=False)
class Read:
    """What a network makes of ``B`` rows before knowledge enters.

    Args:
        x: ``[B, width]`` inputs of the head.
        added: ``[B]`` what is added to its logit, or None.
        auxiliary: ``[B]`` logits each, trained on the same labels and not read afterwards.
    """

    x: torch.Tensor
    added: torch.Tensor | None = None
    auxiliary: tuple[torch.Tensor, ...] = ()


class Network(nn.Module, ABC):
    """A ranker: a head answers from the rows alone, a second one corrects it by what is known.

    The first head is trained as if there were no knowledge, and is the answer where there is none:
    a ranker is no worse for knowledge that is missing. The second begins at zero: a ranker that
    gains knowledge begins as the one it was.
    """

    head: Head
    informed: Head | None

    def add_heads(self, width: int, settings: Settings, known: KnownSizes) -> None:
        """Both heads over ``width`` inputs; the second only where there is knowledge."""
        self.head = Head(width, settings.hidden, KnownSizes(), settings.dropout)
        self.informed = None
        if known:
            self.informed = Head(width, settings.hidden, known, settings.dropout)
            nn.init.zeros_(self.informed.out.weight)
            nn.init.zeros_(self.informed.out.bias)

    @abstractmethod
    def read(self, rows: Coded) -> Read:
        """The part that knowledge does not enter."""

    def answers(self, read: Read, known: Known | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``[B]`` logits of the rows alone, and with knowledge; None without."""
        alone = self.head(read.x, None)
        if read.added is not None:
            alone = alone + read.added
        if self.informed is None or known is None:
            return alone, None
        change = torch.where(known.some, self.informed(read.x, known), 0)
        return alone, alone.detach() + change

    def forward(self, rows: Coded, known: Known | None) -> torch.Tensor:
        """``[B]`` logits."""
        alone, informed = self.answers(self.read(rows), known)
        return alone if informed is None else informed


def mlp(width: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """ReLU layers."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers)
