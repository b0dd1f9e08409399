"""Wrong rows: each ends in an error that names it, or in what the docstrings promise."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from pylum.evaluate import compare, metrics
from pylum.rank import Feature, Ranker, Schema
from pylum.rank.settings import Settings
from tests.rank import worlds
from tests.rank.test_ranker import NAMES, SMALL, changed

ROWS = 120


def make(name="dlrm", known=None, **more):
    return Ranker(name, worlds.SCHEMA, known, **{**SMALL, "epochs": 1, **more})


def with_columns(rows, **columns):
    for name, values in columns.items():
        rows = changed(rows, name, values)
    return rows


def a_column_twice(name):
    rows = worlds.rows(ROWS)
    return pa.Table.from_arrays([*rows.columns, rows[name]], names=[*rows.column_names, name])


def two_item_columns():
    frame = worlds.rows(ROWS).to_pandas()
    return pd.concat([frame, frame[["item"]]], axis=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "columns",
    [
        pytest.param({"price": [np.nan] * ROWS, "age": pa.nulls(ROWS)}, id="no-numbers"),
        pytest.param({"price": [np.inf, -np.inf] * (ROWS // 2)}, id="infinite"),
        pytest.param({"price": [1e300] * ROWS, "age": [2**62 + i for i in range(ROWS)]}, id="huge"),
        pytest.param({"brand": [2**63 - 1 - i % 5 for i in range(ROWS)]}, id="huge-ids"),
        pytest.param({"item": pa.nulls(ROWS), "brand": pa.nulls(ROWS)}, id="null-ids"),
        pytest.param({"item": [f"i{i}" for i in range(ROWS)]}, id="all-rare"),
        pytest.param(
            {n: [[]] * ROWS for n in ("tags", "last_item", "last_brand", "last_liked")},
            id="empty-lists",
        ),
        pytest.param({"tags": [None, [None, "a"]] * (ROWS // 2)}, id="null-lists"),
        pytest.param({"label": [True, False] * (ROWS // 2)}, id="boolean-label"),
    ],
)
def test_odd_rows_are_learned_from(name, columns):
    rows = with_columns(worlds.rows(ROWS), **columns)
    ranker = make(name).fit(rows)
    found = ranker.predict(rows)
    assert found.shape == (ROWS,) and bool(((found > 0) & (found < 1)).all())


def test_decimals_and_dictionaries_are_numbers_and_categories():
    rows = worlds.rows(ROWS)
    cents = pa.array((rows["price"].to_numpy() * 100).astype(np.int64))
    ranker = make().fit(changed(rows, "price", cents))
    exact = cents.cast(pa.decimal128(21, 2))
    assert np.array_equal(
        ranker.predict(changed(rows, "price", exact)), ranker.predict(changed(rows, "price", cents))
    )
    coded = changed(rows, "item", rows["item"].combine_chunks().dictionary_encode())
    assert np.array_equal(make().fit(coded).predict(coded), make().fit(rows).predict(rows))


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        pytest.param(None, TypeError, "rows must be an Arrow or pandas table", id="none"),
        pytest.param({}, ValueError, r"lack the columns item, .* they have none", id="no-column"),
        pytest.param("no-such.parquet", ValueError, "must be a Parquet file or", id="no-file"),
        pytest.param(a_column_twice("item"), ValueError, "'item' stands twice", id="twice"),
        pytest.param(two_item_columns(), ValueError, "twice, got item", id="pandas-twice"),
        pytest.param(
            worlds.rows(ROWS).to_pandas().iloc[:0], ValueError, "at least one, got none", id="empty"
        ),
        pytest.param({"label": [0.5, 1.0]}, ValueError, r"0 or 1, got \[0.5\]", id="half"),
        pytest.param({"label": [-1, 1]}, ValueError, r"0 or 1, got \[-1.0\]", id="signs"),
        pytest.param({"label": [np.nan, 1.0]}, ValueError, r"0 or 1, got \[nan\]", id="nan-label"),
        pytest.param({"label": [0, 0]}, ValueError, "both 0 and 1, got 0 in all", id="one-class"),
        pytest.param({"brand": [1.0, 2.0]}, TypeError, "brand must hold strings", id="float-ids"),
        pytest.param(
            {"brand": pa.array([2**64 - 1, 1] * (ROWS // 2), pa.uint64())},
            ValueError,
            "brand must fit int64",
            id="beyond-int64",
        ),
        pytest.param(
            {"last_item": [[1], [2]]}, TypeError, "that share 'item' must be of one type", id="type"
        ),
        pytest.param({"last_item": [[["a"]]]}, TypeError, "last_item must hold", id="nested"),
    ],
)
def test_wrong_rows_are_named(rows, error, message):
    if isinstance(rows, dict) and rows:
        ((name, values),) = rows.items()
        if isinstance(values, list):
            values = values * (ROWS // len(values))
        rows = changed(worlds.rows(ROWS), name, values)
    with pytest.raises(error, match=message):
        make().fit(rows)


def test_what_came_after_training_is_checked_too():
    rows = worlds.rows(ROWS)
    ranker = make().fit(rows)
    for columns, message in (
        ({"brand": ["a"] * ROWS}, "brand must be integers, got strings"),
        ({"item": [1] * ROWS}, "item must be strings, got integers"),
    ):
        with pytest.raises(TypeError, match=message):
            ranker.predict(with_columns(rows, **columns))
        with pytest.raises(TypeError, match=message):
            make(epochs=0).fit(
                with_columns(rows, **columns, last_brand=rows["last_brand"]), init=ranker
            )
    with pytest.raises(ValueError, match="valid must be at least one, got none"):
        make().fit(rows, valid=rows.slice(0, 0))
    with pytest.raises(ValueError, match="rows lack the columns price"):
        make().fit(rows, valid=rows.drop_columns(["price"]))
    # A validation part of one class has a log loss, if no AUC.
    one = changed(rows, "label", [1] * ROWS)
    assert np.isfinite(make().fit(rows, valid=one).history[0]["valid"])
    with pytest.raises(ValueError, match="must hold both 0 and 1 for an AUC, got 1"):
        compare(np.ones(ROWS), rows["user"].to_pylist(), {"dlrm": ranker.predict(one)})
    assert np.isnan(metrics.auc(np.ones(ROWS), ranker.predict(one)))
    with pytest.raises(ValueError, match="batch_rows must be at least 1, got 0"):
        ranker.predict(rows, batch_rows=0)
    assert ranker.predict({name: [] for name in rows.column_names}).shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_rows_out_of_order_are_the_same_rows(name):
    known = worlds.knowledge()
    rows = worlds.known_rows(known, ROWS)
    ranker = make(name, known).fit(rows)
    order = np.random.default_rng(0).permutation(ROWS)
    found = ranker.predict(rows.take(pa.array(order)))
    np.testing.assert_allclose(found, ranker.predict(rows)[order], atol=1e-6)


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        pytest.param({"time": [None, 1000]}, ValueError, "time must not hold nulls", id="null"),
        pytest.param({"time": [np.nan, 1.0]}, ValueError, "must be finite", id="nan"),
        pytest.param({"time": ["a", "b"]}, TypeError, "seconds or a timestamp", id="string"),
        pytest.param({"time": [1.7e12, 1.7e12]}, ValueError, "divide milliseconds", id="millis"),
        pytest.param({"user": [1, 2]}, TypeError, "users must be strings, got integers", id="user"),
    ],
)
def test_rows_that_cannot_be_joined(columns, error, message):
    ((name, values),) = columns.items()
    known = worlds.knowledge()
    rows = changed(worlds.known_rows(known, ROWS), name, values * (ROWS // 2))
    with pytest.raises(error, match=message):
        make(known=known).fit(rows)


def test_knowledge_without_numbers_is_missing():
    """NaN, as a cache serves for what it lacks, never reaches a ranker."""
    known = worlds.knowledge()
    rows = worlds.known_rows(known, 400)
    ranker = make(known=known).fit(rows)
    items = known.item_vectors.clone()
    items[3] = torch.nan
    holes = replace(known, item_vectors=items)
    assert np.isfinite(make(known=holes).fit(rows).predict(rows)).all()
    gone = replace(
        known, items=[*known.items[:3], *known.items[4:]], item_vectors=items[torch.arange(28) != 3]
    )
    assert np.array_equal(
        ranker.predict(rows, knowledge=holes), ranker.predict(rows, knowledge=gone)
    )
    with pytest.raises(ValueError, match="must know a user and item of some row"):
        make(known=replace(known, item_vectors=items * torch.nan)).fit(rows)
    # A null user is nobody: the same as one that is not known.
    nobody = changed(rows, "user", pa.nulls(400, pa.string()))
    stranger = changed(rows, "user", ["stranger"] * 400)
    assert np.array_equal(ranker.predict(nobody), ranker.predict(stranger))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"dim": 0}, "dim must be an integer of at least 1, got 0", id="zero"),
        pytest.param({"dim": 8.5}, "dim must be an integer of at least 1, got 8.5", id="float"),
        pytest.param({"seed": True}, "seed must be an integer of at least 0, got True", id="bool"),
        pytest.param({"lr": 0}, r"lr must be a number in \(0, inf\), got 0", id="lr"),
        pytest.param({"lr": float("nan")}, "got nan", id="nan"),
        pytest.param({"dropout": 1}, r"dropout must be a number in \[0, 1\), got 1", id="dropout"),
        pytest.param({"weight_decay": -1}, r"\[0, inf\), got -1", id="negative"),
        pytest.param({"hidden": 8}, "hidden must be positive widths, got 8", id="no-list"),
        pytest.param({"hidden": ()}, "hidden must hold at least one width", id="no-layer"),
        pytest.param({"bottom": (4, 0)}, r"positive widths, got \(4, 0\)", id="width"),
    ],
)
def test_settings_out_of_range(given, message):
    with pytest.raises(ValueError, match=message):
        Settings(**given)


def test_settings_of_numpy_are_plain():
    found = Settings(dim=np.int64(8), lr=np.float32(0.5), hidden=[4], epochs=0)
    assert (found.dim, found.lr, found.hidden) == (8, 0.5, (4,))
    assert type(found.dim) is int and type(found.lr) is float


def test_what_diverges_says_so():
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1: lower lr"):
        make(lr=1e30, epochs=3).fit(worlds.rows(ROWS))


def test_a_schema_of_one_feature_works():
    rows = {"item": ["a", "b"] * 40, "label": [0, 1] * 40}
    schema = Schema((Feature("item"),))
    found = Ranker("wide_deep", schema, epochs=5).fit(rows).predict(rows)
    assert found[1] > found[0]
