"""Rankers: they learn, repeat, survive a save, and refuse what cannot be right."""

import numpy as np
import pyarrow as pa
import pytest
import torch

import pylum
from pylum.evaluate.metrics import auc
from pylum.rank import Feature, Ranker, Schema
from tests.rank import worlds
from tests.tolerance import FLOOR

NAMES = ["wide_deep", "dlrm", "din", "sim_rank"]
SMALL = {"dim": 8, "hidden": (16, 8), "buckets": 1 << 12, "batch_rows": 64}


def fitted(name, rows=None, **more):
    rows = worlds.rows() if rows is None else rows
    return Ranker(name, worlds.SCHEMA, **{**SMALL, "epochs": 2, **more}).fit(rows)


def changed(rows, name, values):
    return rows.set_column(rows.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize("name", NAMES)
def test_learns_what_is_there(name):
    ranker = fitted(name, worlds.rows(3000), epochs=10, lr=0.05 if name == "wide_deep" else 5e-3)
    test = worlds.rows(1500, seed=1)
    labels = test["label"].to_numpy()
    found = ranker.predict(test)
    assert found.dtype == np.float32 and found.shape == (1500,)
    # The price alone, which is the easy part, gives the second.
    assert auc(labels, found) > auc(labels, test["price"].to_numpy()) + 0.02
    assert ranker.history[-1]["loss"] < ranker.history[0]["loss"]


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_says_it_all(name):
    torch.manual_seed(1)
    first = fitted(name, dropout=0.2)
    torch.manual_seed(2)
    second = fitted(name, dropout=0.2)
    drawn = torch.rand(3)
    torch.manual_seed(2)
    assert torch.equal(torch.rand(3), drawn), "the caller's random numbers were used"
    test = worlds.rows(100, seed=3)
    assert np.array_equal(first.predict(test), second.predict(test))
    assert not np.array_equal(first.predict(test), fitted(name, seed=1).predict(test))


@pytest.mark.parametrize("name", NAMES)
def test_a_row_alone_is_a_row_among_others(name):
    ranker = fitted(name)
    test = worlds.rows(40, seed=3)
    whole = ranker.predict(test)
    alone = np.concatenate([ranker.predict(test.slice(n, 1)) for n in range(40)])
    np.testing.assert_allclose(alone, whole, atol=10 * FLOOR[torch.float32])
    order = np.random.default_rng(0).permutation(40)
    mixed = ranker.predict(test.take(pa.array(order)), batch_rows=7)
    np.testing.assert_allclose(mixed, whole[order], atol=10 * FLOOR[torch.float32])
    assert len(ranker.predict(test.slice(0, 0))) == 0


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load(name, tmp_path):
    known = worlds.knowledge()
    rows = worlds.known_rows(known)
    ranker = Ranker(name, worlds.SCHEMA, known, **SMALL).fit(rows)
    ranker.save(tmp_path / "ranker")
    ranker.save(tmp_path / "ranker")  # replaces itself
    again = Ranker.load(tmp_path / "ranker", known)
    assert np.array_equal(again.predict(rows), ranker.predict(rows))
    assert again.history == ranker.history and again.schema == ranker.schema
    assert not [f for f in (tmp_path / "ranker").iterdir() if f.suffix in (".pkl", ".pt")]
    bare = Ranker.load(tmp_path / "ranker")
    with pytest.raises(ValueError, match="knowledge must be of fingerprint aaaaaaaa"):
        bare.predict(rows)
    assert np.array_equal(bare.predict(rows, knowledge=known), ranker.predict(rows))
    file = tmp_path / "ranker" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated or altered"):
        Ranker.load(tmp_path / "ranker")
    with pytest.raises(ValueError, match="must be fitted"):
        Ranker(name, worlds.SCHEMA).save(tmp_path / "other")
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="must be new or an earlier save"):
        ranker.save(tmp_path / "mine")


@pytest.mark.parametrize("name", NAMES)
def test_the_label_and_the_order_of_columns_are_not_read(name):
    ranker = fitted(name)
    test = worlds.rows(50, seed=3)
    found = ranker.predict(test)
    assert np.array_equal(ranker.predict(test.drop_columns(["label", "user", "time"])), found)
    flipped = changed(test, "label", 1 - test["label"].to_numpy())
    assert np.array_equal(ranker.predict(flipped.select(test.column_names[::-1])), found)
    assert np.array_equal(ranker.predict(test.to_pandas()), found)
    assert np.array_equal(
        ranker.predict({c: test[c].to_pylist() for c in test.column_names}), found
    )


@pytest.mark.parametrize("name", NAMES)
def test_unseen_values_empty_histories_and_missing_numbers(name):
    ranker = fitted(name)
    test = worlds.rows(4, seed=3)
    empty = {n: pa.array([[]] * 4, test.schema.field(n).type) for n in test.column_names[-3:]}
    odd = test.to_pydict() | {
        "item": ["never seen", None, "i3", "i4"],
        "brand": [99, None, 1, 2],
        "tags": [["t99"], [], None, []],
        "price": [None, np.nan, np.inf, 1e30],
    }
    odd = pa.table({**odd, **empty})
    assert np.isfinite(ranker.predict(odd)).all()
    # Two unknown values are one: the row of the unknown.
    other = changed(odd, "item", ["unheard of", None, "i3", "i4"])
    assert np.array_equal(ranker.predict(other), ranker.predict(odd))
    for column in ("item", "brand", "price"):
        nulls = changed(test, column, pa.nulls(4))
        typed = changed(test, column, pa.nulls(4, test.schema.field(column).type))
        assert np.array_equal(ranker.predict(nulls), ranker.predict(typed))
    # Trained on nothing but empty histories, it still learns the rest.
    rows = worlds.rows()
    none = {n: pa.array([[]] * len(rows), rows.schema.field(n).type) for n in empty}
    trained = Ranker(name, worlds.SCHEMA, **SMALL).fit(
        pa.table({**{n: rows[n] for n in rows.column_names}, **none})
    )
    assert np.isfinite(trained.predict(rows)).all()


def test_only_the_latest_elements_of_a_sequence_are_read():
    ranker = fitted("din")
    test = worlds.rows(30, seed=3)
    sequences = ("last_item", "last_brand", "last_liked")
    cut = test
    for name in sequences:
        cut = changed(cut, name, [row[-6:] for row in test[name].to_pylist()])
    assert not cut.equals(test)
    assert np.array_equal(ranker.predict(cut), ranker.predict(test))


def test_rare_values_are_unknown():
    rows = worlds.rows(400)
    items = rows["item"].to_pylist()
    items[5] = "once"
    ranker = fitted("dlrm", changed(rows, "item", items), min_count=2)
    assert "once" not in ranker.coder.vocabs["item"] and "i3" in ranker.coder.vocabs["item"]
    assert "once" in fitted("dlrm", changed(rows, "item", items), min_count=1).coder.vocabs["item"]


def test_a_validation_part_chooses_the_epoch():
    rows, valid = worlds.rows(300), worlds.rows(300, seed=5)
    make = lambda epochs: Ranker("dlrm", worlds.SCHEMA, **SMALL, lr=0.03, epochs=epochs)  # noqa: E731
    long = make(12).fit(rows, valid=valid)
    best = min(long.history, key=lambda entry: entry["valid"])
    assert best["epoch"] < 12, "the case must over-train"
    short = make(best["epoch"]).fit(rows)
    assert np.array_equal(short.predict(valid), long.predict(valid))


@pytest.mark.parametrize("name", NAMES)
def test_errors_name_what_is_wrong(name):
    make = lambda **more: Ranker(name, worlds.SCHEMA, **SMALL, **more)  # noqa: E731
    rows = worlds.rows(50)
    with pytest.raises(ValueError, match="rows lack the columns brand, price; they have user"):
        make().fit(rows.drop_columns(["brand", "price"]))
    with pytest.raises(ValueError, match="rows lack the columns label"):
        make().fit(rows.drop_columns(["label"]))
    with pytest.raises(ValueError, match="rows lack the columns user, time"):
        Ranker(name, worlds.SCHEMA, worlds.knowledge()).fit(rows.drop_columns(["user", "time"]))
    with pytest.raises(ValueError, match="must hold both 0 and 1, got 1 in all 50 rows"):
        make().fit(changed(rows, "label", [1] * 50))
    with pytest.raises(ValueError, match="'label' must be 0 or 1, got"):
        make().fit(changed(rows, "label", [2] * 50))
    with pytest.raises(ValueError, match="must not be null, got 50"):
        make().fit(changed(rows, "label", pa.nulls(50, pa.int64())))
    with pytest.raises(TypeError, match="'label' must be 0 or 1, got string"):
        make().fit(changed(rows, "label", ["1"] * 50))
    with pytest.raises(ValueError, match="at least one, got none"):
        make().fit(rows.slice(0, 0))
    with pytest.raises(TypeError, match="'price' is a number, got string"):
        make().fit(changed(rows, "price", ["dear"] * 50))
    with pytest.raises(TypeError, match="'item' is a category, one value a row, got list"):
        make().fit(changed(rows, "item", [["a"]] * 50))
    with pytest.raises(TypeError, match="'tags' is categories, a list a row, got string"):
        make().fit(changed(rows, "tags", ["a"] * 50))
    with pytest.raises(ValueError, match="one length, got 1 of 'last_brand'"):
        make().fit(changed(rows, "last_brand", [[1]] * 50))
    with pytest.raises(ValueError, match="must be fitted or loaded"):
        make().predict(rows)
    ranker = make(epochs=1).fit(rows)
    with pytest.raises(ValueError, match="rows lack the columns last_item"):
        ranker.predict(rows.drop_columns(["last_item"]))
    with pytest.raises(TypeError, match="brand must be integers, got strings"):
        ranker.predict(changed(rows, "brand", ["one"] * 50))
    with pytest.raises(ValueError, match=r"settings must be among .* got \['depth'\]"):
        make(depth=3)


def test_errors_of_the_schema():
    with pytest.raises(ValueError, match="kind must be one of"):
        Feature("a", "text")
    with pytest.raises(ValueError, match="'b' shares 'a', which is no category"):
        Schema((Feature("b", "sequence", "a"),))
    with pytest.raises(ValueError, match="must not hold the label"):
        Schema((Feature("label"),))
    with pytest.raises(ValueError, match=r"distinct and at least one, got \['a'\]"):
        Schema((Feature("a"), Feature("a", "number")))
    with pytest.raises(ValueError, match="crosses must be of two or more"):
        Schema((Feature("a"),), crosses=(("a",),))
    with pytest.raises(ValueError, match="a sequence that shares a category's table for din"):
        Ranker("din", Schema((Feature("a"), Feature("n", "number"))), epochs=1).fit(
            {"a": [1, 2], "n": [1.0, 2.0], "label": [0, 1]}
        )
    with pytest.raises(ValueError, match="name must be one of wide_deep, dlrm, din, sim_rank"):
        pylum.Ranker("deepfm", worlds.SCHEMA)
    with pytest.raises(TypeError, match=r"schema must be a pylum.rank.Schema, got dict"):
        Ranker("din", {})
