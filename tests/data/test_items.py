"""Item tables: features by row of the vocabulary."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pylum.data import Field, Interactions, ItemTable, Vocab, Vocabs

TABLE = {
    "item": ["c", "a", "x"],
    "brand": ["p", None, "q"],
    "tags": [["s", "t"], [], ["t"]],
    "price": [1.5, None, 3.0],
    "text": [[1.0, 2.0], [3.0, 4.0], None],
    "name": ["C", "A", "X"],
}


def data_with(**options):
    options = {"items": TABLE, "item_title": "name"} | options
    return Interactions.from_arrays(["u"] * 3, ["a", "b", "c"], [1, 2, 3], **options)


def check(data, rows=None):
    items = data.items
    assert len(items) == len(data.vocabs.items) == 5
    assert [f.kind for f in items.fields] == ["category", "categories", "number", "vector"]
    assert data.schema.item_features == items.fields
    brands = data.vocabs.features["brand"].values(items.columns["brand"])
    assert brands == [None, None, None, "p", "q"]
    tags = [data.vocabs.features["tags"].values(row) for row in items.columns["tags"].to_lists()]
    assert tags == [[], [], [], ["s", "t"], ["t"]]
    nan = np.nan
    np.testing.assert_array_equal(items.columns["price"], [nan, nan, nan, 1.5, 3.0])
    np.testing.assert_array_equal(
        items.columns["text"], [[nan, nan], [3, 4], [nan, nan], [1, 2], [nan, nan]]
    )
    assert items.names([0, 1, 2, 3, 4, -1]) == [None, "A", None, "C", "X", None]


def test_rows_follow_the_vocabulary():
    data = data_with()
    # The items of the behaviours come first, then those that only the table has.
    assert data.vocabs.items.ids.to_pylist() == ["a", "b", "c", "x"]
    check(data)


def test_sources(tmp_path):
    kinds = {"text": pa.list_(pa.float32(), 2)}
    table = pa.table({k: pa.array(v, kinds.get(k)) for k, v in TABLE.items()})
    check(data_with(items=table))
    check(data_with(items=table.to_pandas()))
    pq.write_table(table, tmp_path / "items.parquet")
    check(data_with(items=tmp_path / "items.parquet"))


def test_chosen_features_and_kinds():
    data = data_with(items=TABLE | {"size": [3, 4, 5]}, item_features=[Field("size", "number")])
    assert list(data.items.columns) == ["size"]
    np.testing.assert_array_equal(data.items.columns["size"], [np.nan, 4, np.nan, 3, 5])


def test_add_new_and_known_items():
    data = data_with()
    vocabs = data.vocabs.copy()
    more = {
        "item": ["y", "a"],
        "brand": ["q", "never"],
        "tags": [["t", "s", "t"], ["s"]],
        "price": [9.0, 8.0],
        "text": [[5.0, 5.0], [6.0, 6.0]],
        "name": ["Y", "A2"],
    }
    items = data.items.add(more, vocabs)
    assert len(items) == len(vocabs.items) == 6
    assert items.columns["brand"].tolist() == [0, 0, 0, 1, 2, 2]
    s, t = vocabs.features["tags"].rows(["s", "t"])
    assert items.columns["tags"].to_lists() == [[], [s], [], [s, t], [t], [t, s, t]]
    np.testing.assert_array_equal(items.columns["price"], [np.nan, 8, np.nan, 1.5, 3, 9])
    assert items.names([5, 1]) == ["Y", "A2"]
    assert "never" not in vocabs.features["brand"]
    check(data)


def test_no_features():
    data = Interactions.from_arrays(["u"], ["a"], [1])
    assert len(data.items) == 2
    assert data.items.columns == {}
    assert data.items.names([1]) == [None]
    grown = data.items.add({"item": ["b"]}, data.vocabs)
    assert len(grown) == 3


def test_fixed_vocabulary_leaves_unknown_items_out():
    vocabs = Vocabs(Vocab(["a", "b"], kind="fixed"))
    items = ItemTable.from_table({"item": ["z", "b"], "size": [1.0, 2.0]}, vocabs)
    np.testing.assert_array_equal(items.columns["size"], [np.nan, np.nan, 2])
    assert torch.equal(items.columns["size"][2:], torch.tensor([2.0]))


@pytest.mark.parametrize(
    ("table", "options", "error", "match"),
    [
        pytest.param({"id": ["a"]}, {}, ValueError, "items: 'item' is not a column", id="no-id"),
        pytest.param({"item": ["a", "a"]}, {}, ValueError, "'a' twice", id="twice"),
        pytest.param({"item": ["a", None]}, {}, ValueError, "not be null", id="null"),
        pytest.param({"item": [1, 2]}, {}, TypeError, "must be strings, got integers", id="type"),
        pytest.param({"item": ["a"]}, {"item_features": ["x"]}, ValueError, "'x'", id="feature"),
        pytest.param(
            {"item": ["a"], "v": [None]},
            {"item_features": [Field("v", "vector", 2)]},
            None,
            None,
            id="null-vector",
        ),
        pytest.param(
            {"item": ["a"], "when": [np.datetime64("2020-01-01")]}, {}, TypeError, "when", id="kind"
        ),
    ],
)
def test_bad_tables(table, options, error, match):
    if error is None:
        assert data_with(items=table, item_title=None, **options).items.columns["v"].isnan().all()
        return
    with pytest.raises(error, match=match):
        data_with(items=table, item_title=None, **options)


def test_hashed_items_have_no_table():
    with pytest.raises(ValueError, match="hashed"):
        ItemTable.from_table({"item": ["a"]}, Vocabs(Vocab(kind="hashed", buckets=4)))


def test_a_title_that_is_no_column_is_an_error():
    with pytest.raises(ValueError, match="item_title: 'name' is not a column"):
        ItemTable.from_table({"item": [1]}, Vocabs(), title="name")
