"""evaluate for a ranking HSTU: each event as pylum.score has it, metrics as scikit-learn does."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics as theirs

import pylum
from pylum import HSTU, HSTUConfig, Interactions, Task, evaluate, score
from pylum.data import Field
from pylum.evaluate import RankingReport
from pylum.generation.choices import predicted_choices
from tests.tolerance import MODEL

CLOSE = MODEL[torch.float32]
TASKS = (Task("liked", "rating", (4, 5)), Task("loved", "rating", (5,)), Task("spent", "minutes"))
MASKS = {"variant": "production", "window": 5, "context": ("home",)}
PROTOCOLS = ("loo-full", "global-time", "rest-auc", "din-auc")


@functools.cache
def data() -> Interactions:
    """Some ratings and minutes are unknown; a user stays where he lives."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 26, 40)
    users = np.repeat(np.arange(40), lengths)
    total = len(users)
    rating = random.integers(1, 6, total).astype(object)
    rating[::7] = None
    minutes = (random.gamma(2.0, 10.0, total) + users).astype(np.float32)
    minutes[::5] = np.nan
    return Interactions.from_arrays(
        [f"u{u}" for u in users],
        [f"i{i}" for i in random.integers(0, 12, total)],
        (1_700_000_000 + random.integers(0, 10**6, total)).tolist(),
        condition={
            "home": [["here", "there"][u % 2] for u in users],
            "scene": random.choice(["a", "b"], total).tolist(),
        },
        event={"rating": rating.tolist(), Field("minutes", "number"): minutes},
    )


def model(**changes) -> HSTU:
    """Random weights."""
    torch.manual_seed(1)
    sizes = {"dim": 16, "layers": 2, "max_length": 10, "tasks": TASKS, **changes}
    made = HSTU(HSTUConfig(task="ranking", **sizes), data().schema, data().vocabs, data().items)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    made.standardise(data().events)
    return made.eval()


def events_of(test, user) -> list[dict]:
    """A user's events with raw values."""
    part = test.histories([user]).events
    rows = {"home": "conditions", "scene": "conditions", "rating": "outcomes"}
    out = []
    for n in range(part.total):
        event = {
            "item": test.vocabs.items.values([int(part.items[n])])[0],
            "time": int(part.times[n]),
            "minutes": float(part.outcomes["minutes"][n]),
        }
        for name, group in rows.items():
            row = int(getattr(part, group)[name][n])
            if row:
                event[name] = getattr(test.vocabs, group)[name].values([row])[0]
        out.append(event)
    return out


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="research"),
        pytest.param(MASKS, id="production-masks"),
        pytest.param({**MASKS, "min_full": 3}, id="min-full"),
        pytest.param({"window_step": 4}, id="window-step"),
    ],
)
def test_each_choice_is_what_score_gives_it(changes):
    """Also beyond the window, and in passes that hold a few histories."""
    made, test = model(**changes), data()
    users = test.users[:6]
    events = test.histories(users).encode(made.vocabs, made.schema)
    order = torch.randperm(events.total, generator=torch.Generator().manual_seed(0))[:40]
    found = predicted_choices(made, events, order, batch_tokens=60)
    lists = [events_of(test, user) for user in users]
    assert max(map(len, lists)) > 12
    owner = torch.repeat_interleave(events.lengths)
    for line, site in zip(found, order.tolist(), strict=True):
        mine = lists[int(owner[site])]
        n = site - int(events.offsets[owner[site]])
        asked = {name: [mine[n][name]] for name in ("home", "scene")}
        expected = score(
            made, {"u": mine[:n]}, [mine[n]["item"]], asked, query_time=mine[n]["time"]
        )
        torch.testing.assert_close(line, expected.values[0], atol=60 * CLOSE, rtol=0)
        torch.testing.assert_close(line[:2], expected.values[0][:2], atol=CLOSE, rtol=0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_metrics_equal_scikit_learn(protocol):
    made, test = model(), data().split(protocol)[2]
    report = evaluate(made, test, samples=20)
    assert isinstance(report, RankingReport)
    targets = test.events.targets
    sites = torch.arange(test.events.total) if targets is None else targets.nonzero()[:, 0]
    found = predicted_choices(made, test.events, sites).numpy().astype(float)
    ratings = test.events.outcomes["rating"][sites]
    raw = np.array([v or 0 for v in test.vocabs.outcomes["rating"].values(ratings.tolist())])
    known = ratings.numpy() > 0
    for i, (task, least) in enumerate((("liked", 4), ("loved", 5))):
        truth, guess = raw[known] >= least, found[known, i]
        values = report[task]
        rate = truth.mean()
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
        assert values["AUC"].value == pytest.approx(theirs.roc_auc_score(truth, guess))
        assert values["log loss"].value == pytest.approx(theirs.log_loss(truth, guess))
        assert values["NE"].value == pytest.approx(theirs.log_loss(truth, guess) / entropy)
        scores = report.tasks[task]
        assert scores.rows == len(truth) and scores.mean == pytest.approx(rate)
        assert set(scores.gains) == {"item mean", "item + user mean"}
    minutes = test.events.outcomes["minutes"][sites].numpy()
    has = ~np.isnan(minutes)
    squared = theirs.mean_squared_error(minutes[has], found[has, 2])
    assert report["spent"]["MSE"].value == pytest.approx(squared)
    absolute = theirs.mean_absolute_error(minutes[has], found[has, 2])
    assert report["spent"]["MAE"].value == pytest.approx(absolute)
    train, valid, _ = data().split(protocol)
    before = train.merged(valid).events
    learned = (
        before.outcomes["minutes"]
        if before.targets is None
        else before.outcomes["minutes"][before.targets]
    )
    constant = theirs.mean_squared_error(
        minutes[has], np.full(has.sum(), np.nanmean(learned.double().numpy()))
    )
    assert report.tasks["spent"].values["mean"]["MSE"].value == pytest.approx(constant, rel=1e-5)
    printed = str(report)
    assert all(word in printed for word in ("liked:", "NE", "spent:", "MAE", "gain over mean"))
    plain = json.loads(report.to_json())
    assert plain["tasks"]["liked"]["values"]["HSTU"]["NE"]["value"] == report["liked"]["NE"].value


def test_seeds_are_averaged():
    test = data().split("global-time")[2]
    one, other = model(), model(layers=1)
    alone = [evaluate(m, test, samples=5)["liked"]["AUC"].value for m in (one, other)]
    both = evaluate([one, other], test, samples=5)
    assert both.seeds == 2 and both["liked"]["AUC"].value == pytest.approx(np.mean(alone))


def test_wrong_models_and_tests_are_errors():
    test = data().split("global-time")[2]
    retrieval = HSTU(HSTUConfig(dim=8), data().schema, data().vocabs, data().items).eval()
    with pytest.raises(ValueError, match="models for ranking or models for retrieval, got both"):
        evaluate([model(), retrieval], test)
    with pytest.raises(ValueError, match="model must be models of the same tasks"):
        evaluate([model(), model(tasks=TASKS[:2])], test)
    with pytest.raises(ValueError, match="test must be a part made by split"):
        evaluate(model(), data())
    with pytest.raises(ValueError, match=r"split\('loo-full' or 'global-time'\)"):
        evaluate(retrieval, data().split("rest-auc")[2])
    events = test.events
    low = torch.full_like(
        events.outcomes["rating"], int(test.vocabs.outcomes["rating"].rows([1])[0])
    )
    same = replace(test, events=replace(events, outcomes={**events.outcomes, "rating": low}))
    with pytest.raises(ValueError, match="must hold both answers to task 'liked', got 0"):
        evaluate(model(), same)
    fitted = pylum.pretrain(
        HSTUConfig(dim=8, task="ranking", tasks=TASKS), data(), epochs=0, progress=False
    )
    with pytest.raises(ValueError, match="was trained on"):
        evaluate(fitted, test)
    assert evaluate(fitted, test, allow_in_sample=True, samples=2)["spent"]["MAE"].value < 100
