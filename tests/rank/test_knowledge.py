"""Knowledge in a ranker: as of each row, pinned to its model, missing, late, in-sample."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from pylum.evaluate.metrics import auc
from pylum.rank import Ranker, answers
from pylum.rank.arms import shuffled
from pylum.rank.utilisation import matching
from tests.rank import worlds
from tests.rank.test_ranker import NAMES, SMALL, changed


@pytest.fixture(scope="module")
def known():
    return worlds.knowledge()


@pytest.fixture(scope="module")
def rows(known):
    return worlds.known_rows(known, 2000)


def fit(name, known, rows, **more):
    return Ranker(name, worlds.SCHEMA, known, **{**SMALL, "epochs": 6, "lr": 5e-3, **more}).fit(
        rows
    )


@pytest.mark.parametrize("name", NAMES)
def test_it_is_read_as_of_each_row(name, known, rows):
    ranker = fit(name, known, rows, inputs=["matching"])
    test = worlds.known_rows(known, 1000, seed=4)
    found, labels = ranker.predict(test), test["label"].to_numpy()
    assert auc(labels, found) > 0.7
    assert auc(labels, fit(name, None, rows).predict(test)) < 0.6
    # Later answers move no earlier row, earlier ones no later row.
    times = test["time"].to_numpy()
    for late, same in ((True, times < 1300), (False, times >= 1300)):
        vectors = known.vectors.clone()
        at = (known.times >= 1300) == late
        vectors[at] = vectors[at].roll(1, 1)
        again = ranker.predict(test, knowledge=replace(known, vectors=vectors))
        assert np.array_equal(again[same], found[same])
        assert not np.allclose(again[~same], found[~same])


@pytest.mark.parametrize("name", NAMES)
def test_a_later_row_or_another_user_moves_no_row(name, known, rows):
    ranker = fit(name, known, rows, epochs=1)
    found = ranker.predict(rows)
    other = rows.slice(0, 700)
    assert np.allclose(ranker.predict(other), found[:700], atol=1e-6)


def test_in_sample_rows_are_refused(rows):
    for cut, inside in ((1000, 1), (1400, 401)):
        late = worlds.knowledge(cut)
        with pytest.raises(ValueError, match=f"{inside} of 2000 rows are not later than {cut}"):
            Ranker("dlrm", worlds.SCHEMA, late, **SMALL).fit(rows)
        Ranker("dlrm", worlds.SCHEMA, late, **SMALL).fit(rows, allow_in_sample=True)
    Ranker("dlrm", worlds.SCHEMA, worlds.knowledge(999), **SMALL).fit(rows)
    Ranker("dlrm", worlds.SCHEMA, worlds.knowledge(None), **SMALL).fit(rows)


def test_the_user_model_is_pinned(known, rows):
    ranker = fit("dlrm", known, rows, epochs=1)
    newer = replace(known, vectors=known.vectors.flip(0))
    assert not np.array_equal(ranker.predict(rows, knowledge=newer), ranker.predict(rows))
    with pytest.raises(ValueError, match=r"of the user model aaaaaaaa .* got bbbb: vectors of two"):
        ranker.predict(rows, knowledge=worlds.knowledge(fingerprint="bbbb"))
    with pytest.raises(ValueError, match="3 conditions of 8 numbers, as in training, got 2 of 8"):
        ranker.predict(rows, knowledge=replace(known, vectors=known.vectors[:, :2]))
    with pytest.raises(ValueError, match="knowledge must be None, as in training, got aaaaaaaa"):
        fit("dlrm", None, rows, epochs=1).predict(rows, knowledge=known)
    half = replace(known, vectors=known.vectors.half(), item_vectors=known.item_vectors.half())
    np.testing.assert_allclose(
        ranker.predict(rows, knowledge=half), ranker.predict(rows), atol=5e-3
    )


@pytest.mark.parametrize("name", NAMES)
def test_day_zero_is_the_old_ranker(name, known, rows):
    old = fit(name, None, rows.slice(0, 900), epochs=2)
    expected = old.predict(rows)
    new = Ranker(name, worlds.SCHEMA, known, **{**SMALL, "epochs": 0}).fit(rows, init=old)
    np.testing.assert_array_equal(new.predict(rows), expected)
    # It then learns from knowledge, and the old ranker is left as it was.
    test = worlds.known_rows(known, 1000, seed=4)
    trained = Ranker(name, worlds.SCHEMA, known, **{**SMALL, "epochs": 6, "lr": 5e-3})
    trained.fit(rows, init=old)
    labels = test["label"].to_numpy()
    assert auc(labels, trained.predict(test)) > auc(labels, old.predict(test)) + 0.05
    assert np.array_equal(old.predict(rows), expected)
    # The same knowledge goes on; that of another user model begins anew.
    same = Ranker(name, worlds.SCHEMA, known, **{**SMALL, "epochs": 0}).fit(rows, init=trained)
    assert np.array_equal(same.predict(test), trained.predict(test))
    other = replace(known, fingerprint="b" * 8)
    anew = Ranker(name, worlds.SCHEMA, other, **{**SMALL, "epochs": 0}).fit(rows, init=trained)
    moved = anew.predict(test, knowledge=replace(other, vectors=known.vectors.flip(0)))
    assert np.array_equal(moved, anew.predict(test))


@pytest.mark.parametrize("name", NAMES)
def test_a_warm_start_keeps_rows_and_learns_new_ones(name, rows):
    old = fit(name, None, rows.slice(0, 900), epochs=1)
    items = rows["item"].to_pylist()
    items[:40] = ["new"] * 40
    grown = changed(rows, "item", items)
    warm = Ranker(name, worlds.SCHEMA, **{**SMALL, "epochs": 0}).fit(grown, init=old)
    assert "new" in warm.coder.vocabs["item"]
    np.testing.assert_array_equal(warm.predict(rows), old.predict(rows))
    with pytest.raises(ValueError, match="init must be a"):
        Ranker("dlrm" if name != "dlrm" else "din", worlds.SCHEMA).fit(rows, init=old)
    with pytest.raises(ValueError, match="init must have the sizes of this ranker"):
        Ranker(name, worlds.SCHEMA, **{**SMALL, "hidden": (12,)}).fit(rows, init=old)
    with pytest.raises(ValueError, match="init must be fitted"):
        Ranker(name, worlds.SCHEMA).fit(rows, init=Ranker(name, worlds.SCHEMA))


@pytest.mark.parametrize("name", NAMES)
def test_missing_knowledge_is_one_learned_value(name, known, rows):
    ranker = fit(name, known, rows, knowledge_dropout=0.3)
    test = worlds.known_rows(known, 1500, seed=4)
    strangers = changed(test, "user", [f"stranger{n}" for n in range(1500)])
    strangers = changed(strangers, "time", list(range(1500)))
    found = ranker.predict(strangers)
    assert np.isfinite(found).all()
    # A stranger is nobody in particular, whenever he comes.
    other = changed(strangers, "user", ["x"] * 1500)
    assert np.array_equal(ranker.predict(other), found)
    layer = next(m for m in ranker.network.modules() if type(m).__name__ == "KnowledgeLayer")
    for learned in (layer.no_vector, layer.no_number):
        assert float(learned.detach().abs().max()) > 0
    assert np.isfinite(ranker.predict(changed(test, "item", ["i29"] * 1500))).all()


@pytest.mark.parametrize("name", NAMES)
def test_where_nothing_is_known_it_is_the_ranker_without_knowledge(name, known, rows):
    """Bitwise: dropout, weight decay, L1 and the choice of the epoch included."""
    more = {"epochs": 4, "lr": 0.02, "dropout": 0.2, "weight_decay": 0.01, "ftrl_l1": 2.0}
    make = lambda of: Ranker(name, worlds.SCHEMA, of, **{**SMALL, **more})  # noqa: E731
    valid, test = worlds.known_rows(known, 500, seed=6), worlds.known_rows(known, 500, seed=4)
    base = make(None).fit(rows, valid=valid)
    ranker = make(known).fit(rows, valid=valid)
    gone = changed(changed(test, "user", ["stranger"] * 500), "item", ["none"] * 500)
    assert np.array_equal(ranker.predict(gone), base.predict(gone))
    labels = test["label"].to_numpy()
    assert auc(labels, ranker.predict(test)) > auc(labels, base.predict(test)) + 0.05
    alone = [entry for entry in ranker.history if "knowledge" not in entry]
    assert alone == base.history and len(ranker.history) == 8


@pytest.mark.parametrize("name", NAMES)
def test_only_knowledge_is_added_to_a_ranker(name, known, rows, monkeypatch):
    more = {"epochs": 2, "lr": 5e-3}
    base = fit(name, None, rows, **more)
    whole = fit(name, known, rows, **more)
    added = Ranker(name, worlds.SCHEMA, known, **{**SMALL, **more})
    added.fit(rows, init=base, only_knowledge=True)
    assert np.array_equal(added.predict(rows), whole.predict(rows))
    assert added.history == whole.history[2:]
    before = base.network.state_dict()
    after = added.network.state_dict()
    assert all(torch.equal(t, after[n]) for n, t in before.items()) and len(after) > len(before)
    # What knowledge changes may be learned at a rate of its own.
    slow = fit(name, known, rows, **more, knowledge_lr=0.5)
    half = Ranker(name, worlds.SCHEMA, known, **{**SMALL, **more, "lr": more["lr"] / 2})
    half.fit(rows, init=base, only_knowledge=True)
    assert np.array_equal(slow.predict(rows), half.predict(rows))
    assert not np.array_equal(slow.predict(rows), whole.predict(rows))
    # Too many rows to be kept are read in every epoch.
    monkeypatch.setattr(answers, "KEPT_BYTES", 0)
    again = fit(name, known, rows, **more)
    np.testing.assert_allclose(again.predict(rows), whole.predict(rows), atol=1e-4)
    with pytest.raises(ValueError, match="only_knowledge must be given with init, got none"):
        Ranker(name, worlds.SCHEMA, known).fit(rows, only_knowledge=True)
    with pytest.raises(ValueError, match="only_knowledge must be given with knowledge, got none"):
        Ranker(name, worlds.SCHEMA).fit(rows, init=base, only_knowledge=True)


@pytest.mark.parametrize("name", NAMES)
def test_knowledge_that_harms_on_the_validation_rows_changes_nothing(name, known, rows):
    contrary = worlds.known_rows(replace(known, vectors=-known.vectors), 500, seed=6)
    more = {"epochs": 3, "lr": 5e-3}
    base = Ranker(name, worlds.SCHEMA, **{**SMALL, **more}).fit(rows, valid=contrary)
    ranker = Ranker(name, worlds.SCHEMA, known, inputs=["matching"], **{**SMALL, **more})
    ranker.fit(rows, valid=contrary)
    assert np.array_equal(ranker.predict(rows), base.predict(rows))


def test_knowledge_of_nobody_is_refused(rows):
    late = replace(worlds.knowledge(), times=worlds.knowledge().times + 10_000)
    with pytest.raises(ValueError, match="must know a user and item of some row"):
        Ranker("dlrm", worlds.SCHEMA, late, **SMALL).fit(rows)
    with pytest.raises(ValueError, match="inputs must be some of item, direct, matching"):
        Ranker("dlrm", worlds.SCHEMA, late, inputs=["scores"])
    with pytest.raises(TypeError, match="users must be strings, got integers"):
        fit("dlrm", worlds.knowledge(), changed(rows, "user", list(range(2000))))


def test_shuffling_gives_every_moment_another_user():
    known = worlds.knowledge()
    other = shuffled(known, seed=3)
    owner = {
        tuple(v.flatten().tolist()): u for v, u in zip(known.vectors, known.users, strict=True)
    }
    found = [owner[tuple(v.flatten().tolist())] for v in other.vectors]
    assert sorted(found) == sorted(known.users)
    assert not any(a == b for a, b in zip(found, known.users, strict=True))
    assert torch.equal(other.item_vectors, known.item_vectors)
    with pytest.raises(ValueError, match="two users at least"):
        shuffled(replace(known, users=["u"] * len(known)))


def test_timestamps_join_like_seconds(known, rows):
    stamped = changed(rows, "time", pa.array(rows["time"].to_numpy() * 1000, pa.timestamp("ms")))
    ranker = fit("dlrm", known, rows, epochs=1)
    assert np.array_equal(ranker.predict(stamped), ranker.predict(rows))


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_to_a_rows_own_condition(name, known, rows):
    """Only through it can a row's condition say which answer counts."""
    schema = replace(worlds.SCHEMA, condition="asked")
    random = np.random.default_rng(0)

    def asked(table):
        """Labels follow the answer under the row's condition, which no feature tells."""
        which = random.integers(0, 4, len(table))
        moments = known.rows(table["user"].to_pylist(), table["time"].to_numpy())
        items = known.item_rows(table["item"])
        cosine = torch.einsum("rqd,rd->rq", known.vectors[moments], known.item_vectors[items])
        mine = cosine.numpy()[np.arange(len(table)), np.minimum(which, 2)]
        odds = np.where((moments < 0) | (items < 0) | (which == 3), 0, 6 * mine)
        label = (random.random(len(table)) < 1 / (1 + np.exp(-odds))).astype(np.int64)
        table = changed(table, "label", label)
        return table.append_column("asked", pa.array(np.array([*"abc", "none"])[which]))

    train, test = asked(rows), asked(worlds.known_rows(known, 1000, seed=4))
    ranker = Ranker(name, schema, known, inputs=["matching"], **{**SMALL, "epochs": 6, "lr": 5e-3})
    found = ranker.fit(train).predict(test)
    assert auc(test["label"].to_numpy(), found) > 0.66
    others = fit(name, known, train, inputs=["matching"]).predict(test)
    assert auc(test["label"].to_numpy(), found) > auc(test["label"].to_numpy(), others) + 0.03
    with pytest.raises(ValueError, match="rows lack the columns asked"):
        ranker.predict(test.drop_columns(["asked"]))
    with pytest.raises(TypeError, match="asked must be strings, got integers"):
        ranker.predict(changed(test, "asked", [1] * 1000))
    joint = replace(known, conditions=[{"scene": "a"}, {"scene": "b"}, {"scene": "c"}])
    with pytest.raises(ValueError, match="must be of single conditions"):
        Ranker(name, schema, joint, **SMALL).fit(train)


def test_similarities_by_hand(known):
    rows = worlds.rows(50)
    found = matching(known, rows, worlds.SCHEMA)
    moments = known.rows(rows["user"].to_pylist(), rows["time"].to_numpy())
    items = known.item_rows(rows["item"])
    for row in np.flatnonzero((moments >= 0) & (items >= 0)):
        expected = known.vectors[moments[row]] @ known.item_vectors[items[row]] / 0.05
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=1e-4)
    assert bool(found.isfinite().all())
