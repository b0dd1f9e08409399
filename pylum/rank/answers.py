"""The two answers of a ranker as training sees them: of the rows alone, and with knowledge."""

from __future__ import annotations

import torch
from torch import nn

from pylum.knowledge import Knowledge
from pylum.rank.coding import Coded
from pylum.rank.joining import Joined
from pylum.rank.known import Known
from pylum.rank.network import Network
from pylum.rank.utilisation import Inputs

KEPT_BYTES = 1 << 30  # of what the second answer reads


class Batches:
    """Rows beside what is known of them, taken by index.

    Args:
        rows: coded.
        knowledge, inputs, joined: or None for a ranker without.
    """

    def __init__(
        self,
        rows: Coded,
        knowledge: Knowledge | None = None,
        inputs: Inputs | None = None,
        joined: Joined | None = None,
    ) -> None:
        self.rows, self.knowledge, self.inputs, self.joined = rows, knowledge, inputs, joined

    def __len__(self) -> int:
        return len(self.rows)

    def known(self, index: torch.Tensor) -> Known | None:
        """What is known of the rows at ``index``."""
        if self.inputs is None or self.knowledge is None or self.joined is None:
            return None
        return self.inputs.gather(self.knowledge, self.joined, index)


class First:
    """Losses of the answer of the rows alone, and of what is trained beside it."""

    def __init__(self, network: Network, batches: Batches) -> None:
        self.network, self.batches = network, batches

    def __len__(self) -> int:
        return len(self.batches)

    def losses(self, index: torch.Tensor) -> list[torch.Tensor]:
        rows = self.batches.rows.take(index)
        assert rows.labels is not None
        read = self.network.read(rows)
        found = (self.network.alone(read), *read.auxiliary)
        return [_loss(logits, rows.labels) for logits in found]


class Second:
    """Losses of the answer with knowledge, while all that the first one comes from stays.

    What the first reads and answers is kept if it is small enough: it is then read once and not in
    every epoch.

    Args:
        dropout: share of the rows whose user or item is left out of knowledge.
        batch_rows: rows that are read together.
    """

    def __init__(self, network: Network, batches: Batches, dropout: float, batch_rows: int) -> None:
        self.network, self.batches, self.dropout = network, batches, dropout
        width = network.head.first.in_features
        self.kept: tuple[torch.Tensor, torch.Tensor] | None = None
        if len(batches) * width * 4 <= KEPT_BYTES:
            x = torch.empty(len(batches), width, dtype=torch.float32)
            alone = torch.empty(len(batches), dtype=torch.float32)
            for index in torch.arange(len(batches)).split(batch_rows):
                x[index], alone[index] = self._read(index)
            self.kept = x, alone

    def __len__(self) -> int:
        return len(self.batches)

    def losses(self, index: torch.Tensor) -> list[torch.Tensor]:
        known = self.batches.known(index)
        assert known is not None and self.batches.rows.labels is not None
        if self.dropout:
            known = known.dropped(self.dropout)
        if self.kept is None:
            x, alone = self._read(index)
        else:
            x, alone = (part[index] for part in self.kept)
        found = self.network.corrected(x, alone, known)
        return [_loss(found, self.batches.rows.labels[index])]

    def _read(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            read = self.network.read(self.batches.rows.take(index))
            return read.x, self.network.alone(read)


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, labels)
