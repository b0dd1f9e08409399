"""Exact search, new items included."""

import copy
import sys

import pytest
import torch

from pylum import ItemIndex, generate
from tests.serving.worlds import ITEMS, data, history, item_table, model


def test_equals_generate():
    index = ItemIndex(model())
    assert len(index) == ITEMS
    out = generate(model(), {"u": history(5)}, {"scene": ["home", "cart"]}, k=9, exclude="none")
    for queries in (out, out.embeddings):
        items, scores = index.topk(queries, 9)
        assert items.tolist() == out.items.tolist()
        assert torch.equal(scores, out.scores)


def test_subset_exclude_and_candidates():
    index = ItemIndex(model(), ["i5", "i3", "i9"])
    assert index.items == ["i5", "i3", "i9"]
    query = torch.nn.functional.normalize(torch.randn(2, 16), dim=1)
    items, scores = index.topk(query, 5, exclude=[["i3", "zzz"], []])
    assert set(items[0]) == {"i5", "i9", None}
    assert set(items[1]) == {"i5", "i3", "i9", None}
    assert scores[0, 2:].isneginf().all()
    items, _ = index.topk(query, 1, candidates=[["i9"], ["i3"]])
    assert items.tolist() == [["i9"], ["i3"]]
    assert ItemIndex(model(), []).topk(query, 2)[0].tolist() == [[None, None]] * 2


def test_add():
    index = ItemIndex(model())
    before = index.vectors.clone()
    index.add(item_table([ITEMS, ITEMS + 1]))
    assert index.items[-2:] == [f"i{ITEMS}", f"i{ITEMS + 1}"]
    assert torch.equal(index.vectors[:ITEMS], before)
    assert (index.vectors[-1] - index.vectors[-2]).abs().max() > 1e-3
    items, scores = index.topk(index.vectors[-2:], 1)
    assert items[:, 0].tolist() == index.items[-2:]
    torch.testing.assert_close(scores[:, 0], torch.ones(2))
    # A new item is the unknown item with its features; features of a known one are replaced.
    changed = {name: [column[7]] for name, column in item_table(range(ITEMS)).items()}
    index.add({**changed, "item": ["i3"]})
    place = index.items.index("i3")
    assert (index.vectors[place] - before[place]).abs().max() > 1e-3
    assert len(index) == ITEMS + 2
    index.add(item_table([3]))
    torch.testing.assert_close(index.vectors[place], before[place], atol=1e-6, rtol=0)
    assert len(data().vocabs.items) == ITEMS + 1


def test_an_item_that_training_never_chose_is_read_by_its_features():
    """Given again, and given as if it were new, it has the vector it has in the catalogue."""
    mine = copy.deepcopy(model())
    mine.item_encoder.chosen[mine.vocabs.items.rows(["i7"])] = False
    index = ItemIndex(mine)
    before = index.vectors.clone()
    assert (before - ItemIndex(model()).vectors).abs().max() > 1e-3
    index.add({**item_table([7, 7]), "item": ["i7", "new"]})
    torch.testing.assert_close(index.vectors[:ITEMS], before, atol=1e-6, rtol=0)
    place = index.items.index("i7")
    torch.testing.assert_close(index.vectors[-1], before[place], atol=1e-6, rtol=0)


def test_untied_items():
    untied = model(tie=False)
    index = ItemIndex(untied)
    before = index.vectors.clone()
    index.add(item_table(range(ITEMS)))
    torch.testing.assert_close(index.vectors, before, atol=1e-6, rtol=0)


def test_faiss_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        ItemIndex(model()).to_faiss()


def test_faiss_flat_finds_the_same():
    pytest.importorskip("faiss")
    index = ItemIndex(model())
    query = torch.nn.functional.normalize(torch.randn(4, 16), dim=1)
    items, scores = index.topk(query, 5)
    near, rows = index.to_faiss().search(query.numpy(), 5)
    assert [[index.items[i] for i in row] for row in rows] == items.tolist()
    torch.testing.assert_close(torch.from_numpy(near), scores)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(
            lambda: ItemIndex(model(), ["x"]),
            ValueError,
            "known to the model, got 'x'",
            id="unknown",
        ),
        pytest.param(
            lambda: ItemIndex(model(), ["i1", "i2", "i1"]),
            ValueError,
            "distinct, got 1 rep",
            id="twice",
        ),
        pytest.param(
            lambda: ItemIndex(model()).topk(torch.ones(2, 3)),
            ValueError,
            r"\[queries, 16\], got",
            id="dim",
        ),
        pytest.param(
            lambda: ItemIndex(model()).add({"item": ["x"]}),
            ValueError,
            "is not a column",
            id="column",
        ),
        pytest.param(
            lambda: ItemIndex(model()).topk(torch.ones(2, 16), exclude=[["i1"]]),
            ValueError,
            "exclude must have a row for each",
            id="exclude",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
