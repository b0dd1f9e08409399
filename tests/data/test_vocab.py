"""Vocabularies: raw ids to rows and back."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylum.data import ANY, Vocab, Vocabs
from pylum.data.hashing import hash_ids

IDS = st.one_of(
    st.lists(st.text(max_size=20)),
    st.lists(st.integers(-(2**63), 2**63 - 1)),
    st.lists(st.booleans()),
)


@settings(deadline=None, max_examples=60)
@given(IDS, st.integers(0, 3))
def test_ids_come_back_as_they_went_in(ids, cuts):
    vocab = Vocab()
    for part in np.array_split(np.arange(len(ids)), cuts + 1):
        vocab.grow([ids[i] for i in part])
    rows = vocab.rows(ids)
    assert vocab.values(rows) == ids
    assert [type(v) for v in vocab.values(rows)] == [type(v) for v in ids]
    expected = {value: row + 1 for row, value in enumerate(dict.fromkeys(ids))}
    assert rows.tolist() == [expected[value] for value in ids]
    assert len(vocab) == len(expected) + 1


def test_reserved_rows():
    vocab = Vocab(["x"], any=True)
    assert vocab.rows(["x", "never", None, ANY, float("nan")]).tolist() == [2, 0, 1, 1, 1]
    assert vocab.values([0, 1, 2, -1]) == [None, ANY, "x", None]
    assert Vocab(["x"]).rows(["x", None]).tolist() == [1, 0]
    assert "x" in vocab
    assert "y" not in vocab


def test_fixed_never_grows():
    vocab = Vocab([5, 3, 5, None], kind="fixed")
    assert vocab.grow([3, 7, 5]).tolist() == [2, 0, 1]
    assert len(vocab) == 3


def test_hashed_rows_never_change():
    vocab = Vocab(kind="hashed", buckets=1000)
    ids = ["", "a", "item-12345678", "é" * 9]
    # Saved models with hashed vocabularies rest on these values.
    assert vocab.grow(ids).tolist() == vocab.rows(ids).tolist() == [113, 400, 16, 349]
    assert len(vocab) == 1001
    assert vocab.rows([None]).tolist() == [0]
    with pytest.raises(ValueError, match="keeps no ids"):
        vocab.values([1])
    with pytest.raises(TypeError, match="must be strings, got integers"):
        vocab.rows([1])


def test_hashes_spread_and_differ():
    strings = hash_ids(pa.array([f"item-{i}" for i in range(100_000)], pa.large_string()))
    integers = hash_ids(pa.array(np.arange(100_000)))
    assert len(np.unique(np.concatenate([strings, integers]))) == 200_000
    for hashes in (strings, integers):
        counts = np.bincount((hashes % np.uint64(100)).astype(int), minlength=100)
        assert counts.min() > 850
        assert counts.max() < 1150
    sliced = pa.array(["x", "item-7", "y"], pa.large_string()).slice(1, 1)
    assert hash_ids(sliced)[0] == strings[7]


def test_equal_hashes_are_proved_by_the_strings(monkeypatch):
    import pylum.data.vocab as module

    monkeypatch.setattr(module, "hash_ids", lambda ids: hash_ids(ids) % np.uint64(3))
    ids = [f"i{n}" for n in range(40)]
    vocab = Vocab()
    vocab.grow(ids[:25])
    vocab.grow(ids[20:])
    assert vocab.values(vocab.rows(ids)) == ids
    assert vocab.rows(["new", "i41"]).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        pytest.param(["a", 1], TypeError, "one type", id="mixed"),
        pytest.param([1, "a"], TypeError, "one type", id="mixed-reversed"),
        pytest.param([1.0, 2.5], TypeError, "strings or integers, got double", id="floats"),
        pytest.param(pd.Series([1, None]), TypeError, "pandas turns", id="pandas-nan"),
        pytest.param([3], TypeError, "must be strings, got integers", id="other-type"),
        pytest.param("abc", TypeError, "a column of values", id="scalar"),
        pytest.param(np.array([2**64 - 1], np.uint64), ValueError, "int64", id="uint64"),
    ],
)
def test_bad_ids(values, error, match):
    with pytest.raises(error, match=match):
        Vocab(["a"]).rows(values)


def test_copies_grow_apart():
    vocab = Vocab(["a", "b"])
    twin = vocab.copy()
    twin.grow(["c"])
    assert (len(vocab), len(twin)) == (3, 4)
    assert twin.starts_with(vocab)
    assert not vocab.starts_with(twin)
    assert vocab.fingerprint() != twin.fingerprint()
    assert vocab.fingerprint() == Vocab(["a", "b"]).fingerprint()


def test_files(tmp_path):
    vocabs = Vocabs(
        Vocab([f"i{n}" for n in range(1000)]),
        {"scene": Vocab(["search", "home/night"], any=True), "hour": Vocab([3, 1], any=True)},
        {"liked": Vocab([True, False])},
        {"brand": Vocab(kind="hashed", buckets=7), "empty": Vocab(kind="fixed")},
    )
    vocabs.features["brand"].grow(["x"])
    vocabs.save(tmp_path / "vocabs.arrow")
    assert [p.name for p in tmp_path.iterdir()] == ["vocabs.arrow"]
    for loaded in (Vocabs.load(tmp_path / "vocabs.arrow"), Vocabs.from_json(vocabs.to_json())):
        assert loaded.fingerprint() == vocabs.fingerprint()
        assert loaded.conditions["scene"].rows(["home/night", None]).tolist() == [3, 1]
        assert loaded.outcomes["liked"].values([1, 2]) == [True, False]
        assert loaded.features["brand"].rows(["x"]) == vocabs.features["brand"].rows(["x"])
        assert loaded.items.kind == "growing"
    vocab = vocabs.items
    vocab.save(tmp_path / "one.arrow")
    assert Vocab.load(tmp_path / "one.arrow").fingerprint() == vocab.fingerprint()


def test_what_is_of_another_type_is_not_in_it():
    words, numbers = Vocab(["a", "1"]), Vocab([1, 2])
    assert "1" in words and 1 not in words and None not in words and [1] not in words
    assert 1 in numbers and "1" not in numbers and 1.5 not in numbers and 2**70 not in numbers
