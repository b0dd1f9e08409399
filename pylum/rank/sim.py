"""SIM, Search-based Interest Model (arXiv 2006.05639): search a long history, attend the finds."""

from __future__ import annotations

import torch
from torch import nn

from pylum.data.vocab import Vocab
from pylum.rank.coding import Coded
from pylum.rank.din import ActivationUnit, need_behaviours
from pylum.rank.embeddings import Embeddings
from pylum.rank.known import KnownSizes
from pylum.rank.network import Head, Network, Read
from pylum.rank.schema import Schema
from pylum.rank.settings import Settings

AGES = 16  # buckets of log2 of a behaviour's place from the end


class SIM(Network):
    """Soft search by inner product, then multi-head attention over what was found (section 3).

    The paper's second stage reads each find's age as the time to the target; rows hold no times of
    behaviours, so it is the logarithm of its place from the end here. The search is trained by a
    logit of its own, as in the paper. The latest behaviours are attended as in DIN.

    Args:
        schema: with at least one sequence that shares the table of a category.
        vocabs: by table.
        known: inputs of knowledge.
    """

    def __init__(
        self, schema: Schema, vocabs: dict[str, Vocab], settings: Settings, known: KnownSizes
    ) -> None:
        super().__init__()
        need_behaviours(schema, "sim_rank")
        dim = settings.dim
        if dim % settings.heads:
            raise ValueError(f"heads must divide dim, got {settings.heads} and {dim}")
        self.found, self.short, self.heads = settings.found, settings.short, settings.heads
        self.embeddings = Embeddings(schema, vocabs, dim, settings.initial_scale)
        self.search_behaviour = nn.Linear(dim, dim, bias=False)
        self.search_target = nn.Linear(dim, dim, bias=False)
        self.search_head = Head(3 * dim, settings.hidden[-1:], KnownSizes(), settings.dropout)
        self.age = nn.Parameter(torch.randn(AGES, dim) * settings.initial_scale)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.unit = ActivationUnit(dim, settings.attention)
        width = (len(self.embeddings.pooled) + 5) * dim + len(schema.of("number"))
        self.add_heads(width, settings, known)

    def read(self, rows: Coded) -> Read:
        read = self.embeddings(rows)
        relevance = (
            self.search_behaviour(read.behaviours) @ self.search_target(read.target)[:, :, None]
        ).squeeze(2)
        relevance = relevance.masked_fill(~read.present, 0)
        scanned = (relevance[:, :, None] * read.behaviours).sum(1)
        searched = self.search_head(
            torch.cat([scanned, read.target, scanned * read.target], 1), None
        )
        far = self._attended(read.behaviours, read.present, relevance, read.target)
        lengths = read.present.sum(1, keepdim=True)
        recent = torch.arange(read.present.shape[1]) >= lengths - self.short
        near = self.unit(read.behaviours, read.present & recent, read.target)
        parts = [
            read.fields.flatten(1),
            read.numbers,
            far,
            far * read.target,
            near,
            near * read.target,
            read.remembered,
        ]
        return Read(torch.cat(parts, 1), None, (searched,))

    def _attended(
        self,
        behaviours: torch.Tensor,
        present: torch.Tensor,
        relevance: torch.Tensor,
        target: torch.Tensor,
    ) -> torch.Tensor:
        """``[B, dim]`` of the finds; zeros for an empty history."""
        kept = min(self.found, behaviours.shape[1])
        if kept == 0:
            return torch.zeros_like(target)
        scores = relevance.detach().masked_fill(~present, -torch.inf)
        place = scores.topk(kept, 1).indices
        there = present.gather(1, place)
        finds = behaviours.gather(1, place[:, :, None].expand(-1, -1, behaviours.shape[2]))
        back = (present.sum(1, keepdim=True) - place).clamp_min(1)
        finds = finds + self.age[back.float().log2().long().clamp_max(AGES - 1)]
        shape = (len(target), -1, self.heads, behaviours.shape[2] // self.heads)
        query = self.query(target).view(shape[0], 1, *shape[2:]).transpose(1, 2)
        key = self.key(finds).view(shape).transpose(1, 2)
        value = self.value(finds).view(shape).transpose(1, 2)
        logits = (query @ key.transpose(2, 3)) * shape[3] ** -0.5
        # A row without any find has no weight anywhere, where a softmax would divide zero by zero.
        logits = logits.masked_fill(~there[:, None, None], -1e9)
        weights = logits.softmax(3) * there[:, None, None]
        return (weights @ value).transpose(1, 2).reshape(len(target), -1)
