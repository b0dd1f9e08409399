"""Histories: from data and from dicts, recoded into a model's rows."""

import datetime as dt

import numpy as np
import pytest
import torch

from pylum.data import ANY, Field, Histories, Interactions, Schema, Vocab, Vocabs

SCHEMA = Schema((Field("scene"), Field("query", "vector", 2)), (Field("rating", "number"),))


def model_vocabs():
    return Vocabs(Vocab(["i1", "i2", "i3"]), {"scene": Vocab(["search", "home"], any=True)})


def test_from_dicts_sorts_late_events_and_fills_what_is_missing():
    histories = Histories.from_dicts(
        {
            "u1": [
                {"item": "i3", "time": 50, "scene": "home", "rating": 4},
                {"item": "i1", "time": 10, "scene": "other", "query": [1.0, 2.0]},
                {"item": "i9", "time": 50},
                {"item": "i2", "time": 20, "scene": None},
            ],
            "u2": [],
            "u3": [{"item": "i2", "time": 5, "scene": ANY}],
        },
        SCHEMA,
        model_vocabs(),
    )
    events = histories.encode(model_vocabs())
    assert histories.users == ["u1", "u2", "u3"]
    assert events.offsets.tolist() == [0, 4, 4, 5]
    assert events.items.tolist() == [1, 2, 3, 0, 2]
    assert events.times.tolist() == [10, 20, 50, 50, 5]
    assert events.conditions["scene"].tolist() == [0, 1, 3, 1, 1]
    assert events.conditions["query"][0].tolist() == [1, 2]
    assert events.conditions["query"][1:].isnan().all()
    assert events.outcomes["rating"][2] == 4
    assert events.outcomes["rating"][[0, 1, 3, 4]].isnan().all()
    assert histories.unknown(model_vocabs()).tolist() == [1, 0, 0]


def test_unknown_items():
    events = [{"item": i, "time": t} for t, i in enumerate(["i9", "i1", "i8", "i2"])]
    histories = Histories.from_dicts({"u": events, "v": events[:1], "w": events[3:]}, Schema())
    vocabs = Vocabs(Vocab(["i1", "i2"]))
    kept = histories.encode(vocabs)
    assert kept.items.tolist() == [0, 1, 0, 2, 0, 2]
    dropped = histories.encode(vocabs, on_unknown="drop")
    assert dropped.items.tolist() == [1, 2, 2]
    assert dropped.times.tolist() == [1, 3, 3]
    assert dropped.offsets.tolist() == [0, 2, 2, 3]
    with pytest.raises(ValueError, match="3 unknown, the first 'i9' of user 'u'"):
        histories.encode(vocabs, on_unknown="raise")
    with pytest.raises(ValueError, match="on_unknown must be"):
        histories.encode(vocabs, on_unknown="skip")
    assert histories.unknown(vocabs).tolist() == [2, 1, 0]
    assert len(vocabs.items) == 3


def test_data_and_dicts_give_the_same_events():
    rng = np.random.default_rng(0)
    n = 300
    users, items = rng.integers(0, 9, n), rng.integers(0, 50, n)
    times, scenes = rng.integers(0, 99, n), rng.choice(["home", "search", "x"], n)
    data = Interactions.from_arrays(users, items, times, {"scene": scenes})
    dicts = {}
    for row in zip(users.tolist(), items.tolist(), times.tolist(), scenes.tolist(), strict=True):
        dicts.setdefault(row[0], []).append(
            dict(zip(("item", "time", "scene"), row[1:], strict=True))
        )
    vocabs = Vocabs(Vocab(rng.permutation(40)), {"scene": Vocab(["search", "home"], any=True)})
    wanted = [5, 3, 77, 5]
    mine = data.histories(wanted)
    theirs = Histories.from_dicts(dicts, data.schema)
    assert mine.users == wanted
    assert mine.events.lengths[2] == 0
    whole = theirs.encode(vocabs)
    for some in (
        mine.encode(vocabs),
        data.histories([3] * 40 + wanted).encode(vocabs).users(torch.arange(40, 44)),
    ):
        for place, user in enumerate(wanted):
            if user == 77:
                continue
            row = list(dicts).index(user)
            a, b = some.users(torch.tensor([place])), whole.users(torch.tensor([row]))
            assert torch.equal(a.items, b.items)
            assert torch.equal(a.times, b.times)
            assert torch.equal(a.conditions["scene"], b.conditions["scene"])
    assert data.histories().users == data.users
    assert torch.equal(data.histories().encode(data.vocabs).items, data.events.items)


def test_fields_follow_the_model():
    data = Interactions.from_arrays(
        ["u"], ["i1"], [3], {"scene": ["home"], "extra": ["x"]}, {"rating": [2.0]}
    )
    events = data.histories().encode(model_vocabs(), SCHEMA)
    assert list(events.conditions) == ["scene", "query"]
    assert events.conditions["scene"].tolist() == [3]
    assert events.conditions["query"].isnan().all()
    assert events.outcomes["rating"].tolist() == [2]
    number = Schema((Field("scene", "number"),))
    with pytest.raises(ValueError, match="field 'scene' must be"):
        data.histories().encode(model_vocabs(), number)


def test_hashed_items_need_no_recoding_and_allow_none():
    hashed = Vocabs(Vocab(kind="hashed", buckets=50))
    data = Interactions.from_arrays(["u"] * 9, list("abcdefghi"), range(9), vocabs=hashed)
    assert torch.equal(data.histories().encode(hashed).items, data.events.items)
    plain = Histories.from_dicts(
        {"u": [{"item": i, "time": t} for t, i in enumerate("abcdefghi")]}, Schema()
    )
    assert torch.equal(plain.encode(hashed).items, data.events.items)
    with pytest.raises(ValueError, match="no ids to recode"):
        data.histories().encode(Vocabs(Vocab(["a"])))


def test_datetimes():
    day = dt.datetime(2025, 1, 1)
    histories = Histories.from_dicts({1: [{"item": 5, "time": day}]}, Schema())
    assert histories.events.times.tolist() == [1735689600]


@pytest.mark.parametrize(
    ("event", "error", "match"),
    [
        pytest.param(
            {"item": "a"}, ValueError, r"histories\['u'\]\[0\] must have an item", id="time"
        ),
        pytest.param({"time": 1}, ValueError, "an item and a time", id="item"),
        pytest.param({"item": "a", "time": None}, ValueError, "an item and a time", id="none"),
        pytest.param({"item": "a", "time": 1, "sceen": "x"}, ValueError, "got also", id="typo"),
        pytest.param({"item": float("nan"), "time": 1}, ValueError, "got NaN", id="nan"),
        pytest.param(7, TypeError, "must be a dict, got 7", id="no-dict"),
        pytest.param({"item": 7, "time": 1}, TypeError, "item must be strings", id="type"),
        pytest.param({"item": "a", "time": "now"}, TypeError, "seconds or a timestamp", id="text"),
        pytest.param(
            {"item": "a", "time": 1, "query": [1.0]}, ValueError, "lists of 2 numbers", id="width"
        ),
        pytest.param(
            {"item": "a", "time": 1, "rating": "x"}, TypeError, "rating.*numbers", id="number"
        ),
    ],
)
def test_bad_dicts(event, error, match):
    with pytest.raises(error, match=match):
        Histories.from_dicts({"u": [event]}, SCHEMA, model_vocabs())


def test_wrong_histories():
    with pytest.raises(TypeError, match="dict by user"):
        Histories.from_dicts([{"item": 1}], SCHEMA)
    data = Interactions.from_arrays(["u"], [1], [1])
    with pytest.raises(TypeError, match="users must be strings, got integers"):
        data.histories([3])
    with pytest.raises(ValueError, match="users must be 1 ids"):
        Histories(["a", "b"], data.events, data.schema, data.vocabs)
