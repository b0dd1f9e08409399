"""What makes an event the same event in another data set, split or coding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pylum.data.hashing import Hashes, mix

if TYPE_CHECKING:
    from pylum.data.interactions import Interactions


def event_hashes(data: Interactions) -> Hashes:
    """``[N]`` uint64 of raw user, raw item, time and occurrence, in the order of the events.

    The occurrence tells equal events of a user apart. A part holds all earlier events, so an event
    has the same one in a part and in the whole.
    """
    events = data.events
    users = np.repeat(data.user_vocab.hashes()[data.user_rows], events.lengths.numpy())
    if data.item_hashes is None:
        items = data.vocabs.items.hashes()[events.items.numpy()]
    else:
        items = data.item_hashes
    hashes = mix(users + mix(items + mix(events.times.numpy().view(np.uint64))))
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    occurrence = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    hashes[order] = mix(ordered + occurrence.astype(np.uint64))
    return hashes


def fingerprint(data: Interactions) -> str:
    """Hex digest of the set of events: their number, and a sum of their hashes."""
    hashes = event_hashes(data)
    return f"{int(mix(hashes).sum(dtype=np.uint64)):016x}{len(hashes):012x}"
