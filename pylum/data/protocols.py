"""Named ways to divide a data set, so that a number says how it came about.

``loo-full``
    Per user, the last target is the test event and the last but one the validation event; each is
    scored after everything earlier. A user with fewer than three targets is trained on whole and
    never scored. For the final fit, :meth:`Interactions.merged` joins train and valid: all but the
    test event. Training sees other users' future.
``global-time``
    One cut in time for all: events before the 80 % quantile of time are trained on, those before
    the 90 % quantile are validation, the rest is test. Events of one second stay together, on the
    later side. A scored event is seen with all earlier events of its user, scored ones too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from pylum.data.events import Events
from pylum.data.spool import take

if TYPE_CHECKING:
    from pylum.data.interactions import Interactions

Mask = npt.NDArray[np.bool_]
# For train, valid and test: which events may be seen, and which of them are targets.
Parts = tuple[tuple[Mask, Mask], tuple[Mask, Mask], tuple[Mask, Mask]]
PARTS = ("train", "valid", "test")
TRAIN_SHARE, VALID_SHARE = 0.8, 0.9


def split(data: Interactions, protocol: str) -> tuple[Interactions, Interactions, Interactions]:
    """Train, valid and test of ``data``.

    Raises:
        ValueError: the protocol is unknown, ``data`` is itself a part, or a part would be empty.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if data.whole is not None:
        raise ValueError(f"data must be whole to be split, got {data.protocol}/{data.part}")
    parts = []
    for name, (visible, targets) in zip(PARTS, PROTOCOLS[protocol](data), strict=True):
        if not targets.any():
            raise ValueError(f"protocol {protocol!r} leaves the {name} part without a target")
        parts.append(part(data, visible, targets, protocol, name))
    return parts[0], parts[1], parts[2]


def part(
    data: Interactions, visible: Mask, targets: Mask, protocol: str, name: str
) -> Interactions:
    """The users of ``data`` with a target, with what may be seen of them.

    Args:
        data: a whole data set.
        visible, targets: ``[N]``, events to keep and those of them that are targets.
    """
    offsets = data.events.offsets.numpy()
    seen = np.concatenate([[0], np.cumsum(targets)])
    users = np.flatnonzero(seen[offsets[1:]] > seen[offsets[:-1]])
    kept = np.zeros(len(data), bool)
    kept[users] = True
    rows = np.flatnonzero(visible & np.repeat(kept, np.diff(offsets)))
    bounds = np.searchsorted(rows, offsets)
    lengths = np.diff(bounds)[users]
    return replace(
        data,
        events=_take(data, rows, lengths, targets[rows]),
        user_rows=data.user_rows[users],
        protocol=protocol,
        part=name,
        whole=data,
        whole_rows=rows,
        item_hashes=None if data.item_hashes is None else data.item_hashes[rows],
    )


def merged(a: Interactions, b: Interactions) -> Interactions:
    """What either part sees, with the targets of both: train and valid for the final fit.

    Raises:
        ValueError: they are not parts of one data set.
    """
    if a.whole is None or a.whole is not b.whole:
        raise ValueError("other must be a part of the same data set, by the same split")
    visible = np.zeros(a.whole.events.total, bool)
    targets = np.zeros(a.whole.events.total, bool)
    for each in (a, b):
        mask = each.events.targets
        visible[each.whole_rows] = True
        targets[each.whole_rows] |= np.True_ if mask is None else mask.numpy()
    return part(a.whole, visible, targets, a.protocol or "", f"{a.part}+{b.part}")


def _take(
    data: Interactions, rows: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], targets: Mask
) -> Events:
    def column(tensor: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(take(tensor.numpy(), rows, data.on_disk))

    events = data.events
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Events(
        torch.from_numpy(offsets),
        column(events.items),
        column(events.times),
        {name: column(values) for name, values in events.conditions.items()},
        {name: column(values) for name, values in events.outcomes.items()},
        None if targets.all() else torch.from_numpy(targets),
    )


def _targets(data: Interactions) -> Mask:
    targets = data.events.targets
    return np.ones(data.events.total, bool) if targets is None else targets.numpy()


def _loo_full(data: Interactions) -> Parts:
    targets = _targets(data)
    offsets = data.events.offsets.numpy()
    seen = np.concatenate([[0], np.cumsum(targets)])
    lengths = np.diff(offsets)
    # Targets of the user at this event or later: 1 up to the last one, 2 up to the one before it.
    left = np.repeat(seen[offsets[1:]], lengths) - seen[:-1]
    scored = np.repeat(seen[offsets[1:]] - seen[offsets[:-1]] >= 3, lengths)
    train = ~scored | (left >= 3)
    return (
        (train, train & targets),
        (scored & (left >= 2), scored & targets & (left == 2)),
        (scored & (left >= 1), scored & targets & (left == 1)),
    )


def _global_time(data: Interactions) -> Parts:
    targets, times = _targets(data), data.events.times.numpy()
    total = len(times)
    cuts = [int(TRAIN_SHARE * total), int(VALID_SHARE * total)]
    first, second = np.partition(times, cuts)[cuts]
    train, early = times < first, times < second
    return (
        (train, targets & train),
        (early, targets & early & ~train),
        (np.ones(total, bool), targets & ~early),
    )


PROTOCOLS: dict[str, Callable[[Interactions], Parts]] = {
    "loo-full": _loo_full,
    "global-time": _global_time,
}
