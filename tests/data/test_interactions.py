"""Interactions: sources agree, order is stable, ids come back, bad input is named."""

import datetime as dt
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pylum.data import ANY, Field, Interactions, Vocab, Vocabs, reading, spool


def frame(n=1000, users=40, items=60, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "uid": [f"u{i}" for i in rng.integers(0, users, n)],
            "iid": rng.integers(100, 100 + items, n),
            "ts": rng.integers(1_600_000_000, 1_600_000_500, n),
            "scene": rng.choice(["search", "home", None], n),
            "budget": np.where(rng.random(n) < 0.2, np.nan, rng.random(n)),
            "query": list(rng.random((n, 3)).astype(np.float32)),
            "rating": rng.integers(1, 6, n),
            "good": rng.random(n) < 0.5,
        }
    )


NAMES = {"user": "uid", "item": "iid", "time": "ts", "target": "good"}
FIELDS = {"condition": ["scene", "budget", "query"], "event": Field("rating", "number")}


def same(a, b):
    left, right = a.events, b.events
    assert a.users == b.users
    assert a.schema == b.schema
    assert a.vocabs.fingerprint() == b.vocabs.fingerprint()
    pairs = [
        (left.offsets, right.offsets),
        (left.items, right.items),
        (left.times, right.times),
        (left.targets, right.targets),
        *((left.conditions[n], right.conditions[n]) for n in left.conditions),
        *((left.outcomes[n], right.outcomes[n]) for n in left.outcomes),
    ]
    for mine, theirs in pairs:
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


def test_order_and_values_against_pandas():
    df = frame()
    data = Interactions.from_pandas(df, **NAMES, **FIELDS)
    df["user_order"] = df.groupby("uid", sort=False).ngroup()
    df = df.sort_values(["user_order", "ts"], kind="stable")
    assert data.users == df.uid.drop_duplicates().tolist()
    assert data.vocabs.items.values(data.events.items) == df.iid.tolist()
    assert data.events.times.tolist() == df.ts.tolist()
    scenes = data.vocabs.conditions["scene"].values(data.events.conditions["scene"])
    assert scenes == [ANY if v is None or v != v else v for v in df.scene]
    budget = df.budget.to_numpy().astype(np.float32)
    np.testing.assert_array_equal(data.events.conditions["budget"].numpy(), budget)
    np.testing.assert_array_equal(data.events.conditions["query"].numpy(), np.stack(df["query"]))
    assert data.events.outcomes["rating"].tolist() == df.rating.tolist()
    assert data.events.targets.tolist() == df.good.tolist()
    assert data.num_targets == df.good.sum()
    counts = df.groupby("uid").size()
    assert data.events.lengths.tolist() == [counts[u] for u in data.users]
    assert data.repeat_share == pytest.approx(df.duplicated(["uid", "iid"]).mean())


def test_sources_agree(tmp_path):
    df = frame()
    table = pa.Table.from_pandas(df, preserve_index=False)
    expected = Interactions.from_pandas(df, **NAMES, **FIELDS)
    same(Interactions.from_arrow(table, **NAMES, **FIELDS), expected)
    batches = table.to_batches(max_chunksize=77)
    same(Interactions.from_arrow(iter(batches), **NAMES, **FIELDS), expected)
    pq.write_table(table, tmp_path / "all.parquet", row_group_size=300)
    same(Interactions.from_parquet(tmp_path / "all.parquet", **NAMES, **FIELDS), expected)
    parts = tmp_path / "parts"
    parts.mkdir()
    for number, start in enumerate(range(0, len(df), 301)):
        pq.write_table(table.slice(start, 301), parts / f"{number:02}.parquet")
    pq.write_table(table, parts / "_ignored.parquet")
    same(Interactions.from_parquet(parts, **NAMES, **FIELDS), expected)
    arrays = Interactions.from_arrays(
        df.uid.tolist(),
        torch.tensor(df.iid.to_numpy()),
        df.ts.to_numpy(),
        condition={
            "scene": pd.Categorical(df.scene),
            "budget": df.budget,
            "query": np.stack(df["query"]),
        },
        event={Field("rating", "number"): df.rating},
        target=df.good,
    )
    same(arrays, expected)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 400), st.sampled_from([3, 16, 1000]))
def test_spilled_equals_in_memory(seed, n, block):
    df = frame(n, users=9, seed=seed)
    table = pa.Table.from_pandas(df, preserve_index=False)
    expected = Interactions.from_arrow(table, **NAMES, **FIELDS)
    old, spool.BLOCK = spool.BLOCK, block
    try:
        spilled = Interactions.from_arrow(
            iter(table.to_batches(max_chunksize=37)), **NAMES, **FIELDS, memory_limit=0
        )
    finally:
        spool.BLOCK = old
    assert spilled.on_disk
    assert not expected.on_disk
    same(spilled, expected)


# Counts what Arrow allocates; arrays made from it must not outlive it.
POOL = pa.proxy_memory_pool(pa.default_memory_pool())


def test_parquet_memory_is_bounded_by_batches(tmp_path, monkeypatch):
    rows, group = 600_000, 20_000
    schema = pa.schema([("user", "i8"), ("item", "i8"), ("time", "i8"), ("scene", "string")])
    schema = pa.schema([(f.name, pa.int64() if i < 3 else f.type) for i, f in enumerate(schema)])
    rng = np.random.default_rng(0)
    path = tmp_path / "large.parquet"
    with pq.ParquetWriter(path, schema) as writer:
        for _ in range(rows // group):
            columns = [rng.integers(0, high, group) for high in (5000, 3000, 10**9)]
            scene = rng.choice(["search", "home"], group)
            writer.write_table(pa.table([*columns, scene], schema=schema))
    monkeypatch.setattr(spool, "BLOCK", 1 << 14)
    monkeypatch.setattr(reading, "BATCH_ROWS", 1 << 14)
    before, pool = pa.default_memory_pool(), POOL
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        data = Interactions.from_parquet(
            path, user="user", item="item", time="time", condition="scene", memory_limit=1 << 20
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    coded = sum(
        column.nbytes
        for column in (data.events.items, data.events.times, data.events.conditions["scene"])
    )
    assert coded > 13 << 20
    assert peak + pool.max_memory() < 6 << 20
    assert data.events.total == rows
    assert (data.events.times.diff() >= 0).sum() >= rows - 1 - len(data)


def test_times():
    day = dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc)
    second = int(day.timestamp())
    for times in (
        [second + 1, second],
        [second + 1.9, second + 0.2],
        pd.to_datetime([second + 1, second], unit="s"),
        pd.to_datetime([second + 1, second], unit="s", utc=True),
        [day + dt.timedelta(seconds=1), day],
        pa.array([second * 1000 + 1000, second * 1000], pa.timestamp("ms")),
    ):
        data = Interactions.from_arrays(["u", "u"], ["a", "b"], times)
        assert data.events.times.tolist() == [second, second + 1]
    dates = Interactions.from_arrays(["u", "u"], ["a", "b"], [day.date(), dt.date(1969, 12, 31)])
    assert dates.events.times.tolist() == [-86400, second]
    # Fractions order events of one second; equal times stay in the order of the rows.
    fine = Interactions.from_arrays(["u"] * 4, ["a", "b", "c", "d"], [7.9, 7.1, 7.1, 7.0])
    assert fine.vocabs.items.values(fine.events.items) == ["d", "b", "c", "a"]
    assert fine.events.times.tolist() == [7] * 4


def test_no_condition_and_nulls():
    data = Interactions.from_arrays([1, 2], [5, 6], [0, 0])
    assert data.schema.conditions == ()
    assert data.events.conditions == {}
    assert data.events.targets is None
    one = Interactions.from_arrays(
        [1, 2], [5, 6], [0, 0], condition=["x", ANY], event=["bought", None]
    )
    assert one.events.conditions["condition"].tolist() == [2, 1]
    assert one.events.outcomes["event"].tolist() == [1, 0]


def test_given_vocabularies_are_copied_and_kept():
    vocabs = Vocabs(Vocab(["a", "b"], kind="fixed"), {"scene": Vocab(["s"], any=True)})
    data = Interactions.from_arrays(
        ["u"] * 3, ["b", "new", "newer"], [1, 2, 3], {"scene": ["s", "t", None]}, vocabs=vocabs
    )
    assert data.events.items.tolist() == [2, 0, 0]
    assert data.events.conditions["scene"].tolist() == [2, 3, 1]
    assert len(vocabs.conditions["scene"]) == 3
    # Unknown items keep what tells events apart.
    plain = Interactions.from_arrays(["u"] * 3, ["b", "new", "newer"], [1, 2, 3])
    hashed = Interactions.from_arrays(
        ["u"] * 3,
        ["b", "new", "newer"],
        [1, 2, 3],
        vocabs=Vocabs(Vocab(kind="hashed", buckets=2)),
    )
    for other in (data, hashed):
        assert np.array_equal(other.event_hashes(), plain.event_hashes())
        for mine, theirs in zip(other.split("loo-full"), plain.split("loo-full"), strict=True):
            assert np.array_equal(mine.event_hashes(), theirs.event_hashes())


GOOD = {"user": ["u", "v"], "item": [1, 2], "time": [3, 4], "scene": ["a", "b"], "like": [1.0, 0.0]}


@pytest.mark.parametrize(
    ("change", "options", "error", "match"),
    [
        pytest.param({}, {"user": "uid"}, ValueError, "'uid' is not a column.*user.*item", id="a"),
        pytest.param({}, {"condition": "x"}, ValueError, "'x' is not a column", id="b"),
        pytest.param({}, {"condition": 3}, TypeError, "condition must be", id="c"),
        pytest.param({}, {"time": 3}, ValueError, "3 is not a column", id="d"),
        pytest.param({}, {"condition": "item"}, ValueError, "not reserved, got .*item", id="e"),
        pytest.param({}, {"condition": "scene", "event": "scene"}, ValueError, "unique", id="f"),
        pytest.param({}, {"target": "like"}, TypeError, "booleans, got double", id="g"),
        pytest.param(
            {}, {"condition": Field("like")}, TypeError, "condition: 'like'.*double", id="h"
        ),
        pytest.param({}, {"event": Field("scene", "number")}, TypeError, "must be numbers", id="i"),
        pytest.param(
            {}, {"event": Field("scene", "vector", 2)}, TypeError, "lists of 2 numbers", id="j"
        ),
        pytest.param({"user": ["u", None]}, {}, ValueError, "user: 'user'.*1 of 2", id="k"),
        pytest.param({"item": [1, np.nan]}, {}, ValueError, "item: 'item'.*1 of 2", id="l"),
        pytest.param({"item": [1.0, 2.0]}, {}, TypeError, "strings or integers", id="m"),
        pytest.param({"time": [1.0, np.nan]}, {}, ValueError, "time: 'time'.*nulls", id="n"),
        pytest.param({"time": [1.0, np.inf]}, {}, ValueError, "finite, got 1 of 2", id="o"),
        pytest.param({"time": ["1", "2"]}, {}, TypeError, "seconds or a timestamp", id="p"),
        pytest.param({"time": [1763760000000, 1]}, {}, ValueError, "divide milliseconds", id="q"),
        pytest.param({"user": ["u", 1]}, {}, TypeError, "one type", id="r"),
        pytest.param({"user": ["u"]}, {}, ValueError, "columns of one length", id="s"),
        pytest.param({k: [] for k in GOOD}, {}, ValueError, "at least one behaviour", id="t"),
        pytest.param(
            {"like": [[1.0], [1.0, 2.0]]}, {"condition": "like"}, ValueError, "one of 2", id="u"
        ),
        pytest.param(
            {"like": [["x"], ["y"]]},
            {"condition": "like"},
            ValueError,
            "only item features",
            id="v",
        ),
    ],
)
def test_bad_input_is_named(change, options, error, match):
    names = {"user": "user", "item": "item", "time": "time"} | options
    columns = GOOD | change
    if change and not options and change.keys() != GOOD.keys():
        columns = {k: columns[k] for k in columns if k in change or k in ("user", "item", "time")}
    with pytest.raises(error, match=match):
        Interactions.from_pandas(columns, **names)


def test_bad_tables(tmp_path):
    names = {"user": "user", "item": "item", "time": "time"}
    twice = pd.DataFrame([["u", 1, 2, 3]], columns=["user", "item", "time", "time"])
    with pytest.raises(ValueError, match="column twice, got time"):
        Interactions.from_pandas(twice)
    with pytest.raises(ValueError, match="one use, got more for iid"):
        Interactions.from_pandas(frame(), **NAMES, condition="iid")
    with pytest.raises(ValueError, match="stands twice"):
        Interactions.from_arrow(pa.table([["u"], [1], [2], [3]], ["user", "item", "time", "time"]))
    with pytest.raises(ValueError, match="no batch"):
        Interactions.from_arrow(iter([]))
    with pytest.raises(TypeError, match="record batches, got 1"):
        Interactions.from_arrow([1])
    with pytest.raises(TypeError, match="Arrow or pandas table"):
        Interactions.from_pandas(7)
    with pytest.raises(ValueError, match="Parquet file or a directory"):
        Interactions.from_parquet(tmp_path / "absent.parquet", **names)
    with pytest.raises(ValueError, match="got none in"):
        Interactions.from_parquet(tmp_path, **names)
    pq.write_table(pa.table({"user": ["u"], "item": [1], "time": [2]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"user": ["u"], "item": [1]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: 'time' is not a column"):
        Interactions.from_parquet(tmp_path, **names)
    pq.write_table(pa.table({"user": ["u"], "item": ["x"], "time": [2]}), tmp_path / "b.parquet")
    with pytest.raises(TypeError, match="item: 'item' must be integers, got strings"):
        Interactions.from_parquet(tmp_path, **names)
    with pytest.raises(ValueError, match="twice, got 'time'"):
        Interactions.from_arrays(["u"], [1], [2], {"time": [3]})
