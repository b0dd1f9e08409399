"""Rows for a ranker, with what was known of user and item before each of them.

As of a row means: of its user, the events before it in the data's order, or, where the rows are
ordered by time alone, those at an earlier second; of its item, the rows of all users at an earlier
second. So a row's own outcome is never in its features, and no later one is.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pylum.data.interactions import Interactions
from pylum.data.vocab import Vocab
from pylum.ragged import Ragged
from pylum.rank.schema import Feature, Schema

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
PRIOR = 5.0  # rows at the overall rate that a user or item begins with


def impressions(
    data: Interactions,
    labels: Any,
    *,
    last: int = 20,
    order: Literal["row", "time"] = "row",
    delay: int = 0,
    negatives: int = 0,
    seed: int = 0,
) -> pa.Table:
    """One row for each event of a data set, and as many drawn beside it as asked for.

    Args:
        data: a whole data set of ``E`` events.
        labels: ``[E]`` booleans, the outcome of each event.
        last: behaviours of the user that a row remembers.
        order: ``"row"``: earlier events of the user in the data's order are known; ``"time"``: only
            those at a time less than the row's - ``delay``.
        delay: seconds an event takes to be known; with ``"row"`` it must be 0.
        negatives: items shown beside each chosen one, with label 0, drawn by ``seed`` among the
            items that anybody has chosen by then; they are no behaviours and never remembered.
        seed: of the draw.

    Returns:
        Rows in the order of events, the drawn ones behind their event: ``user``, ``item``,
        ``time``, ``label``, ``event`` (which one it is, counted over ``data``), the conditions, the
        features of the item, ``user_count``, ``user_rate``, ``item_count``, ``item_rate`` and the
        sequences ``last_item``, ``last_<category>``, ``last_<outcome>`` and, without negatives,
        ``last_label``. Categories are strings, integers or booleans, as the data has them.

    Raises:
        ValueError: ``labels`` does not fit, ``data`` is a part, delay goes with ``"row"``, or a
            condition gives the label away.
    """
    events = data.events
    outcome = np.asarray(labels, np.float64)
    if data.whole is not None:
        raise ValueError(f"data must be whole, got the part {data.protocol}/{data.part}")
    if outcome.shape != (events.total,):
        raise ValueError(f"labels must be [{events.total}], got {list(outcome.shape)}")
    if order not in ("row", "time") or delay < 0 or (delay and order == "row"):
        raise ValueError(f"order must be 'row' or 'time', delay for 'time', got {order!r}, {delay}")
    for name in _categories(data):
        if not negatives and _gives_away(events.conditions[name].numpy(), outcome):
            raise ValueError(
                f"labels are known from the condition {name!r} alone: rows of a data set whose "
                "condition is an outcome are not fair, leave it out"
            )
    if last < 1 or negatives < 0:
        raise ValueError(f"last must be at least 1, negatives 0, got {last}, {negatives}")
    offsets = events.offsets.numpy()
    owner = np.repeat(np.arange(len(data)), np.diff(offsets))
    place = np.arange(events.total) - offsets[owner]
    times = events.times.numpy()
    known = place if order == "row" else before(owner, times, owner, times - delay)
    which = np.repeat(np.arange(events.total), 1 + negatives)
    items, label = events.items.numpy()[which], outcome[which]
    if negatives:
        drawn = np.arange(len(which)) % (1 + negatives) > 0
        random = np.random.default_rng(seed)
        shown, known_by = _shown(events.items.numpy(), times)
        choice = np.searchsorted(known_by, times[which[drawn]], "right")
        items[drawn] = shown[random.integers(choice)]
        label[drawn] = 0
    clock = times[which]
    # Counted over all rows, the drawn ones too: how often it was shown, and how that went.
    user_count, user_sum = _tally(owner, known, outcome, offsets)
    item_count, item_sum = as_of_sums(items, clock, label, items, clock - delay)
    one = np.zeros_like(items)
    total_count, total_sum = as_of_sums(one, clock, label, one, clock - delay)
    overall = (total_sum + 0.5 * PRIOR) / (total_count + PRIOR)
    columns: dict[str, Any] = {
        "user": _raw(data.user_vocab, data.user_rows[owner[which]]),
        "item": _raw(data.vocabs.items, items),
        "time": clock,
        "label": label.astype(np.int8),
        "event": which,
    }
    for name in _categories(data):
        columns[name] = _raw(data.vocabs.conditions[name], events.conditions[name].numpy()[which])
    for f in data.schema.conditions:
        if f.kind == "number":
            columns[f.name] = events.conditions[f.name].numpy()[which]
    columns |= _item_features(data, items)
    columns["user_count"] = user_count[which]
    columns["user_rate"] = (user_sum[which] + PRIOR * overall) / (user_count[which] + PRIOR)
    columns["item_count"] = item_count
    columns["item_rate"] = (item_sum + PRIOR * overall) / (item_count + PRIOR)
    taken, lengths = _last(offsets[:-1][owner], known, last)
    past = _item_features(data, events.items.numpy())
    columns_before: dict[str, Any] = {
        "item": _raw(data.vocabs.items, events.items.numpy()),
        **({} if negatives else {"label": pa.array(outcome.astype(np.int8))}),
        **{
            f.name: _raw(data.vocabs.outcomes[f.name], events.outcomes[f.name].numpy())
            for f in data.schema.outcomes
            if f.kind == "category"
        },
        **{f.name: past[f.name] for f in data.schema.item_features if f.kind == "category"},
        **{
            name: _raw(data.vocabs.conditions[name], events.conditions[name].numpy())
            for name in _categories(data)
        },
    }
    bounds = pa.array(np.concatenate([[0], lengths.cumsum()]))
    for name, values in columns_before.items():
        lists = pa.LargeListArray.from_arrays(bounds, values.take(pa.array(taken)))
        columns[f"last_{name}"] = lists.take(pa.array(which)) if negatives else lists
    return pa.table(columns)


def impression_schema(
    data: Interactions,
    *,
    negatives: int = 0,
    user_id: bool = False,
    max_length: int = 0,
    condition: str | None = None,
    crosses: bool = True,
) -> Schema:
    """The schema of the rows of :func:`impressions`.

    Args:
        negatives: as for the rows.
        user_id: whether the user is a feature: only where its rows are trained on.
        max_length: of the sequences.
        condition: the field knowledge is asked under, where rows have one.
        crosses: of the item with each condition and with the last items, for wide_deep.
    """
    shared = [f.name for f in data.schema.item_features if f.kind == "category"]
    conditions = _categories(data)
    features = [Feature("item"), *([Feature("user")] if user_id else [])]
    features += [Feature(name) for name in (*shared, *conditions)]
    features += [
        Feature(f.name, "categories") for f in data.schema.item_features if f.kind == "categories"
    ]
    numbers = [
        f.name for f in (*data.schema.conditions, *data.schema.item_features) if f.kind == "number"
    ]
    numbers += ["user_count", "user_rate", "item_count", "item_rate"]
    features += [Feature(name, "number") for name in numbers]
    for name in ("item", *shared, *conditions):
        features.append(Feature(f"last_{name}", "sequence", name, max_length))
    outcomes = [f.name for f in data.schema.outcomes if f.kind == "category"]
    for name in (*outcomes, *([] if negatives else ["label"])):
        features.append(Feature(f"last_{name}", "sequence", None, max_length))
    pairs: list[tuple[str, ...]] = []
    if crosses:
        pairs += [(name, "item") for name in conditions]
        pairs += [("last_item", "item"), *((f"last_{name}", name) for name in shared)]
    return Schema(tuple(features), condition=condition, crosses=tuple(pairs))


def before(owners: Ints, times: Ints, asked: Ints, moments: Ints) -> Ints:
    """``[Q]`` entries of each asked owner with a time less than its moment.

    Args:
        owners: ``[N]`` ascending; times: ``[N]`` ascending within an owner.
        asked: ``[Q]`` owners; moments: ``[Q]``.
    """
    distinct = np.unique(times)
    span = len(distinct) + 1
    keys = owners * span + np.searchsorted(distinct, times)
    found = np.searchsorted(keys, asked * span + np.searchsorted(distinct, moments))
    return found - np.searchsorted(keys, asked * span)


def as_of_sums(
    groups: Ints, times: Ints, values: Floats, asked: Ints, moments: Ints
) -> tuple[Ints, Floats]:
    """Number and sum of ``values`` of each asked group at times less than its moment.

    Args:
        groups, times, values: ``[N]``, in any order.
        asked, moments: ``[Q]``.
    """
    order = np.lexsort((times, groups))
    groups, times = groups[order], times[order]
    count = before(groups, times, asked, moments)
    sums = np.concatenate([[0.0], values[order].cumsum()])
    start = np.searchsorted(groups, asked)
    return count, sums[start + count] - sums[start]


def _tally(owner: Ints, known: Ints, outcome: Floats, offsets: Ints) -> tuple[Ints, Floats]:
    sums = np.concatenate([[0.0], outcome.cumsum()])
    start = offsets[:-1][owner]
    return known, sums[start + known] - sums[start]


def _last(starts: Ints, known: Ints, last: int) -> tuple[Ints, Ints]:
    """Events that each row remembers, one row after the other, and how many each has."""
    lengths = np.minimum(known, last)
    ends = lengths.cumsum()
    first = starts + known - lengths
    taken = np.arange(int(ends[-1]) if len(ends) else 0)
    return taken + np.repeat(first - (ends - lengths), lengths), lengths


def _gives_away(column: Ints, outcome: Floats) -> bool:
    """Whether each value goes with one label, of two that there are."""
    _, place = np.unique(column, return_inverse=True)
    rates = np.bincount(place, outcome) / np.bincount(place)
    told = bool(np.isin(rates, (0, 1)).all()) and bool(rates.min() < rates.max())
    # With about as many values as rows, each goes with one label by chance.
    return told and len(rates) <= len(column) // 2


def _shown(items: Ints, times: Ints) -> tuple[Ints, Ints]:
    """Items in the order in which they were first chosen, and when that was."""
    order = np.argsort(times, kind="stable")
    shown, first = np.unique(items[order], return_index=True)
    by_time = np.argsort(first)
    return shown[by_time], times[order][first[by_time]]


def _categories(data: Interactions) -> list[str]:
    return [f.name for f in data.schema.conditions if f.kind == "category"]


def _raw(vocab: Vocab, rows: Ints) -> pa.Array:
    """Raw ids of rows; null for what is unknown or ANY."""
    return vocab.ids.take(pa.array(rows - vocab.reserved, mask=rows < vocab.reserved))


def _item_features(data: Interactions, items: Ints) -> dict[str, pa.Array]:
    out: dict[str, pa.Array] = {}
    for f in data.schema.item_features:
        column = data.items.columns[f.name]
        if isinstance(column, Ragged):
            values = _raw(data.vocabs.features[f.name], column.values.numpy())
            lists = pa.LargeListArray.from_arrays(pa.array(column.offsets.numpy()), values)
            out[f.name] = lists.take(pa.array(items))
        elif f.kind == "category":
            out[f.name] = _raw(data.vocabs.features[f.name], column.numpy()[items])
        elif f.kind == "number":
            out[f.name] = pa.array(column.numpy()[items])
    return out
