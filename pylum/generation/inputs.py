"""The histories and times that :func:`pylum.generate` takes, coded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pylum.data.columns import MICROSECONDS, as_times
from pylum.data.events import OOV_ROW, Events
from pylum.data.histories import Histories, OnUnknown
from pylum.data.interactions import Interactions
from pylum.model import LUM

if TYPE_CHECKING:
    from pylum.cache import UserCache


def coded_histories(
    model: LUM, histories: Any, cache: UserCache | None, on_unknown: OnUnknown
) -> tuple[list[Any], Events, torch.Tensor]:
    """Users, whole histories in the model's rows, and unknown items of each user."""
    if cache is not None and not hasattr(cache, "events"):
        raise TypeError(f"cache must be a UserCache, got {type(cache).__name__}")
    if cache is not None and isinstance(histories, (list, tuple)):
        users = list(histories)
        events = cache.events(users)
        return users, events, _unknown(events)
    if isinstance(histories, Interactions):
        histories = histories.histories()
    elif isinstance(histories, Mapping):
        histories = Histories.from_dicts(histories, model.schema)
    if not isinstance(histories, Histories):
        wanted = "Histories, Interactions or a dict of lists of events by user"
        raise TypeError(f"histories must be {wanted}, got {type(histories).__name__}")
    events = histories.encode(model.vocabs, model.schema, on_unknown=on_unknown)
    if on_unknown == "drop":
        return histories.users, events, histories.events.lengths - events.lengths
    return histories.users, events, _unknown(events)


def _unknown(events: Events) -> torch.Tensor:
    """``[B]`` events with an unknown item."""
    owner = torch.arange(len(events)).repeat_interleave(events.lengths)
    return torch.bincount(owner[events.items == OOV_ROW], minlength=len(events))


def question_times(query_time: Any, offsets: torch.Tensor) -> torch.Tensor | None:
    """``[Q]`` int64 seconds."""
    if query_time is None:
        return None
    users, questions = len(offsets) - 1, int(offsets[-1])
    single = not hasattr(query_time, "__len__") or isinstance(query_time, str)
    values = as_times([query_time] if single else query_time, "query_time") // MICROSECONDS
    times = torch.from_numpy(np.ascontiguousarray(values))
    if single:
        return times.expand(questions).contiguous()
    if len(times) == users:
        return times.repeat_interleave(offsets.diff())
    if len(times) == questions:
        return times
    raise ValueError(
        f"query_time must be one time, {users} of users or {questions} of questions, "
        f"got {len(times)}"
    )
