"""Modes and defaults of torch that a caller may have set change no number and keep nothing."""

import copy
import pickle

import numpy as np
import pytest
import torch

import pylum
from pylum.rank import impression_schema, impressions

AUTOCAST = {"device_type": "cpu", "dtype": torch.bfloat16}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    n = 300
    return pylum.Interactions.from_arrays(
        rng.integers(0, 20, n),
        rng.integers(0, 30, n),
        rng.integers(0, 10**6, n),
        condition={"scene": rng.choice(["a", "b"], n), "hour": rng.random(n)},
        event={"rating": rng.integers(1, 6, n)},
        items={"item": list(range(30)), "price": rng.random(30)},
    )


@pytest.fixture(scope="module")
def train(data):
    return data.split("global-time")[0]


def fit(train, **changes):
    config = pylum.LUMConfig(dim=16, layers=1)
    return pylum.pretrain(config, train, **{"epochs": 1, "progress": False, **changes})


@pytest.fixture(scope="module")
def trained(train):
    return fit(train)


@pytest.fixture
def model(trained):
    """Of which nothing is kept yet."""
    return copy.deepcopy(trained)


def ask(model, data, **options):
    asked = {"scene": ["a", "b"]}
    return pylum.generate(model, data, asked, k=3, exclude="none", **options)


def test_what_is_asked_under_autocast_is_that_of_the_weights(model, trained, data):
    expected = ask(trained, data)
    with torch.autocast(**AUTOCAST):
        found = ask(model, data)
        knowledge = pylum.query(model, data, {"scene": ["a"]})
        index = pylum.ItemIndex(model)
    assert torch.equal(found.embeddings, expected.embeddings)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(ask(model, data).scores, expected.scores)
    assert torch.equal(knowledge.item_vectors, index.vectors)
    assert torch.equal(index.vectors, pylum.ItemIndex(trained).vectors)


def test_a_cache_is_filled_alike_under_autocast(model, trained, data):
    cache = pylum.UserCache(model, 8192)
    with torch.autocast(**AUTOCAST):
        filled = ask(model, data, cache=cache)
    fresh = pylum.UserCache(trained, 8192)
    assert torch.equal(filled.embeddings, ask(trained, data, cache=fresh).embeddings)
    assert torch.equal(
        ask(model, data, cache=cache).embeddings, ask(trained, data, cache=fresh).embeddings
    )


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(torch.no_grad, id="no-grad"),
        pytest.param(torch.inference_mode, id="inference"),
        pytest.param(lambda: torch.autocast(**AUTOCAST), id="autocast"),
    ],
)
def test_training_gives_the_same_weights_in_every_mode(mode, train, trained, data):
    rows = impressions(data, np.arange(data.events.total) % 2 == 0, order="time")
    schema = impression_schema(data)
    expected = pylum.Ranker("dlrm", schema, epochs=1).fit(rows).predict(rows)
    with mode():
        model = fit(train)
        predicted = pylum.Ranker("dlrm", schema, epochs=1).fit(rows).predict(rows)
    for mine, other in zip(model.parameters(), trained.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert np.array_equal(predicted, expected)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(pylum.LUMConfig(dim=16, layers=1), id="lum"),
        pytest.param(
            pylum.HSTUConfig(
                dim=16, layers=1, task="ranking", tasks=(pylum.Task("liked", "rating", (4, 5)),)
            ),
            id="hstu-ranking",
        ),
    ],
)
def test_models_are_float32_whatever_the_default_is(config, data, tmp_path, double):
    again = pylum.Interactions.from_arrays(
        [1, 1, 2], [1, 2, 1], [1, 2, 3], items={"item": [1, 2], "price": [0.5, 2.0]}
    )
    assert again.items.columns["price"].dtype == torch.float32
    train, valid, test = data.split("global-time")
    model = pylum.pretrain(config, train, valid=valid, epochs=1, progress=False)
    model.save_pretrained(tmp_path / "model")
    assert type(model).from_pretrained(tmp_path / "model").fingerprint() == model.fingerprint()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    if isinstance(config, pylum.LUMConfig):
        assert ask(model, data).scores.dtype == torch.float32
    else:
        assert pylum.score(model, data.histories([1]), [1, 2]).values.dtype == torch.float32
        pylum.evaluate(model, test)


def test_weights_that_are_not_finite_are_not_given_back(train):
    with pytest.raises(ValueError, match="lr must be finite, got inf"):
        fit(train, lr=float("inf"))
    with pytest.raises(FloatingPointError, match="weights are not finite after step 1"):
        fit(train, lr=1e39)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"seed": 2**64}, "seed must be an integer in", id="seed-large"),
        pytest.param({"seed": None}, "seed must be an integer in", id="seed-none"),
        pytest.param({"device": "gpu"}, "device must be auto, cpu or cuda", id="device"),
    ],
)
def test_wrong_training_arguments(train, changes, message):
    with pytest.raises(ValueError, match=message):
        fit(train, **changes)


def test_numpy_numbers_are_numbers(train, tmp_path):
    model = fit(train, seed=np.int64(0), lr=np.float64(2e-3), checkpoint=tmp_path / "run")
    assert model.fingerprint() == fit(train, resume=tmp_path / "run").fingerprint()


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_caches_are_not_copied(copied, trained, data):
    with pytest.raises(TypeError, match=r"UserCache cannot be copied or pickled.*UserCache\.load"):
        copied(pylum.UserCache(trained, 64))
    knowledge = pylum.query(trained, data, {"scene": ["a"]})
    with pytest.raises(TypeError, match="KnowledgeCache cannot be copied or pickled"):
        copied(pylum.KnowledgeCache(knowledge))


def test_one_id_is_no_list_of_users(trained, data):
    cache = pylum.UserCache(trained, 64)
    served = pylum.KnowledgeCache(pylum.query(trained, data, {"scene": ["a"]}))
    calls = [
        data.histories,
        cache.invalidate,
        cache.prefetch,
        served.read,
        served.invalidate,
        lambda users: cache.append(users, [[]]),
    ]
    for call in calls:
        for wrong in ("u1", 7):
            with pytest.raises(TypeError, match="users must be a list of ids, got"):
                call(wrong)
    assert served.read(torch.tensor([1, 2])).users == [1, 2]


def test_users_of_several_types_make_no_table(trained):
    found = pylum.generate(trained, {"a": [], 1: []}, k=1, exclude="none")
    assert found.users == ["a", 1]
    with pytest.raises(TypeError, match="users must hold values of one type"):
        found.to_arrow()
