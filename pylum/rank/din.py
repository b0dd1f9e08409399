"""Deep Interest Network (arXiv 1706.06978): history attended by what is scored."""

from __future__ import annotations

import torch
from torch import nn

from pylum.data.vocab import Vocab
from pylum.rank.coding import Coded
from pylum.rank.embeddings import Embeddings
from pylum.rank.known import KnownSizes
from pylum.rank.network import Network, Read
from pylum.rank.schema import Schema
from pylum.rank.settings import Settings


class ActivationUnit(nn.Module):
    """Weighs behaviours by an MLP over each, the target, their difference and product.

    As section 4.3 of the paper, weights are not normalised: how strong an interest is counts.

    Args:
        dim: of behaviours and target.
        hidden: layers of the MLP, PReLU between.
    """

    def __init__(self, dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 4 * dim
        for size in hidden:
            layers += [nn.Linear(width, size), nn.PReLU()]
            width = size
        self.weigh = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(
        self, behaviours: torch.Tensor, present: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """``[B, dim]`` weighted sum; zeros for an empty history."""
        other = target[:, None].expand_as(behaviours)
        pair = torch.cat([behaviours, other, behaviours - other, behaviours * other], 2)
        weights = self.weigh(pair).masked_fill(~present[:, :, None], 0)
        return (weights * behaviours).sum(1)


class DIN(Network):
    """Section 4 of the paper.

    Args:
        schema: with at least one sequence that shares the table of a category.
        vocabs: by table.
        known: inputs of knowledge.
    """

    def __init__(
        self, schema: Schema, vocabs: dict[str, Vocab], settings: Settings, known: KnownSizes
    ) -> None:
        super().__init__()
        need_behaviours(schema, "din")
        self.embeddings = Embeddings(schema, vocabs, settings.dim, settings.initial_scale)
        self.unit = ActivationUnit(settings.dim, settings.attention)
        width = (len(self.embeddings.pooled) + 3) * settings.dim + len(schema.of("number"))
        self.add_heads(width, settings, known)

    def read(self, rows: Coded) -> Read:
        read = self.embeddings(rows)
        interest = self.unit(read.behaviours, read.present, read.target)
        parts = [
            read.fields.flatten(1),
            read.numbers,
            interest,
            interest * read.target,
            read.remembered,
        ]
        return Read(torch.cat(parts, 1))


def need_behaviours(schema: Schema, name: str) -> None:
    """A ranker that attends behaviours to what is scored needs both in one space.

    Raises:
        ValueError: no sequence shares the table of a category.
    """
    if not any(f.shares for f in schema.of("sequence")):
        raise ValueError(
            f"schema must have a sequence that shares a category's table for {name}, such as "
            "Feature('last_item', 'sequence', shares='item')"
        )
