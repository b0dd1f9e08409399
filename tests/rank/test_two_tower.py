"""The two-tower retriever: it finds, a row's item never reaches the user's side, errors."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from pylum.evaluate.metrics import ranks
from pylum.rank import Ranker
from pylum.rank.two_tower import TwoTower
from tests.rank import worlds
from tests.rank.test_ranker import changed

USER = ("last_item", "last_brand", "last_liked", "age")
ITEM = ("item", "brand", "tags")
SMALL = {"dim": 8, "hidden": (16,), "epochs": 5, "lr": 1e-2, "batch_rows": 128}


def chosen(count, seed=0, known=None):
    """Every row chosen: an item of the brand remembered most, or what the first answer says."""
    rows = worlds.rows(count, seed)
    random = np.random.default_rng(seed + 5)
    past = [row[-6:] for row in rows["last_brand"].to_pylist()]
    brand = np.array([np.bincount(p).argmax() if p else random.integers(5) for p in past])
    number = brand + 5 * random.integers(0, 6, count)
    if known is not None:
        moments = known.rows(rows["user"].to_pylist(), rows["time"].to_numpy())
        best = (known.vectors[moments, 0] @ known.item_vectors.T).argmax(1).numpy()
        number = np.where(moments >= 0, best, number)
    rows = changed(rows, "item", [f"i{n}" for n in number])
    rows = changed(rows, "brand", number % 5)
    rows = changed(rows, "tags", [[f"t{i % 3}", f"t{i % 7}"][: i % 3] for i in number])
    return changed(rows, "label", np.ones(count, np.int64))


def catalogue():
    return pa.table(
        {
            "item": [f"i{n}" for n in range(worlds.ITEMS)],
            "brand": [n % 5 for n in range(worlds.ITEMS)],
            "tags": [[f"t{n % 3}", f"t{n % 7}"][: n % 3] for n in range(worlds.ITEMS)],
        }
    )


def recall(model, rows, k=6):
    target = torch.tensor([int(item[1:]) for item in rows["item"].to_pylist()])
    return float((ranks(model.users(rows), model.items(catalogue()), target) < k).float().mean())


def test_finds_what_follows():
    model = TwoTower(worlds.SCHEMA, USER, ITEM, **SMALL).fit(chosen(3000))
    test = chosen(1000, seed=1)
    # Six of thirty items are of a brand; one row in nine has no history.
    assert recall(model, test) > 0.6
    items, scores = model.topk(test.slice(0, 5), catalogue(), 3)
    assert items.shape == scores.shape == (5, 3)
    assert set(items.reshape(-1)) <= set(catalogue()["item"].to_pylist())
    assert (np.diff(scores, axis=1) <= 0).all()
    few, low = model.topk(test.slice(0, 2), catalogue().slice(0, 2), 3)
    assert few[0, 2] is None and low[0, 2] == -np.inf


def test_knowledge_is_read_on_both_sides():
    known = worlds.knowledge()
    train, test = chosen(3000, known=known), chosen(1000, seed=1, known=known)
    with_it = TwoTower(worlds.SCHEMA, USER, ITEM, known, **SMALL).fit(train)
    without = TwoTower(worlds.SCHEMA, USER, ITEM, **SMALL).fit(train)
    assert recall(with_it, test, 3) > recall(without, test, 3) + 0.2
    strangers = changed(test, "user", ["stranger"] * len(test))
    assert bool(with_it.users(strangers).isfinite().all())
    with pytest.raises(ValueError, match="must be of the user model"):
        with_it.users(test, knowledge=replace(known, fingerprint="other"))
    with pytest.raises(ValueError, match="are not later than"):
        TwoTower(worlds.SCHEMA, USER, ITEM, replace(known, cut=5000), **SMALL).fit(train)
    with pytest.raises(ValueError, match="rows lack the columns user, time"):
        with_it.users(test.drop_columns(["user", "time"]))


@pytest.mark.parametrize("known", [None, worlds.knowledge()], ids=["alone", "knowledge"])
def test_a_rows_item_never_reaches_the_user(known):
    model = TwoTower(worlds.SCHEMA, USER, ITEM, known, **{**SMALL, "epochs": 1}).fit(chosen(300))
    test = chosen(50, seed=1)
    found = model.users(test)
    other = changed(test, "item", ["i3"] * 50)
    assert torch.equal(model.users(changed(other, "brand", [0] * 50)), found)
    assert torch.equal(model.users(test.drop_columns([*ITEM, "label", "price"])), found)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(50))
    torch.testing.assert_close(model.users(test.slice(7, 1))[0], found[7])
    again = TwoTower(worlds.SCHEMA, USER, ITEM, known, **{**SMALL, "epochs": 1}).fit(chosen(300))
    assert torch.equal(again.users(test), found)


def test_only_chosen_rows_are_trained_on():
    rows = chosen(400)
    some = changed(rows, "label", (np.arange(400) % 2).astype(np.int64))
    kept = rows.filter(pa.array(np.arange(400) % 2 == 1))
    a = TwoTower(worlds.SCHEMA, USER, ITEM, **{**SMALL, "epochs": 1}).fit(some)
    b = TwoTower(worlds.SCHEMA, USER, ITEM, **{**SMALL, "epochs": 1}).fit(kept)
    assert torch.equal(a.users(rows), b.users(rows))


@pytest.mark.parametrize("known", [None, worlds.knowledge()], ids=["alone", "knowledge"])
def test_save_and_load(known, tmp_path):
    small = {**SMALL, "epochs": 1}
    model = TwoTower(worlds.SCHEMA, USER, ITEM, known, temperature=0.1, **small).fit(chosen(300))
    model.save(tmp_path / "towers")
    model.save(tmp_path / "towers")  # replaces itself
    again = TwoTower.load(tmp_path / "towers", known)
    test = chosen(50, seed=1)
    assert torch.equal(again.users(test), model.users(test))
    assert torch.equal(again.items(catalogue()), model.items(catalogue()))
    assert (again.history, again.temperature, again.schema) == (model.history, 0.1, model.schema)
    assert not [f for f in (tmp_path / "towers").iterdir() if f.suffix in (".pkl", ".pt")]
    if known is not None:
        bare = TwoTower.load(tmp_path / "towers")
        with pytest.raises(ValueError, match="knowledge must be of fingerprint aaaaaaaa"):
            bare.users(test)
        assert torch.equal(bare.users(test, knowledge=known), model.users(test))
        with pytest.raises(ValueError, match="of the user model aaaaaaaa it was trained with"):
            TwoTower.load(tmp_path / "towers", replace(known, fingerprint="b" * 8))
    else:
        with pytest.raises(ValueError, match="knowledge must be None, as in training"):
            TwoTower.load(tmp_path / "towers", worlds.knowledge())
    with pytest.raises(ValueError, match="must hold a pylum ranker"):
        Ranker.load(tmp_path / "towers")
    file = tmp_path / "towers" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated or altered"):
        TwoTower.load(tmp_path / "towers")
    with pytest.raises(ValueError, match="must be fitted before it is saved"):
        TwoTower(worlds.SCHEMA, USER, ITEM).save(tmp_path / "other")


def test_errors():
    make = lambda *sides: TwoTower(worlds.SCHEMA, *sides, **SMALL)  # noqa: E731
    with pytest.raises(ValueError, match=r"different features of the schema, got \['colour'\]"):
        make(USER, ("item", "colour"))
    with pytest.raises(ValueError, match="different features of the schema"):
        make((*USER, "item"), ITEM)
    with pytest.raises(ValueError, match=r"must not hold sequences, got \['last_item'\]"):
        make(("age",), ("item", "last_item"))
    with pytest.raises(ValueError, match="item must name at least one feature"):
        make((*USER, "item", "brand"), ()).fit(chosen(50))
    with pytest.raises(ValueError, match="'last_item' shares 'item', which is no category"):
        make(USER, ("tags",))
    with pytest.raises(ValueError, match="must be fitted first"):
        make(USER, ITEM).users(chosen(5))
    with pytest.raises(ValueError, match="label 'label' of 1, got none"):
        make(USER, ITEM).fit(changed(chosen(5), "label", [0] * 5))
    with pytest.raises(ValueError, match="table lacks the columns tags"):
        make(USER, ITEM).fit(chosen(50)).items(catalogue().drop_columns(["tags"]))
