"""Knowledge in a ranker: as of each row, pinned to its model, missing, late, in-sample."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from pylum.evaluate.metrics import auc
from pylum.rank import Ranker
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


def test_all_missing_is_not_below_the_base():
    """Trained with knowledge, asked without any: as good as never having had it."""
    known = worlds.knowledge()
    rows, test = worlds.rows(6000), worlds.rows(6000, seed=9)
    gone = changed(test, "user", ["stranger"] * 6000)
    labels = test["label"].to_numpy()
    difference = []
    for seed in range(4):
        more = {"seed": seed, "epochs": 8, "lr": 0.01, "batch_rows": 256, "hidden": (16,)}
        base = fit("dlrm", None, rows, **more).predict(test)
        without = fit("dlrm", known, rows, inputs=["matching"], **more).predict(gone)
        difference.append(auc(labels, without) - auc(labels, base))
    spread = np.std(difference, ddof=1) / len(difference) ** 0.5
    assert np.mean(difference) + 2 * spread > -0.002


@pytest.mark.parametrize("name", ["wide_deep", "dlrm"])
def test_weight_decay_and_l1_weigh_as_without_knowledge(name, known, rows):
    """Rows of which nothing is known train the first answer as a ranker without knowledge does."""
    more = {"weight_decay": 0.3, "ftrl_l1": 2.0, "epochs": 1, "knowledge_dropout": 0.0}
    base = fit(name, None, rows, **more)
    some = np.zeros(len(rows), bool)
    some[np.flatnonzero(known.rows(rows["user"], rows["time"].to_numpy()) >= 0)[:3]] = True
    other = Ranker(name, worlds.SCHEMA, known, **{**SMALL, "lr": 5e-3, **more})
    # Three rows are known, whose second answer has not begun to move what both read.
    other.fit(rows, known=some)
    strangers = changed(rows, "user", ["stranger"] * len(rows))
    strangers = changed(strangers, "item", ["none"] * len(rows))
    plain = base.predict(changed(rows, "item", ["none"] * len(rows)))
    np.testing.assert_allclose(other.predict(strangers), plain, atol=2e-3)


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
