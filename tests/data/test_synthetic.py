"""The synthetic world: exactly as hard as intended, and its best prediction is the best."""

import numpy as np
import pyarrow as pa
import pytest

from pylum.data import ANY, Histories, Interactions, Schema, Synthetic
from pylum.data.schema import Field
from pylum.data.world import BRANDS, CATEGORIES, RELEASE, SCENE_SHARES, SCENES, START


@pytest.fixture(scope="module")
def world():
    return Synthetic()


@pytest.fixture(scope="module")
def data(world):
    return world.interactions()


def hit_rate(scores, chosen, k=10):
    return (np.argpartition(-scores, k, 1)[:, :k] == chosen[:, None]).any(1).mean()


def test_difficulty_is_pinned(world, data):
    """As a share of the best possible recall@10 (0.527)."""
    train, valid, test = data.split("loo-full")
    best = world.bayes_recall(test)
    assert best == pytest.approx(0.527, abs=0.01)
    assert world.bayes_recall(test, mode="wrong") / best <= 0.40
    assert 0.5 <= world.bayes_recall(test, mode="any") / best <= 0.70

    fit = train.merged(valid)
    items, scenes = fit.events.items.numpy(), fit.events.conditions["scene"].numpy()
    scored = test.events.targets.numpy()
    chosen = test.events.items.numpy()[scored]
    asked = test.events.conditions["scene"].numpy()[scored]
    popularity = np.zeros((2 + len(SCENES), len(data.vocabs.items)))
    np.add.at(popularity, (scenes, items), 1)
    assert hit_rate(popularity[asked], chosen) / best <= 0.30

    owner = np.repeat(np.arange(len(fit)), fit.events.lengths.numpy())
    assert fit.users == test.users
    counts = np.zeros((len(fit), len(data.vocabs.items)), np.float32)
    np.add.at(counts, (owner, items), 1)
    for seen in (counts, (counts > 0).astype(np.float32)):
        together = seen.T @ seen
        norm = np.sqrt(np.diag(together)) + 1e-9
        similar = together / norm / norm[:, None]
        assert hit_rate(seen @ similar, chosen) / best <= 0.60


def test_prediction_equals_a_sum_over_types():
    world = Synthetic(users=3, length=(4, 6), types=3, dayparts=True, drift=0.7, world=5)
    data = world.interactions()
    histories = data.histories()
    items = [world.names.index(i) for i in data.vocabs.items.values(data.events.items)]
    scenes = data.vocabs.conditions["scene"].values(data.events.conditions["scene"])
    dayparts = data.vocabs.conditions["daypart"].values(data.events.conditions["daypart"])
    liked = data.vocabs.outcomes["liked"].values(data.events.outcomes["liked"])
    times = data.events.times.tolist()

    def chance(item, kind, scene, daypart, previous, time):
        moved = float(world.drifted(np.array([time]))[0])
        c = -1 if previous is None else world.category[previous]
        b = -1 if previous is None else world.brand[previous]
        s, d = SCENES.index(scene), ("day", "evening").index(daypart)
        early, late = (t[kind, s, c, world.category[item]] for t in world.category_given)
        brand = world.brand_given[kind, d, b, world.brand[item]]
        shelf = world.item_given[int(time >= RELEASE), item]
        return ((1 - moved) * early + moved * late) * brand * shelf

    for user in range(3):
        start, stop = data.events.offsets[user : user + 2].tolist()
        joint, previous = np.ones(3), None
        for e in range(start, stop):
            for kind in range(3):
                like = world.like_given[kind, world.brand[items[e]]]
                joint[kind] *= like if liked[e] else 1 - like
                joint[kind] *= chance(items[e], kind, scenes[e], dayparts[e], previous, times[e])
            previous = items[e]
        for scene, daypart in (("home", "day"), ("gift", "evening"), (ANY, "day"), (ANY, ANY)):
            expected = np.zeros(world.num_items)
            for item in range(world.num_items):
                for s, share in zip(SCENES, SCENE_SHARES, strict=True):
                    for d in ("day", "evening"):
                        weight = (share if scene is ANY else s == scene) * (
                            0.5 if daypart is ANY else d == daypart
                        )
                        if weight:
                            expected[item] += weight * sum(
                                joint[kind] * chance(item, kind, s, d, previous, times[stop - 1])
                                for kind in range(3)
                            )
            found = world.bayes(histories, {"scene": [scene], "daypart": [daypart]})[user]
            np.testing.assert_allclose(found, expected / joint.sum(), rtol=1e-9)
            assert found.sum() == pytest.approx(1)


def test_entropy_is_what_the_prediction_loses(world, data):
    _, _, test = data.split("loo-full")
    for mode in ("right", "any"):
        # The standard error of the loss over 3,000 users is about 0.03 nats.
        assert world.loss(test, mode=mode) == pytest.approx(world.entropy(test, mode=mode), abs=0.1)
    assert world.entropy(test) < world.entropy(test, mode="any") - 0.5
    assert world.loss(test, mode="wrong") > world.loss(test) + 1


def test_history_reveals_the_type(world, data):
    moments = world._bayes.next_moments(data.histories(), ["home"])
    order = [int(user.split("-")[1]) for user in data.users]
    assert (moments.posterior.argmax(1) == world.hidden_types()[order]).mean() > 0.97


def test_queries_are_laid_out_user_by_user(world, data):
    histories = data.histories(["user-0000002", "nobody"])
    both = world.bayes(histories, ["search", "night"])
    assert both.shape == (4, world.num_items)
    alone = world.bayes(data.histories(["nobody"]), ["night"])
    np.testing.assert_array_equal(both[3], alone[0])
    # Of a user not seen at all: the mean over types, without a previous item.
    tables = world.category_given[0][:, SCENES.index("night"), -1]
    brands = world.brand_given[:, 0, -1]
    shelves = np.einsum("tc,tb->cb", tables, brands).reshape(-1) / world.types
    np.testing.assert_allclose(alone[0].reshape(len(shelves), -1).sum(1), shelves)
    later = world.bayes(data.histories(["nobody"]), ["night"], times=[RELEASE])
    assert (alone[0, world.is_cold] == 0).all()
    assert (later[0, world.is_cold] > 0).all()


def test_batches_do_not_matter_and_seeds_do():
    world = Synthetic(users=600)
    whole = pa.Table.from_batches(world.record_batches())
    small = list(world.record_batches(rows=1000))
    assert {b.num_rows for b in small[:-1]} == {1000}
    assert pa.Table.from_batches(small).equals(whole)
    fewer = pa.Table.from_batches(Synthetic(users=300).record_batches())
    assert whole.slice(0, fewer.num_rows).equals(fewer)
    other = pa.Table.from_batches(Synthetic(users=600, seed=1).record_batches())
    assert not other.column("item").equals(whole.column("item"))
    assert Synthetic(seed=1).names == world.names
    assert np.array_equal(Synthetic(seed=1).category_given[0], world.category_given[0])
    assert not np.array_equal(Synthetic(world=1).category_given[0], world.category_given[0])


def test_cold_items_come_only_in_the_test_part(world, data):
    train, valid, test = data.split("global-time")
    cold = data.vocabs.items.rows([n for n, c in zip(world.names, world.is_cold, strict=True) if c])
    assert len(cold) == world.num_items // 10
    for part in (train, valid):
        assert not np.isin(part.events.items, cold).any()
    scored = test.events.items[test.events.targets].numpy()
    assert np.isin(cold, scored).mean() > 0.95
    assert np.isin(scored, cold).sum() > 500
    # Every shelf keeps an item that is known, so that features say what a cold one is like.
    assert (world.is_cold.reshape(-1, world.items_per_shelf).mean(1) < 1).all()
    rows = data.vocabs.items.rows(world.names)
    for name, values, codes in (
        ("category", CATEGORIES, world.category),
        ("brand", BRANDS, world.brand),
    ):
        known = data.items.columns[name].numpy()[rows]
        expected = [values[c] for c in codes]
        assert data.vocabs.features[name].values(known) == expected
    np.testing.assert_allclose(data.items.columns["price"].numpy()[rows], world.price, rtol=1e-6)


def test_histories_from_outside(world):
    schema = Schema((Field("scene"),))
    histories = Histories.from_dicts({"me": [{"item": "tea-00", "time": START}]}, schema)
    chances = world.bayes(histories)
    assert chances.shape == (1, world.num_items)
    assert chances.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="'beer' of user 'me'"):
        world.bayes(
            Histories.from_dicts({"me": [{"item": "beer", "time": START}]}, schema), ["home"]
        )
    with pytest.raises(ValueError, match="scene must be of this world"):
        world.bayes(histories, ["office"])
    with pytest.raises(ValueError, match=r"times must be \[1\]"):
        world.bayes(histories, ["home"], times=[1, 2])
    with pytest.raises(ValueError, match="mode must be"):
        world.bayes_recall(Interactions.from_arrays(["u"], ["tea-00"], [START]), mode="best")


@pytest.mark.parametrize("options", [{"users": 0}, {"types": 0}, {"cold": 1.0}, {"length": (3, 2)}])
def test_bad_worlds(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Synthetic(**options)
