"""What every ranker ends in: one head over its rows alone, one that knowledge corrects it with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from pylum.rank.coding import Coded
from pylum.rank.known import Known, KnownSizes
from pylum.rank.settings import Settings


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

    The first head and all it reads are trained as if there were no knowledge, and are the answer
    where there is none: a ranker is no worse for knowledge that is missing. The second head reads
    the same and moves none of it. It begins at zero: a ranker that gains knowledge begins as the
    one it was.
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

    def alone(self, read: Read) -> torch.Tensor:
        """``[B]`` logits of the rows alone."""
        found = self.head(read.x, None)
        return found if read.added is None else found + read.added

    def corrected(self, x: torch.Tensor, alone: torch.Tensor, known: Known) -> torch.Tensor:
        """``[B]`` logits with knowledge, of ``x`` and the logits of the same rows alone.

        Where nothing is known these stay. No weight that they came from is moved.
        """
        assert self.informed is not None
        return alone.detach() + torch.where(known.some, self.informed(x.detach(), known), 0)

    def forward(self, rows: Coded, known: Known | None) -> torch.Tensor:
        """``[B]`` logits."""
        read = self.read(rows)
        alone = self.alone(read)
        if self.informed is None or known is None:
            return alone
        return self.corrected(read.x, alone, known)


def mlp(width: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """ReLU layers."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers)
