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
from pylum.model.hstu_rows import labelled_rows
from pylum.train.ranking import RankingObjective
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


SHOWN = [pytest.param({}, id="research"), pytest.param(MASKS, id="production-masks")]


def beside() -> Interactions:
    """Up to two items were shown beside each event, one of them known to nobody."""
    random = np.random.default_rng(1)
    lists = [
        [f"i{i}" for i in random.integers(0, 13, random.integers(0, 3))]
        for _ in range(data().events.total)
    ]
    return data().beside(lists)


@pytest.mark.parametrize("changes", [*SHOWN, pytest.param({**MASKS, "min_full": 3}, id="min-full")])
def test_what_is_shown_beside_is_what_score_gives_it(changes):
    """Own items too, whichever way they are asked; nothing that was chosen is seen."""
    made, test = model(**changes), data()
    users = test.users[:4]
    events = test.histories(users).encode(made.vocabs, made.schema)
    sites = torch.arange(events.total).repeat_interleave(2)[::3]
    items = torch.randint(0, 13, sites.shape, generator=torch.Generator().manual_seed(0))
    found = predicted_choices(made, events, sites, items, batch_tokens=60)
    lists = [events_of(test, user) for user in users]
    owner = torch.repeat_interleave(events.lengths)
    for line, site, item in zip(found, sites.tolist(), items.tolist(), strict=True):
        mine = lists[int(owner[site])]
        n = site - int(events.offsets[owner[site]])
        raw = made.vocabs.items.values([item])[0] or "nobody's"
        asked = {name: [mine[n][name]] for name in ("home", "scene")}
        expected = score(made, {"u": mine[:n]}, [raw], asked, query_time=mine[n]["time"])
        torch.testing.assert_close(line[:2], expected.values[0][:2], atol=CLOSE, rtol=0)
    own = predicted_choices(made, events, sites, events.items[sites])
    plain = predicted_choices(made, events, sites)
    torch.testing.assert_close(own[:, :2], plain[:, :2], atol=CLOSE, rtol=0)


@pytest.mark.parametrize("changes", SHOWN)
def test_the_loss_of_what_was_shown(changes):
    """Mean over what was shown at a moment, of entropies of what the rows are predicted."""
    tasks = (Task("chosen", "item"), TASKS[0])
    events = beside().events
    made = model(**changes, tasks=tasks, dropout=0.0, id_dropout=0.0)
    events = events.users(torch.arange(8), last=10)
    targets = torch.arange(events.total) % 3 > 0
    sites = targets.nonzero()[:, 0]
    rows = labelled_rows(made.tasks, events, sites)
    assert torch.equal(rows.sites.unique(), sites)
    beside_it = rows.labels[:, 0] == 0
    assert int((~beside_it).sum()) == len(sites)
    assert int(beside_it.sum()) == int((events.shown[sites] >= 0).sum()) > 5
    assert bool(rows.labels[beside_it, 1].isnan().all())
    found = RankingObjective().loss(made, replace(events, targets=targets))
    p = predicted_choices(made, events, rows.sites, rows.items)
    known = ~rows.labels.isnan()
    entropy = torch.nn.functional.binary_cross_entropy(
        p[known], rows.labels[known], reduction="sum"
    )
    expected = entropy * len(sites) / len(rows.sites) / 2
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-4)
    found.backward()
    assert float(made.begin.grad.abs().max()) > 0
    # What was chosen at a moment is not seen by what was shown beside it, nor by itself.
    last = int(sites[-1])
    other = events.items.clone()
    other[last] = (other[last] + 1) % 12
    moved = predicted_choices(made, replace(events, items=other), rows.sites, rows.items)
    assert torch.equal(moved, p)


def test_a_chosen_item_among_those_shown():
    tasks = (Task("chosen", "item"),)
    whole = beside()
    test = whole.split("global-time")[2]
    made = model(tasks=tasks)
    report = evaluate(made, test, samples=5).tasks["chosen"]
    shown = test.events.shown[test.events.targets]
    count = test.num_targets + int((shown >= 0).sum())
    assert report.rows == count and report.mean == pytest.approx(test.num_targets / count)
    with pytest.raises(ValueError, match="the data must hold what was shown beside"):
        evaluate(made, data().split("global-time")[2])
    with pytest.raises(ValueError, match="the data must hold what was shown beside"):
        pylum.pretrain(HSTUConfig(dim=8, task="ranking", tasks=tasks), data(), progress=False)
    with pytest.raises(ValueError, match="items must be a list for each of"):
        data().beside([["i1"]])
    with pytest.raises(ValueError, match="of the item itself takes no values"):
        model(tasks=(Task("chosen", "item", (1,)),))
    with pytest.raises(ValueError, match="min_full must be 0 with a task of the item itself"):
        model(tasks=tasks, **MASKS, min_full=3)


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
