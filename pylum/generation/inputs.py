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
from pylum.model import UserModel

if TYPE_CHECKING:
    from pylum.cache import UserCache


def coded_histories(
    model: UserModel, histories: Any, cache: UserCache | None, on_unknown: OnUnknown
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


def question_times(
    query_time: Any, offsets: torch.Tensor, events: Events, users: list[Any]
) -> torch.Tensor | None:
    """``[Q]`` int64 seconds.

    Args:
        offsets: ``[B + 1]`` int64, questions of each user.
        events, users: the histories, none of which may go on after the question.

    Raises:
        ValueError: a time precedes the last event of its user, or there are too few or too many.
    """
    if query_time is None:
        return None
    count, questions = len(offsets) - 1, int(offsets[-1])
    if isinstance(query_time, torch.Tensor) and query_time.dim() == 0:
        query_time = query_time.item()
    single = not hasattr(query_time, "__len__") or isinstance(query_time, str)
    values = as_times([query_time] if single else query_time, "query_time") // MICROSECONDS
    times = torch.from_numpy(np.ascontiguousarray(values))
    if single:
        times = times.expand(questions).contiguous()
    elif len(times) == count:
        times = times.repeat_interleave(offsets.diff())
    elif len(times) != questions:
        raise ValueError(
            f"query_time must be one time, {count} of users or {questions} of questions, "
            f"got {len(times)}"
        )
    owner = torch.repeat_interleave(offsets.diff())
    if events.total:
        last = events.times[(events.offsets[1:] - 1).clamp(min=0)][owner]
        early = (times < last) & (events.lengths[owner] > 0)
        if bool(early.any()):
            q = int(early.nonzero()[0])
            raise ValueError(
                f"query_time must not precede the history, got {int(times[q])} for user "
                f"{users[int(owner[q])]!r}, whose last event is at {int(last[q])}"
            )
    return times
