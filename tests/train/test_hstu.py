"""HSTU through the same training loop: what it learns, targets, stops and resumes to the bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import pylum
from pylum import HSTUConfig, Interactions, Task, evaluate, generate, pretrain
from pylum.train import run as run_module
from pylum.train.objective import Objective
from tests.train.chains import make_data

SMALL = HSTUConfig(dim=16, layers=2, max_length=16, dropout=0.1)
FAST = {"epochs": 3, "batch_tokens": 128, "warmup": 5, "progress": False}
LIKES = (Task("liked", "rating", ("up",)),)


def walks(users: int = 80, items: int = 31) -> Interactions:
    """Steps of one or seven along a ring; a user takes the same step each time."""
    random = np.random.default_rng(0)
    columns = [[], [], [], []]
    for u in range(users):
        at, step = int(random.integers(items)), int(random.choice([1, 7]))
        for k in range(int(random.integers(4, 28))):
            at = (at + step) % items
            for column, value in zip(columns, (f"u{u}", f"i{at}", 1000 * k, True), strict=True):
                column.append(value)
    return Interactions.from_arrays(*columns[:3])


def tastes(users: int = 120, items: int = 20) -> Interactions:
    """A user likes the even items, or the odd ones; which, only the ratings tell."""
    random = np.random.default_rng(0)
    columns = [[], [], [], []]
    for u in range(users):
        likes = int(random.integers(2))
        for k in range(int(random.integers(4, 16))):
            item = int(random.integers(items))
            rating = "up" if item % 2 == likes else "down"
            for column, value in zip(columns, (f"u{u}", f"i{item}", k, rating), strict=True):
                column.append(value)
    return Interactions.from_arrays(*columns[:3], event={"rating": columns[3]})


def weights(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="research"),
        pytest.param({"variant": "production"}, id="production"),
        pytest.param({"project": False}, id="no-projections"),
    ],
)
def test_learns_the_next_item(changes, tmp_path):
    train, valid, test = walks().split("loo-full")
    seen = []
    model = pretrain(
        SMALL.replace(**changes),
        train,
        valid=valid,
        epochs=20,
        lr=1e-2,
        batch_tokens=256,
        warmup=10,
        progress=False,
        on_epoch=seen.append,
    )
    assert max(entry["ndcg@10"] for entry in seen) > 0.85
    for query_time in (False, True):
        report = evaluate(model, test, query_time=query_time, samples=50)
        assert report["NDCG@10"].value > 0.7
        assert "HSTU" in report.values
    model.save_pretrained(tmp_path / "m")
    loaded = pylum.HSTU.from_pretrained(tmp_path / "m")
    users = test.histories().users[:5]
    asked = generate(loaded, test.histories(users), k=3, exclude="none")
    assert torch.equal(asked.rows, generate(model, test.histories(users), k=3, exclude="none").rows)
    with pytest.raises(ValueError, match="was trained on"):
        evaluate(model, train.whole.split("loo-full")[1].merged(train))


def test_learns_what_users_like():
    train, valid, _ = tastes().split("loo-full")
    seen = []
    model = pretrain(
        HSTUConfig(dim=16, layers=2, max_length=16, dropout=0.0, task="ranking", tasks=LIKES),
        train,
        valid=valid,
        epochs=25,
        lr=1e-2,
        batch_tokens=256,
        warmup=10,
        progress=False,
        on_epoch=seen.append,
    )
    # Without the ratings seen so far an item is liked by half the users.
    assert max(entry["auc"] for entry in seen) > 0.95
    assert min(entry["logloss"] for entry in seen) < 0.35
    liked = evaluate(model, tastes().split("loo-full")[1], samples=50)["liked"]
    assert liked["AUC"].value > 0.95 and liked["NE"].value < 0.5
    assert liked["log loss"].value == pytest.approx(min(e["logloss"] for e in seen), abs=0.05)
    up = [{"item": f"i{n}", "time": n, "rating": "up"} for n in (0, 4, 8, 12)]
    down = [{**event, "rating": "down"} for event in up]
    scores = pylum.score(model, {"even": up, "odd": down}, ["i2", "i3"]).values
    assert scores[0] > scores[1] + 0.5 and scores[3] > scores[2] + 0.5


def test_learns_which_of_two_items_is_chosen(tmp_path):
    """A user always takes the same step; beside the item it leads to stands another one."""
    data = walks()
    random = np.random.default_rng(1)
    others = [[f"i{i}"] for i in random.integers(0, 31, data.events.total)]
    train, valid, test = data.beside(others).split("loo-full")
    config = SMALL.replace(task="ranking", tasks=(Task("chosen", "item"),), dropout=0.0)
    options = {"batch_tokens": 256, "warmup": 10, "progress": False, "seed": 1}
    seen = []
    model = pretrain(
        config, train, valid=valid, epochs=20, lr=1e-2, on_epoch=seen.append, **options
    )
    assert max(entry["auc"] for entry in seen) > 0.9
    assert evaluate(model, test, samples=20)["chosen"]["NE"].value < 0.7
    path = tmp_path / "state"
    pretrain(config, train, epochs=1, checkpoint=path, **options)
    fewer = data.beside([[]] * data.events.total).split("loo-full")[0]
    with pytest.raises(ValueError, match=r"same arguments: \['data'\] differ"):
        pretrain(config, fewer, epochs=1, resume=path, **options)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        pytest.param(SMALL, {}, id="retrieval"),
        pytest.param(SMALL.replace(length_alpha=1.5), {}, id="stochastic-length"),
        pytest.param(SMALL.replace(task="ranking", tasks=LIKES), {}, id="ranking"),
        pytest.param(SMALL, {"user_rate": 6.0}, id="users-at-a-rate"),
    ],
)
def test_resumes_to_the_bit(config, options, tmp_path, monkeypatch):
    data, options = tastes(), {**FAST, **options}
    whole = weights(pretrain(config, data, seed=1, **options))
    assert same(whole, weights(pretrain(config, data, seed=1, **options)))
    step, calls = run_module.Run._step, []

    def interrupted(self, plan):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return step(self, plan)

    monkeypatch.setattr(run_module.Run, "_step", interrupted)
    path = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, data, seed=1, checkpoint=path, **options)
    monkeypatch.undo()
    resumed = pretrain(config, data, seed=1, resume=path, **options)
    assert same(whole, weights(resumed))
    with pytest.raises(ValueError, match="same arguments: \\['recipe'\\] differ"):
        pretrain(config, data, seed=1, resume=path, **{**options, "user_rate": 2.0})


def test_only_targets_are_predicted():
    """A disliked item is context: whatever comes after it, the loss is taken at liked ones."""
    data = tastes(users=30)
    liked = data.events.outcomes["rating"] == int(data.vocabs.outcomes["rating"].rows(["up"])[0])
    model = pretrain(SMALL.replace(dropout=0.0), data, epochs=0, progress=False).train()
    events = replace(data.events, targets=liked)
    objective = Objective.of("full", events, len(data.vocabs.items))
    alone = sum(
        objective.loss(model, replace(events, targets=torch.arange(events.total) == n)).item()
        for n in liked.nonzero()[:20, 0].tolist()
    )
    some = torch.zeros_like(liked)
    some[liked.nonzero()[:20, 0]] = True
    together = objective.loss(model, replace(events, targets=some)).item()
    assert together == pytest.approx(alone, rel=1e-5)


def test_hstu_takes_no_conditions():
    train, _, test = make_data().split("loo-full")
    model = pretrain(SMALL, train, epochs=0, progress=False)
    with pytest.raises(ValueError, match="conditions must be 'any' for an HSTU"):
        evaluate(model, test)
    assert evaluate(model, test, conditions="any", samples=10).values["HSTU"]
    with pytest.raises(ValueError, match="conditions must be None for an HSTU"):
        generate(model, test.histories(), ["near"])
    with pytest.raises(ValueError, match="model must be trained for ranking"):
        pylum.score(model, test.histories(), ["i1"])
    with pytest.raises(ValueError, match="init must have the shape of cfg"):
        pretrain(SMALL.replace(layers=1), train, init=model, **FAST)
