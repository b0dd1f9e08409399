"""What passes from stage to stage: items of each user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Distinct items of each of ``B`` users.

    Args:
        users: raw ids.
        offsets: ``[B + 1]`` int64: user ``b`` has ``rows[offsets[b] : offsets[b + 1]]``.
        rows: ``[total]`` int64 rows of the catalogue.
    """

    users: list[Any]
    offsets: Rows
    rows: Rows

    @classmethod
    def of(cls, users: Sequence[Any], lists: Sequence[Rows]) -> Candidates:
        """From raw user ids and the rows of each."""
        offsets = np.cumsum([0, *map(len, lists)])
        rows = np.concatenate([np.empty(0, np.int64), *lists]).astype(np.int64)
        return cls(list(users), offsets, rows)

    def __len__(self) -> int:
        """Number of candidates of all users."""
        return len(self.rows)

    @property
    def owners(self) -> Rows:
        """``[total]`` the user of each candidate, 0 to ``B - 1``."""
        return np.repeat(np.arange(len(self.users)), np.diff(self.offsets))

    def lists(self) -> list[Rows]:
        """The rows of each user."""
        return np.split(self.rows, self.offsets[1:-1]) if self.users else []

    def best(self, scores: Scores, budget: int) -> tuple[Candidates, Scores]:
        """The ``budget`` best of each user, best first; equal scores go to the lower row."""
        owners = self.owners
        order = np.lexsort((self.rows, -scores, owners))
        rank = np.arange(len(order)) - self.offsets[owners]
        order = order[rank < budget]
        counts = np.minimum(np.diff(self.offsets), budget)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return Candidates(self.users, offsets, self.rows[order]), scores[order]
