"""Rows and what they remember: against a loop, and nothing of the present or future in them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pylum.data import Interactions, Synthetic
from pylum.rank import impression_schema, impressions
from pylum.rank.as_of import PRIOR


def data_of(seed, events=60, span=12):
    random = np.random.default_rng(seed)
    user = random.integers(0, 5, events)
    item = random.integers(0, 7, events)
    liked = random.random(events) < 0.5
    return Interactions.from_arrays(
        [f"u{u}" for u in user],
        [f"i{i}" for i in item],
        random.integers(0, span, events),
        condition={"scene": random.choice(["a", "b"], events).tolist()},
        event={"liked": liked.tolist()},
        items={
            "item": [f"i{i}" for i in range(7)],
            "genre": [f"g{i % 2}" for i in range(7)],
            "tags": [["x"] * (i % 3) for i in range(7)],
            "year": [float(i) for i in range(7)],
        },
    )


def liked_of(data):
    return data.events.outcomes["liked"].numpy() == data.vocabs.outcomes["liked"].rows([True])[0]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.sampled_from(["row", "time"]), st.integers(0, 3), st.integers(1, 5))
def test_against_a_loop(seed, order, delay, last):
    delay = delay if order == "time" else 0
    data = data_of(seed)
    liked = liked_of(data)
    rows = impressions(data, liked, last=last, order=order, delay=delay).to_pylist()
    offsets = data.events.offsets.tolist()
    owner = np.repeat(np.arange(len(data)), np.diff(offsets))
    times = data.events.times.numpy()
    items = data.vocabs.items.values(data.events.items)
    scenes = data.vocabs.conditions["scene"].values(data.events.conditions["scene"])
    for e, row in enumerate(rows):
        assert (row["event"], row["item"], row["scene"]) == (e, items[e], scenes[e])
        assert (row["user"], row["time"]) == (data.users[owner[e]], times[e])
        assert row["label"] == liked[e]
        mine = [
            x
            for x in range(offsets[owner[e]], offsets[owner[e] + 1])
            if (x < e if order == "row" else times[x] < times[e] - delay)
        ]
        assert row["last_item"] == [items[x] for x in mine[-last:]]
        assert row["last_label"] == [int(liked[x]) for x in mine[-last:]]
        assert row["last_liked"] == [bool(liked[x]) for x in mine[-last:]]
        assert row["last_scene"] == [scenes[x] for x in mine[-last:]]
        assert row["last_genre"] == [f"g{int(items[x][1]) % 2}" for x in mine[-last:]]
        past = [x for x in range(len(rows)) if times[x] < times[e] - delay]
        overall = (sum(liked[x] for x in past) + PRIOR / 2) / (len(past) + PRIOR)
        same = [x for x in past if items[x] == items[e]]
        for name, known in (("user", mine), ("item", same)):
            assert row[f"{name}_count"] == len(known)
            rate = (sum(liked[x] for x in known) + PRIOR * overall) / (len(known) + PRIOR)
            assert row[f"{name}_rate"] == pytest.approx(rate)
        number = int(items[e][1])
        assert (row["genre"], row["tags"]) == (f"g{number % 2}", ["x"] * (number % 3))
        assert row["year"] == number


@pytest.mark.parametrize("order", ["row", "time"])
def test_nothing_of_the_present_or_future_is_remembered(order):
    data = data_of(1, events=80)
    liked = liked_of(data)
    before = impressions(data, liked, order=order).to_pylist()
    times = data.events.times.numpy()
    remembered = [n for n in before[0] if n.startswith("last_") or n.endswith(("_count", "_rate"))]
    for e in range(0, len(before), 7):
        # The outcome of this event and of all later ones, and the items of the later ones.
        later = (times > times[e]) | (np.arange(len(times)) == e)
        other = np.where(later, ~liked, liked)
        items = data.events.items.clone()
        changed = torch.from_numpy(times > times[e])
        items[changed] = 1 + items[changed] % 7
        events = data.events
        outcomes = {"liked": torch.from_numpy(np.where(other, 2, 1))}
        if data.vocabs.outcomes["liked"].rows([True])[0] == 1:
            outcomes = {"liked": torch.from_numpy(np.where(other, 1, 2))}
        changed_data = replaced(data, replaced(events, items=items, outcomes=outcomes), "events")
        after = impressions(changed_data, other, order=order).to_pylist()
        assert [before[e][n] for n in remembered] == [after[e][n] for n in remembered]
        # What the row's own item is moves only what is known of that item.
        items = data.events.items.clone()
        items[e] = 1 + items[e] % 7
        one = replaced(data, replaced(events, items=items), "events")
        row = impressions(one, liked, order=order).to_pylist()[e]
        kept = [n for n in remembered if not n.startswith("item_")]
        assert [before[e][n] for n in kept] == [row[n] for n in kept]


def replaced(of, value=None, name=None, **changes):
    from dataclasses import replace

    return replace(of, **({name: value} if name else changes))


def test_negatives_are_known_items_and_never_remembered():
    data = Synthetic(users=40).interactions()
    labels = np.ones(data.events.total, bool)
    rows = impressions(data, labels, order="time", negatives=2, seed=3)
    assert len(rows) == 3 * data.events.total
    assert rows["label"].to_pylist()[:6] == [1, 0, 0, 1, 0, 0]
    first = {}
    items = data.vocabs.items.values(data.events.items)
    for item, time in zip(items, data.events.times.tolist(), strict=True):
        first[item] = min(time, first.get(item, time))
    for row in rows.to_pylist()[:3000]:
        assert first[row["item"]] <= row["time"]
    alone = impressions(data, labels, order="time")
    assert rows["last_item"].to_pylist()[::3] == alone["last_item"].to_pylist()
    assert rows["user_count"].to_pylist()[1::3] == alone["user_count"].to_pylist()
    again = impressions(data, labels, order="time", negatives=2, seed=3)
    assert again.equals(rows)
    assert not impressions(data, labels, order="time", negatives=2, seed=4).equals(rows)
    schema = impression_schema(data, negatives=2)
    assert {f.name for f in schema.features} <= set(rows.column_names)
    assert "last_label" not in rows.column_names


def test_errors():
    data = data_of(0)
    liked = liked_of(data)
    with pytest.raises(ValueError, match=r"labels must be \[60\], got \[3\]"):
        impressions(data, [1, 0, 1])
    with pytest.raises(ValueError, match="delay for 'time'"):
        impressions(data, liked, delay=3)
    with pytest.raises(ValueError, match="order must be"):
        impressions(data, liked, order="random")
    with pytest.raises(ValueError, match="data must be whole"):
        impressions(data.split("loo-full")[0], liked)
    told = Interactions.from_arrays(
        ["u"] * 6, list("abcabc"), range(6), condition={"liked": [True, False] * 3}
    )
    with pytest.raises(ValueError, match="known from the condition 'liked' alone"):
        impressions(told, [True, False] * 3)
