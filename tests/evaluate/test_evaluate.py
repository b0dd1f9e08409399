"""evaluate against brute force: what generate answers, and counting by hand."""

import json

import numpy as np
import pytest
import torch

import pylum
from pylum import Interactions, evaluate, generate
from pylum.model import TrainingRecord
from pylum.train.validation import Validation
from tests.serving.worlds import SCENES, data, model

PROTOCOLS = ("loo-full", "global-time")


def plain_model(**changes):
    return model(query_time=False, calendar=(), **changes)


def by_hand(lum, test, ask, query_time=False):
    """Rank of every target: its place among all answers of generate after its prefix."""
    ranks, users = [], []
    events = test.events
    targets = torch.ones(events.total).bool() if events.targets is None else events.targets
    for b, user in enumerate(test.users):
        start, stop = int(events.offsets[b]), int(events.offsets[b + 1])
        for e in range(start, stop):
            if not targets[e]:
                continue
            prefix = test.histories([user])
            part = prefix.events.take(torch.arange(e - start), torch.tensor([0, e - start]))
            prefix = pylum.Histories([user], part, prefix.schema, prefix.vocabs)
            out = generate(lum, prefix, ask(e), k=60, exclude="history")
            ranks.append(out.rows[0].tolist().index(int(events.items[e])))
            users.append(user)
    return np.array(ranks), users


def own_conditions(test):
    def ask(e):
        columns = test.events.conditions
        scene = test.vocabs.conditions["scene"].values([int(columns["scene"][e])])[0]
        return {
            "scene": [scene],
            "hour": [float(columns["hour"][e])],
            "text": columns["text"][e : e + 1],
        }

    return ask


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("conditions", ["true", "any", "scene"])
def test_equals_generate(protocol, conditions):
    lum = plain_model()
    test = data().split(protocol)[2]
    ask = {
        "true": own_conditions(test),
        "any": lambda e: None,
        "scene": lambda e: {"scene": own_conditions(test)(e)["scene"]},
    }[conditions]
    ranks, users = by_hand(lum, test, ask)
    report = evaluate(lum, test, conditions=["scene"] if conditions == "scene" else conditions)
    assert report.events == len(ranks)
    assert report.users == len(set(users))
    assert report["HR@10"].value == pytest.approx((ranks < 10).mean())
    gains = np.where(ranks < 10, 1 / np.log2(ranks + 2), 0)
    assert report["NDCG@10"].value == pytest.approx(gains.mean())
    assert report["MRR"].value == pytest.approx((1 / (ranks + 1)).mean())
    assert report["HR@10"].low <= report["HR@10"].value <= report["HR@10"].high


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_equals_the_trainers_validation(protocol):
    """Two independent ways to rank the same targets."""
    lum = plain_model(max_length=6)
    valid = data().split(protocol)[1]
    events = valid.histories().encode(lum.vocabs, lum.schema)
    theirs = Validation(events, max_length=6, batch_events=100, seed=0).scores(lum)
    report = evaluate(lum, valid)
    assert report["HR@10"].value == pytest.approx(theirs["hr@10"])
    assert report["NDCG@10"].value == pytest.approx(theirs["ndcg@10"])


@pytest.mark.parametrize("part", [1, 2])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_popularity_by_hand(protocol, part):
    """Counts of what came before the part; seen items removed; ties to the lower row."""
    parts = data().split(protocol)
    test = parts[part]
    train = parts[0] if part == 1 else parts[0].merged(parts[1])
    chosen = (
        train.events.items
        if train.events.targets is None
        else train.events.items[train.events.targets]
    )
    counts = torch.bincount(chosen, minlength=61).tolist()
    hits = []
    events = test.events
    targets = torch.ones(events.total).bool() if events.targets is None else events.targets
    for b in range(len(test)):
        start, stop = int(events.offsets[b]), int(events.offsets[b + 1])
        for e in range(start, stop):
            if targets[e]:
                seen = set(events.items[start:e].tolist())
                order = sorted(
                    (r for r in range(1, 61) if r not in seen), key=lambda r: (-counts[r], r)
                )
                hits.append(int(events.items[e]) in order[:10])
    report = evaluate(plain_model(), test)
    assert report.values["popularity"]["HR@10"].value == pytest.approx(np.mean(hits))


def test_popularity_by_condition_uses_the_condition():
    """Where each scene has items of its own, the floor by scene finds them."""
    rng = np.random.default_rng(0)
    users, events = 60, 12
    scene = rng.integers(0, 3, users * events)
    item = scene * 10 + rng.integers(0, 10, users * events)
    world = Interactions.from_arrays(
        np.repeat(np.arange(users), events),
        item,
        np.arange(users * events),
        [SCENES[s] for s in scene],
    )
    lum = pylum.LUM(pylum.LUMConfig(dim=8), world.schema, world.vocabs, world.items)
    report = evaluate(lum, world.split("loo-full")[2], exclude="none")
    assert report.values["popularity by condition"]["HR@10"].value == 1.0
    assert report.values["popularity"]["HR@10"].value < 0.7
    assert report.gains["popularity by condition"]["HR@10"].value < 0


def test_refuses_what_the_model_was_trained_on():
    train, _, test = data().split("global-time")
    lum = plain_model()
    before = lum.record
    try:
        lum.record = TrainingRecord(0, train.event_hashes(), train.fingerprint)
        evaluate(lum, test)
        lum.record = TrainingRecord(0, data().event_hashes(), data().fingerprint)
        with pytest.raises(ValueError, match=f"trained on {test.num_targets} of the"):
            evaluate(lum, test)
        evaluate(lum, test, allow_in_sample=True)
    finally:
        lum.record = before


def test_seeds_are_averaged():
    test = data().split("loo-full")[2]
    models = [plain_model(), plain_model(layers=1)]
    both = evaluate(models, test)
    alone = [evaluate(each, test)["HR@10"].value for each in models]
    assert both["HR@10"].value == pytest.approx(np.mean(alone))
    assert both.seeds == 2
    assert "2 seeds and users" in str(both)


def test_repeats_and_unknown_items_are_missed():
    """A target that may not be answered is a miss, for the floors too."""
    users = np.repeat(np.arange(20), 5)
    items = np.tile([1, 2, 3, 4, 1], 20)
    world = Interactions.from_arrays(users, items, np.arange(100))
    lum = pylum.LUM(pylum.LUMConfig(dim=8), world.schema, world.vocabs, world.items)
    test = world.split("loo-full")[2]
    assert evaluate(lum, test).exclude == "history"
    removed = evaluate(lum, test, exclude="history")
    assert removed.repeated_targets == 20
    assert removed["MRR"].value == pytest.approx(0.0)
    assert removed.values["popularity"]["MRR"].value == pytest.approx(0.0)
    kept = evaluate(lum, test, exclude="none")
    assert kept["HR@10"].value == 1.0
    few = Interactions.from_arrays(users, np.tile([1, 2, 3, 4, 2], 20), np.arange(100))
    small = pylum.LUM(pylum.LUMConfig(dim=8), few.schema, few.vocabs, few.items)
    other = Interactions.from_arrays(users, np.tile([1, 2, 3, 4, 9], 20), np.arange(100))
    report = evaluate(small, other.split("loo-full")[2])
    assert report.unknown_targets == 20
    assert report["HR@10"].value == 0.0


def test_report():
    report = evaluate(plain_model(), data().split("global-time")[2], k=5)
    text = str(report)
    assert "global-time, test" in text
    for name in ("LUM", "popularity", "popularity by scene", "gain over popularity", "HR@5"):
        assert name in text
    plain = json.loads(report.to_json())
    assert plain == report.to_dict()
    assert plain["values"]["LUM"]["HR@5"]["low"] <= plain["values"]["LUM"]["HR@5"]["high"]
    gain = plain["gains"]["popularity"]["MRR"]["value"]
    values = plain["values"]
    assert gain == pytest.approx(
        values["LUM"]["MRR"]["value"] - values["popularity"]["MRR"]["value"]
    )


def test_query_time_changes_answers_only_where_read():
    clock = model()
    test = data().split("loo-full")[2]
    without, given = evaluate(clock, test), evaluate(clock, test, query_time=True)
    assert without["MRR"].value != given["MRR"].value
    blind = plain_model()
    assert evaluate(blind, test)["MRR"] == evaluate(blind, test, query_time=True)["MRR"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param({"test": data}, ValueError, "part made by split", id="whole"),
        pytest.param(
            {"test": lambda: 3}, TypeError, "test must be Interactions, got int", id="test"
        ),
        pytest.param({"model": []}, ValueError, "at least one model", id="no-model"),
        pytest.param({"model": [3]}, TypeError, "pylum.LUM or pylum.HSTU, got int", id="model"),
        pytest.param({"k": 0}, ValueError, "k must be a positive integer", id="k"),
        pytest.param(
            {"conditions": "scene"}, ValueError, "'true', 'any' or a list", id="condition"
        ),
        pytest.param({"conditions": ["x"]}, ValueError, "fields of the model", id="field"),
        pytest.param({"exclude": "seen"}, ValueError, "exclude must be", id="exclude"),
    ],
)
def test_errors(arguments, error, message):
    given = {"model": plain_model(), "test": lambda: data().split("loo-full")[2], **arguments}
    with pytest.raises(error, match=message):
        evaluate(given.pop("model"), given.pop("test")(), **given)
