"""Which moment of a user is the latest that is not after a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pylum.data.vocab import Vocab

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Moments:
    """``R`` moments, sorted by user and time.

    Args:
        users: vocabulary of their users.
        distinct: all times, ascending.
        keys: ``[R]`` ascending: user and rank of the time in one number.
        owners: ``[R]`` rows of ``users``.
        order: ``[R]`` where each stood before.
    """

    users: Vocab
    distinct: Ints
    keys: Ints
    owners: Ints
    order: Ints

    @classmethod
    def of(cls, users: list[Any], times: torch.Tensor) -> Moments:
        """Args: ``R`` raw ids; ``[R]`` int64."""
        vocab = Vocab()
        mine = vocab.grow(users, "users") if users else np.empty(0, np.int64)
        moments = times.numpy()
        order = np.lexsort((moments, mine))
        distinct = np.unique(moments)
        owners = mine[order]
        keys = owners * (len(distinct) + 1) + np.searchsorted(distinct, moments[order])
        return cls(vocab, distinct, keys, owners, order)

    def latest(self, asked: Ints, times: Any = None) -> Ints:
        """``[Q]`` moments of users, rows of ``users``, not after ``times``; -1: none."""
        limit = np.iinfo(np.int64).max if times is None else np.asarray(times, np.int64)
        upto = np.searchsorted(self.distinct, np.broadcast_to(limit, asked.shape), side="right")
        place = np.searchsorted(self.keys, asked * (len(self.distinct) + 1) + upto) - 1
        found = (place >= 0) & (asked > 0)
        found[found] = self.owners[place[found]] == asked[found]
        out = np.full(len(asked), -1, np.int64)
        out[found] = self.order[place[found]]
        return out
