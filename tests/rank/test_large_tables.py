"""Rows and knowledge too large to hold: read in pieces, with the same result to the bit."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pylum.knowledge import Knowledge
from pylum.rank import Ranker, TwoTower
from pylum.rank import rows as reading
from tests.rank import worlds
from tests.rank.test_ranker import NAMES, SMALL
from tests.rank.test_two_tower import ITEM, USER, catalogue, chosen

PEAK = """
import resource, sys
import numpy as np, torch
torch.set_num_threads(1)
from pylum.rank import Feature, Ranker, Schema
schema = Schema((Feature("item"), Feature("price", "number"),
                 Feature("last_item", "sequence", "item")))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
Ranker("dlrm", schema, epochs=1).fit(sys.argv[2])
before = peak()
ranker = Ranker("dlrm", schema, epochs=0).fit(sys.argv[1])
fitted = peak() - before
before = peak()
ranker.predict(sys.argv[1])
print(fitted, peak() - before)
"""


@pytest.mark.parametrize("name", NAMES)
def test_pieces_are_the_whole(name, tmp_path, monkeypatch):
    known = worlds.knowledge()
    rows = worlds.known_rows(known, 500)
    settings = {**SMALL, "epochs": 2, "min_count": 3}
    whole = Ranker(name, worlds.SCHEMA, known, **settings).fit(rows, valid=rows)
    expected = whole.predict(rows)
    folder = tmp_path / "rows"
    folder.mkdir()
    pq.write_table(rows.slice(0, 230), folder / "a.parquet", row_group_size=60)
    pq.write_table(rows.slice(230), folder / "b.parquet")
    monkeypatch.setattr(reading, "PIECE_ROWS", 37)
    for given in (rows, folder):
        parts = Ranker(name, worlds.SCHEMA, known, **settings).fit(given, valid=given)
        assert parts.history == whole.history
        for table, vocab in whole.coder.vocabs.items():
            assert parts.coder.vocabs[table].ids.equals(vocab.ids)
        np.testing.assert_allclose(parts.predict(given), expected, atol=1e-6)
    with pytest.raises(ValueError, match="401 of 500 rows are not later than 1400"):
        Ranker(name, worlds.SCHEMA, worlds.knowledge(1400)).fit(folder)


def test_known_says_where_knowledge_is_read(monkeypatch):
    monkeypatch.setattr(reading, "PIECE_ROWS", 37)
    known = worlds.knowledge(cut=1200)
    rows = worlds.known_rows(known, 500)
    later = rows["time"].to_numpy() > 1200
    ranker = Ranker("dlrm", worlds.SCHEMA, known, **SMALL, epochs=3).fit(rows, known=later)
    # As if the other rows' users were nobody.
    strangers = rows.set_column(
        0, "user", pa.array(np.where(later, rows["user"].to_numpy(), "stranger"))
    )
    other = Ranker("dlrm", worlds.SCHEMA, known, **SMALL, epochs=3)
    other.fit(strangers, known=later, allow_in_sample=True)
    assert ranker.history == other.history
    with pytest.raises(ValueError, match="201 of 500 rows are not later than 1200"):
        Ranker("dlrm", worlds.SCHEMA, known, **SMALL).fit(rows)
    for wrong in (later[:10], np.append(later, True), later.astype(int)):
        with pytest.raises(ValueError, match="known must"):
            Ranker("dlrm", worlds.SCHEMA, known, **SMALL).fit(rows, known=wrong)


def test_the_two_towers_read_pieces(tmp_path, monkeypatch):
    known = worlds.knowledge()
    rows = chosen(400, known=known)
    label = (np.arange(400) % 3 > 0).astype(np.int64)
    rows = rows.set_column(rows.column_names.index("label"), "label", pa.array(label))
    pq.write_table(rows, tmp_path / "rows.parquet")
    small = {"dim": 8, "hidden": (16,), "epochs": 1}
    whole = TwoTower(worlds.SCHEMA, USER, ITEM, known, **small).fit(rows)
    monkeypatch.setattr(reading, "PIECE_ROWS", 37)
    parts = TwoTower(worlds.SCHEMA, USER, ITEM, known, **small).fit(tmp_path / "rows.parquet")
    assert torch.equal(parts.users(rows), whole.users(rows))
    assert torch.equal(parts.items(catalogue()), whole.items(catalogue()))


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["mapped", "in-memory"])
def test_knowledge_of_a_folder(tmp_path, limit):
    known = worlds.knowledge()
    known.save(tmp_path / "known")
    again = Knowledge.load(tmp_path / "known", memory_limit=limit)
    assert torch.equal(again.vectors, known.vectors) and again.users == known.users
    assert torch.equal(again.times, known.times) and again.items == known.items
    rows = worlds.known_rows(known, 300)
    ranker = Ranker("din", worlds.SCHEMA, again, **SMALL).fit(rows)
    expected = Ranker("din", worlds.SCHEMA, known, **SMALL).fit(rows).predict(rows)
    assert np.array_equal(ranker.predict(rows), expected)
    of_path = Ranker("din", worlds.SCHEMA, tmp_path / "known", **SMALL).fit(rows)
    assert np.array_equal(of_path.predict(rows), expected)
    assert np.array_equal(of_path.predict(rows, knowledge=str(tmp_path / "known")), expected)
    with pytest.raises(FileNotFoundError, match=r"_knowledge\.json"):
        Ranker("din", worlds.SCHEMA, tmp_path / "none")


def test_memory_holds_codes_and_not_the_table(tmp_path):
    """Of a table whose strings are many times its codes, most is never held at once."""
    random = np.random.default_rng(0)
    names = np.array([f"an item with a rather long name, number {n:06d}" for n in range(5000)])
    count, last = 250_000, 12
    item = names[random.integers(5000, size=count)]
    past = pa.array(names[random.integers(5000, size=count * last)], pa.large_string())
    table = pa.table(
        {
            "item": item,
            "price": random.normal(size=count),
            "label": random.integers(2, size=count),
            "last_item": pa.FixedSizeListArray.from_arrays(past, last),
        }
    )
    pq.write_table(table, tmp_path / "large.parquet", row_group_size=1 << 16)
    pq.write_table(table.slice(0, 1000), tmp_path / "small.parquet")
    size = table.nbytes / 2**20
    del table, past, item
    found = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "large.parquet", tmp_path / "small.parquet"],
        capture_output=True,
        text=True,
        check=True,
    )
    fitted, predicted = map(float, found.stdout.split())
    # Codes: 13 of 4 bytes a row, a length of 8, a number and a label of 4; at most twice, and
    # beside them a piece of the table with its strings.
    codes = count * (13 * 4 + 8 + 8 + 4 + 4) / 2**20
    piece = size / count * reading.PIECE_ROWS
    assert size > 150 and fitted < 2 * codes + 2 * piece, (size, codes, piece, fitted)
    assert predicted < 2 * piece, (predicted, piece)
