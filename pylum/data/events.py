"""A packed batch of behaviours, as the model reads it: rows and numbers, no raw ids."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from pylum.transfer import moved

ANY_ROW = 1  # of every condition vocabulary: no particular condition
OOV_ROW = 0  # of every vocabulary: a value never seen, trained


@dataclass(frozen=True)
class Events:
    """``B`` users' behaviours, oldest first, one user after the other: ``N`` in all.

    Args:
        offsets: ``[B + 1]`` int64, in behaviours.
        items: ``[N]`` int64 rows of the item vocabulary.
        times: ``[N]`` int64 seconds, non-decreasing in each user.
        conditions, outcomes: by field name. A category is ``[N]`` int64 rows of its vocabulary;
            a number ``[N]`` float32; a vector ``[N, dim]`` float32. NaN in a condition's number
            or in a vector's first element means ANY; in an outcome it means unknown.
        targets: ``[N]`` bool, events whose item is a loss target; None: all.
        shown: ``[N, m]`` int64 rows of items that were shown beside each choice and not chosen, -1:
            no more; None: what was shown is not known. They are no behaviours.
    """

    offsets: torch.Tensor
    items: torch.Tensor
    times: torch.Tensor
    conditions: dict[str, torch.Tensor] = field(default_factory=dict)
    outcomes: dict[str, torch.Tensor] = field(default_factory=dict)
    targets: torch.Tensor | None = None
    shown: torch.Tensor | None = None

    def __len__(self) -> int:
        """Number of users."""
        return self.offsets.numel() - 1

    @property
    def total(self) -> int:
        """Number of behaviours."""
        return self.items.numel()

    @property
    def lengths(self) -> torch.Tensor:
        """``[B]`` int64 behaviours of each user."""
        return self.offsets.diff()

    def take(self, index: torch.Tensor, offsets: torch.Tensor) -> Events:
        """The behaviours at ``index``, divided into users by ``offsets``."""
        return replace(
            self,
            offsets=offsets,
            items=self.items[index],
            times=self.times[index],
            conditions={name: column[index] for name, column in self.conditions.items()},
            outcomes={name: column[index] for name, column in self.outcomes.items()},
            targets=None if self.targets is None else self.targets[index],
            shown=None if self.shown is None else self.shown[index],
        )

    def users(self, rows: torch.Tensor, last: int | None = None) -> Events:
        """The histories of the users at ``rows``, cut to their ``last`` behaviours."""
        stop = self.offsets[rows + 1]
        start = self.offsets[rows]
        if last is not None:
            start = torch.maximum(start, stop - last)
        lengths = stop - start
        offsets = torch.zeros(len(rows) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        index = torch.arange(int(offsets[-1])) + (start - offsets[:-1]).repeat_interleave(lengths)
        return self.take(index, offsets)

    def to(self, device: torch.device | str) -> Events:
        """A copy with every column on ``device``."""
        return Events(
            moved(self.offsets, device),
            moved(self.items, device),
            moved(self.times, device),
            {name: moved(column, device) for name, column in self.conditions.items()},
            {name: moved(column, device) for name, column in self.outcomes.items()},
            None if self.targets is None else moved(self.targets, device),
            None if self.shown is None else moved(self.shown, device),
        )
