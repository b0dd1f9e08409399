"""Knowledge of a batch of rows, as a network reads it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
