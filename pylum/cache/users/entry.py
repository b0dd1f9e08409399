"""What the cache keeps of a user; histories cut out of batches, joined and extended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from pylum.cache.pages.lanes import Mark
from pylum.data.columns import missing_numbers
from pylum.data.events import Events
from pylum.data.schema import Field, Schema
from pylum.ragged import lengths_to_offsets


@dataclass
class Entry:
    """One user.

    Args:
        history: everything passed of the user, in the model's rows.
        pages: of the pool, on the device.
        rows: of the host's pool; who has some has no ``pages``.
        digests: of the cached behaviours, a page each.
        behaviours: how many the pages hold.
        start: which of the history is the first of them.
        approximate: whether their keys and values saw behaviours before ``start``.
        copied: when the pages or rows hold what they were given last by a copy; None: at once.
    """

    history: Events
    pages: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    behaviours: int = 0
    start: int = 0
    approximate: bool = False
    copied: Mark | None = None


def single(events: Events, row: int) -> Events:
    """A copy of one user's history, apart from the batch."""
    a, b = int(events.offsets[row]), int(events.offsets[row + 1])
    return Events(
        torch.tensor([0, b - a]),
        events.items[a:b].clone(),
        events.times[a:b].clone(),
        {name: column[a:b].clone() for name, column in events.conditions.items()},
        {name: column[a:b].clone() for name, column in events.outcomes.items()},
    )


def joined(parts: Sequence[Events], schema: Schema) -> Events:
    """Users one after the other."""
    return Events(
        lengths_to_offsets(torch.tensor([part.total for part in parts], dtype=torch.int64)),
        _cat([part.items for part in parts]),
        _cat([part.times for part in parts]),
        {f.name: _cat([part.conditions[f.name] for part in parts], f) for f in schema.conditions},
        {f.name: _cat([part.outcomes[f.name] for part in parts], f) for f in schema.outcomes},
    )


def merged(old: Events, new: Events) -> Events:
    """Each user's events of both, by time; of one time, the old ones first."""
    both = torch.cat([old.offsets.diff(), new.offsets.diff()])
    owner = torch.cat([torch.repeat_interleave(e.offsets.diff()) for e in (old, new)])
    times = torch.cat([old.times, new.times])
    order = torch.sort(times, stable=True).indices
    order = order[torch.sort(owner[order], stable=True).indices]
    lengths = both[: len(old)] + both[len(old) :]
    return Events(
        lengths_to_offsets(lengths),
        torch.cat([old.items, new.items])[order],
        times[order],
        {
            name: torch.cat([column, new.conditions[name]])[order]
            for name, column in old.conditions.items()
        },
        {
            name: torch.cat([column, new.outcomes[name]])[order]
            for name, column in old.outcomes.items()
        },
    )


def _cat(columns: Sequence[torch.Tensor], field: Field | None = None) -> torch.Tensor:
    if columns:
        return torch.cat(list(columns))
    if field is None or field.kind == "category":
        return torch.empty(0, dtype=torch.int64)
    return missing_numbers(0, field.dim)
