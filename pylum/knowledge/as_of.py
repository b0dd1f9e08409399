"""Which behaviours precede a moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pylum.data.columns import MICROSECONDS, as_times
from pylum.data.events import Events
from pylum.data.tables import as_table, pick


@dataclass(frozen=True)
class Moments:
    """``R`` moments at which users are asked.

    Args:
        users: ``[R]`` int64 which user; -1: one without a history.
        times: ``[R]`` int64 seconds.
        names: raw ids of the users that are -1, by row.
        table: condition fields of each row, or None.
    """

    users: torch.Tensor
    times: torch.Tensor
    names: dict[int, Any]
    table: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.users)


def moments(at: Any, events: Events, users: list[Any], fields: list[str]) -> Moments:
    """The moments of the argument ``at`` of :func:`pylum.query`.

    Args:
        at: ``"end"``, ``"each"`` or a table with columns ``user``, ``time`` and any of ``fields``;
            others are ignored.

    Raises:
        ValueError: ``at`` is none of these, or lacks a column.
        TypeError: its users are of another type than those of the data.
    """
    if isinstance(at, str) and at == "end":
        end = int(events.times.max()) + 1 if events.total else 0
        rows = torch.arange(len(users))
        return Moments(rows, torch.full((len(users),), end), {})
    if isinstance(at, str) and at == "each":
        return Moments(torch.repeat_interleave(events.lengths), events.times, {})
    if isinstance(at, str) or at is None:
        raise ValueError(f"at must be 'end', 'each' or a table with user and time, got {at!r}")
    table = as_table(at, "at")
    asked = pick(table, "user", "at").to_pylist()
    times = as_times(pick(table, "time", "at"), "at: 'time'") // MICROSECONDS
    if asked and users and type(asked[0]) is not type(users[0]):
        raise TypeError(
            f"at: 'user' must be {type(users[0]).__name__} as in data, got {asked[0]!r}"
        )
    place = {user: row for row, user in enumerate(users)}
    rows = torch.tensor([place.get(user, -1) for user in asked], dtype=torch.int64)
    names = {row: asked[row] for row in (rows < 0).nonzero().squeeze(1).tolist()}
    known = table.select([name for name in table.column_names if name in fields])
    return Moments(rows, torch.from_numpy(np.ascontiguousarray(times)), names, known)


def visible_before(events: Events, users: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """``[R]`` int64 behaviours of ``users`` with a time less than ``times``.

    Args:
        users: ``[R]`` int64 rows of the events' users; -1 sees nothing.
        times: ``[R]`` int64 seconds.
    """
    distinct, rank = events.times.unique(return_inverse=True)
    # One ascending key over all users: (user, rank of the time).
    span = len(distinct) + 1
    owner = torch.repeat_interleave(events.lengths)
    keys = owner * span + rank
    asked = users.clamp(min=0)
    before = torch.searchsorted(distinct, times)
    found = torch.searchsorted(keys, asked * span + before) - events.offsets[asked]
    return found.masked_fill(users < 0, 0)
