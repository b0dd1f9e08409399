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
``rest-auc``
    For rankers, as ReST is evaluated: what is left when users and items with fewer than
    five events are removed until none is (5-core); per user the first 80 % are trained on, the next
    10 % are validation, the rest is test.
``din-auc``
    For rankers (after arXiv 1706.06978): a hash of the raw user id puts 65 % of the users into
    train, 7 % into valid and 28 % into test; a user's events from the sixth on are targets.

Step 3 needs four parts, which :func:`stages` makes: the user model is trained on the first, the
ranker on the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from pylum.data.columns import as_ids
from pylum.data.events import Events
from pylum.data.hashing import hash_ids, mix
from pylum.data.spool import take

if TYPE_CHECKING:
    from pylum.data.interactions import Interactions

Mask = npt.NDArray[np.bool_]
# For train, valid and test: which events may be seen, and which of them are targets.
Parts = tuple[tuple[Mask, Mask], tuple[Mask, Mask], tuple[Mask, Mask]]
PARTS = ("train", "valid", "test")
TRAIN_SHARE, VALID_SHARE = 0.8, 0.9
USER_MODEL_SHARE = 0.4
DIN_SHARES = (0.65, 0.72)
DIN_FIRST = 5  # events of a user before its first target
CORE = 5


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


def core(data: Interactions, least: int = CORE) -> Interactions:
    """The whole data set that is left when users and items with fewer events are removed.

    Raises:
        ValueError: ``data`` is a part, or nothing is left.
    """
    if data.whole is not None:
        raise ValueError(f"data must be whole, got {data.protocol}/{data.part}")
    kept = _core(data, least)
    if not kept.any():
        raise ValueError(f"no user and item with {least} events each are left")
    if kept.all():
        return data
    left = part(data, kept, kept, "", "")
    return replace(
        left,
        events=replace(
            left.events,
            targets=None if data.events.targets is None else data.events.targets[kept],
        ),
        protocol=None,
        part=None,
        whole=None,
        whole_rows=None,
    )


def one_by_one(data: Interactions) -> Interactions:
    """With times that put a user's events of one second one after the other, in their order.

    Where many events share a second, what is earlier in the data then counts as earlier in time, so
    that knowledge can be asked as of every row. Times are milliseconds since the first event,
    called seconds: good for their order, not as a clock.

    Raises:
        ValueError: ``data`` is a part, or a user has more than a thousand events in one second.
    """
    if data.whole is not None:
        raise ValueError(f"data must be whole, got {data.protocol}/{data.part}")
    times, offsets = data.events.times.numpy(), data.events.offsets.numpy()
    new = np.ones(len(times), bool)
    new[1:] = times[1:] != times[:-1]
    new[offsets[:-1][np.diff(offsets) > 0]] = True
    rank = np.arange(len(times))
    rank -= np.maximum.accumulate(np.where(new, rank, 0))
    if len(rank) and rank.max() >= 1000:
        raise ValueError(f"a user has {int(rank.max()) + 1} events in one second, more than 1000")
    clock = (times - times.min()) * 1000 + rank if len(times) else times
    return replace(data, events=replace(data.events, times=torch.from_numpy(clock)))


def stages(data: Interactions, by: str = "time") -> tuple[Interactions, ...]:
    """Parts for the user model, the ranker, validation and test, none of which share a target.

    Knowledge for the ranker's rows then comes from weights that were not fitted on them.

    Args:
        by: ``"time"``: cut at the 40 %, 80 % and 90 % quantiles of time; ``"user"``: at 40 %, 80 %
            and 90 % of each user's events; ``"users"``: by a hash of the user, 36 % of the users
            for the user model, 29 % for the ranker, 7 % and 28 %, events from the sixth on being
            targets of the last three.

    Raises:
        ValueError: ``by`` is unknown, or a part has no target.
    """
    if data.whole is not None:
        raise ValueError(f"data must be whole to be split, got {data.protocol}/{data.part}")
    targets, total = _targets(data), data.events.total
    shares = (USER_MODEL_SHARE, TRAIN_SHARE, VALID_SHARE)
    early = np.zeros(total, bool)
    if by == "time":
        times = data.events.times.numpy()
        cuts = [int(share * total) for share in shares]
        stage = np.searchsorted(np.partition(times, cuts)[cuts], times, "right")
    elif by == "user":
        stage = np.searchsorted(shares, _progress(data), "right")
    elif by == "users":
        stage = np.searchsorted((DIN_SHARES[1] / 2, *DIN_SHARES), _user_share(data), "right")
        early = (_place(data) < DIN_FIRST) & (stage > 0)
    else:
        raise ValueError(f"by must be 'time', 'user' or 'users', got {by!r}")
    parts = []
    for number, name in enumerate(("user model", "ranker", "valid", "test")):
        visible = stage == number if by == "users" else stage <= number
        scored = targets & (stage == number) & ~early
        if not scored.any():
            raise ValueError(f"stages by {by!r} leave the {name} part without a target")
        parts.append(part(data, visible, scored, f"two-stage by {by}", name))
    return tuple(parts)


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
        None if events.shown is None else column(events.shown),
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


def _core(data: Interactions, least: int) -> Mask:
    items = data.events.items.numpy()
    offsets = data.events.offsets.numpy()
    owner = np.repeat(np.arange(len(data)), np.diff(offsets))
    kept = np.ones(len(items), bool)
    while True:
        by_item = np.bincount(items[kept], minlength=len(data.vocabs.items))
        by_user = np.bincount(owner[kept], minlength=len(data))
        left = kept & (by_item[items] >= least) & (by_user[owner] >= least)
        if (left == kept).all():
            return kept
        kept = left


def _place(data: Interactions) -> npt.NDArray[np.int64]:
    """Of each event in its user's history, from 0."""
    offsets = data.events.offsets.numpy()
    return np.arange(data.events.total) - np.repeat(offsets[:-1], np.diff(offsets))


def _progress(data: Interactions) -> npt.NDArray[np.float64]:
    """Share of the user's events that are before each."""
    lengths = data.events.lengths.numpy()
    return _place(data) / np.repeat(lengths, lengths)


def _user_share(data: Interactions) -> npt.NDArray[np.float64]:
    """``[N]`` in [0, 1): a hash of each event's user, whatever the coding."""
    hashes = mix(hash_ids(as_ids(data.users, "users")[0]) + np.uint64(1))
    share = (hashes >> np.uint64(11)).astype(np.float64) / 2.0**53
    return np.repeat(share, data.events.lengths.numpy())


def _rest_auc(data: Interactions) -> Parts:
    targets, kept = _targets(data), _core(data, CORE)
    offsets = data.events.offsets.numpy()
    owner = np.repeat(np.arange(len(data)), np.diff(offsets))
    inside = np.concatenate([[0], kept.cumsum()])
    place = inside[:-1] - inside[offsets[:-1]][owner]
    lengths = np.maximum(np.bincount(owner[kept], minlength=len(data)), 1)
    share = place / lengths[owner]
    train, early = share < TRAIN_SHARE, share < VALID_SHARE
    return (
        (kept & train, kept & targets & train),
        (kept & early, kept & targets & early & ~train),
        (kept, kept & targets & ~early),
    )


def _din_auc(data: Interactions) -> Parts:
    scored = _targets(data) & (_place(data) >= DIN_FIRST)
    stage = np.searchsorted(DIN_SHARES, _user_share(data), "right")
    return tuple((stage == n, scored & (stage == n)) for n in range(3))  # type: ignore[return-value]


PROTOCOLS: dict[str, Callable[[Interactions], Parts]] = {
    "loo-full": _loo_full,
    "global-time": _global_time,
    "rest-auc": _rest_auc,
    "din-auc": _din_auc,
}
