"""The funnel keeps what its stages promise, and says what each of them loses."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pylum import Funnel, KnowledgeCache, Ranker, query
from pylum.funnel import (
    Candidates,
    ExactSearch,
    FaissSearch,
    InterestRecall,
    InterestScores,
    PopularityRecall,
    RankerScores,
    Rerank,
)
from pylum.rank import Feature, Schema
from tests.serving.worlds import SCENES, history, model

ITEMS = [f"i{n}" for n in range(40)]
BUDGETS = {"recall": 20, "prerank": 12, "rank": 8}


def unit(*shape, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=-1)


VECTORS = unit(40, 6, seed=1)


def interests(users):
    """Three of each user, by the number in the id; u9 has none."""
    vectors = torch.cat([torch.zeros(0, 6), *(unit(3, 6, seed=10 + int(u[1:])) for u in users)])
    vectors = vectors.unflatten(0, (len(users), 3))
    vectors[[i for i, user in enumerate(users) if user == "u9"]] = torch.nan
    return vectors


class Taste:
    """A rank stage: a fixed score of each pair of user and item."""

    def __init__(self, seed=5):
        self.table = np.random.default_rng(seed).random((10, 40)).astype(np.float32)

    def __call__(self, candidates):
        people = np.array([int(user[1:]) for user in candidates.users], np.int64)
        return self.table[people[candidates.owners], candidates.rows]


def funnel(budgets=BUDGETS, rerank=None, recall=None, exclude=None, **stages):
    return Funnel(
        recall or [InterestRecall(interests, ExactSearch(VECTORS)), PopularityRecall(range(40))],
        stages.get("prerank", InterestScores(interests, VECTORS)),
        stages.get("rank", Taste()),
        rerank or Rerank(),
        budgets,
        items=ITEMS,
        exclude=exclude,
    )


def best_of(scores, k):
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def test_interest_recall_is_the_best_of_any_interest():
    recall = InterestRecall(interests, ExactSearch(VECTORS))
    banned = [np.array([3, 4]), np.array([], np.int64), np.array([1])]
    found = recall(["u1", "u2", "u9"], 7, banned)
    for b, user in enumerate(["u1", "u2"]):
        near = (interests([user])[0] @ VECTORS.T).amax(0).tolist()
        wanted = best_of([-9 if i in banned[b] else x for i, x in enumerate(near)], 7)
        assert found.lists()[b].tolist() == wanted
    assert found.lists()[2].tolist() == []


def test_sources_take_turns():
    first = PopularityRecall(np.arange(40))
    second = PopularityRecall(-np.arange(40) + 40)
    made = funnel(recall=[first, second], budgets={"recall": 6, "prerank": 6, "rank": 6})
    _, stages, _ = made._run(["u0"], 1)
    assert stages["recall"][0].tolist() == [39, 0, 38, 1, 37, 2]


def test_without_loss_the_slate_is_the_full_ranking():
    made = funnel(budgets={"recall": 40, "prerank": 40, "rank": 40}, exclude=lambda users: [
        np.array([int(user[1:]), 20]) for user in users
    ])  # fmt: skip
    slate = made.recommend(["u3", "u9"], k=5)
    for b, person in enumerate([3, 9]):
        scores = Taste().table[person].copy()
        scores[[person, 20]] = -1
        wanted = best_of(scores.tolist(), 5)
        assert slate.items[b].tolist() == [ITEMS[i] for i in wanted]
        assert slate.scores[b].tolist() == scores[wanted].tolist()
    audit = made.audit(["u3", "u9"], k=5)
    assert audit.recall == dict.fromkeys(("recall", "prerank", "rank", "rerank"), 1.0)


def test_each_stage_loses_what_the_audit_says():
    made = funnel(rerank=Rerank(blocked=[7]))
    users = [f"u{i}" for i in range(9)]
    audit = made.audit(users, k=6)
    _, stages, _ = made._run(users, 6)
    for stage, passed in stages.items():
        shares = []
        for b in range(len(users)):
            full = best_of(Taste().table[b].tolist(), 6)
            shares.append(len(set(full) & set(passed[b].tolist())) / 6)
        assert audit.recall[stage] == pytest.approx(np.mean(shares))
    order = [audit.recall[s] for s in ("recall", "prerank", "rank", "rerank")]
    assert order == sorted(order, reverse=True) and order[0] > order[1]
    assert all(seconds > 0 for seconds in audit.seconds.values())
    lines = str(audit).splitlines()
    assert len(lines) == 6 and "recall@6" in lines[0]


def test_sizes_respect_budgets_and_short_slates_say_so():
    made = funnel(recall=PopularityRecall([0] * 37 + [1, 2, 3]))
    slate = made.recommend(["u0"], k=5)
    assert slate.items[0].tolist()[3:] == [None, None]
    assert np.isneginf(slate.scores[0, 3:]).all()
    assert {stage: sizes.tolist() for stage, sizes in slate.sizes.items()} == {
        "recall": [3], "prerank": [3], "rank": [3], "rerank": [3],
    }  # fmt: skip
    full = funnel().recommend(["u0", "u9"], k=5)
    assert full.sizes["recall"].tolist() == [20, 20]
    assert full.sizes["rank"].tolist() == [8, 8]
    assert "ms / user" in str(full)


def test_nobody_is_recommended_to():
    slate = funnel().recommend([], k=3)
    assert slate.items.shape == (0, 3)
    assert funnel().audit([], k=3).users == 0
    str(slate)


def test_one_users_company_moves_nothing():
    made = funnel(rerank=Rerank(diversity=0.3, vectors=VECTORS))
    together = made.recommend(["u1", "u9", "u4"], k=6)
    for b, user in enumerate(["u1", "u9", "u4"]):
        alone = made.recommend([user], k=6)
        assert alone.items[0].tolist() == together.items[b].tolist()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rerank_against_a_loop(data):
    count = data.draw(st.integers(0, 12))
    seed = data.draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    rows = rng.permutation(40)[:count]
    scores = rng.integers(0, 5, count).astype(np.float32)
    brands = (np.arange(40) % 4).tolist()
    weight = data.draw(st.sampled_from([0.0, 0.4, 1.0]))
    most = data.draw(st.sampled_from([{}, {"brand": 1}, {"brand": 2}]))
    blocked = rng.permutation(40)[:5].tolist()
    lead = rng.permutation(40)[:3].tolist()
    k = data.draw(st.integers(1, 8))
    rerank = Rerank(
        diversity=weight, vectors=VECTORS, groups={"brand": brands}, most=most,
        blocked=blocked, first=lead,
    )  # fmt: skip
    made = rerank(Candidates.of(["u"], [rows]), scores, k)[0]
    slate = rows[made].tolist()
    # The same by the definition, one place at a time.
    span = np.ptp(scores) if count else 0
    relevance = {
        int(r): (float(s) - float(scores.min())) / float(span) if span else 0.0
        for r, s in zip(rows, scores, strict=True)
    }
    score = dict(zip(rows.tolist(), scores.tolist(), strict=True))
    wanted: list[int] = []
    while len(wanted) < k:
        shown = [brands[r] for r in wanted]
        open_ = [
            r for r in relevance
            if r not in wanted and r not in blocked
            and ("brand" not in most or shown.count(brands[r]) < most["brand"])
        ]  # fmt: skip
        if not open_:
            break
        leaders = [r for r in lead if r in open_]
        if leaders:
            wanted.append(leaders[0])
            continue

        def value(r, slate=tuple(wanted)):
            near = max((float(VECTORS[r].double() @ VECTORS[s].double()) for s in slate), default=0)
            return (1 - weight) * relevance[r] - weight * near

        wanted.append(min(open_, key=lambda r: (-round(value(r), 9), -score[r], r)))
    assert slate == wanted


def test_faiss_finds_what_exact_search_finds():
    pytest.importorskip("faiss")
    queries = unit(9, 6, seed=3)
    banned = [np.arange(q) for q in range(9)]
    rows, scores = ExactSearch(VECTORS)(queries, 10, banned)
    others, theirs = FaissSearch(VECTORS, "Flat")(queries, 10, banned)
    assert np.array_equal(rows, others)
    np.testing.assert_allclose(scores, theirs, atol=1e-6)
    few, values = FaissSearch(VECTORS, "HNSW16")(queries[:1], 5, [np.arange(38)])
    assert -1 in few[0].tolist() and set(few[0].tolist()) <= {38, 39, -1}
    assert np.isneginf(values[0, 2:]).all()


def test_a_user_model_a_cache_and_a_ranker():
    lum = model()
    histories = {f"u{i}": history(n, seed=i) for i, n in enumerate([25, 3, 8])}
    offline = query(lum, histories, {"scene": SCENES})
    cache = KnowledgeCache(offline, clock=lambda: 1_800_000_000)
    names = offline.items
    vectors = offline.item_vectors.float()
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "user": rng.choice(list(histories), 400),
            "item": rng.choice(names, 400),
            "time": 1_800_000_000,
            "label": rng.random(400) < 0.4,
        }
    )
    schema = Schema((Feature("user"), Feature("item")))
    ranker = Ranker("dlrm", schema, offline, epochs=1).fit(rows)
    made = Funnel(
        InterestRecall(cache, ExactSearch(vectors)),
        InterestScores(offline, vectors),
        RankerScores(
            ranker,
            lambda users, items: pd.DataFrame(
                {"user": users, "item": items, "time": 1_800_000_000}
            ),
            names,
        ),
        Rerank(diversity=0.2, vectors=vectors),
        {"recall": 30, "prerank": 20, "rank": 10},
        items=names,
        exclude=lambda users: [
            np.array([names.index(e["item"]) for e in histories[user]]) for user in users
        ],
    )
    slate = made.recommend(["u0", "u2"], k=4)
    for b, user in enumerate(["u0", "u2"]):
        seen = {e["item"] for e in histories[user]}
        assert len({*slate.items[b]} - seen) == 4
    assert cache.stats["offline"] == 2
    asked = pd.DataFrame({"user": ["u0"] * 4, "item": slate.items[0], "time": 1_800_000_000})
    np.testing.assert_allclose(ranker.predict(asked), slate.scores[0], atol=1e-6)
    assert made.audit(["u0", "u1"], k=4).recall["recall"] > 0
    # With the cache the ranker reads what is live: of "u1", what offline knows of "u0".
    told = replace(offline, vectors=offline.vectors[[0]], users=["u1"], times=offline.times[:1])
    cache.put(replace(told, times=offline.times.max()[None] + 60))
    rows_of = made.rank.rows
    both = [RankerScores(ranker, rows_of, names, known) for known in (None, cache)]
    pairs = Candidates.of(["u0", "u1"], [np.arange(9), np.arange(9)])
    own, live = (scores(pairs) for scores in both)
    assert np.array_equal(own[:9], live[:9]) and not np.allclose(own[9:], live[9:])
    assert cache.stats["live"] == 1


@pytest.mark.parametrize(
    "change, message",
    [
        pytest.param({"budgets": {"recall": 5, "rank": 5}}, "budgets must name", id="missing"),
        pytest.param({"budgets": {**BUDGETS, "rank": 13}}, "not grow", id="growing"),
        pytest.param({"budgets": {**BUDGETS, "rank": 0}}, "at least 1", id="zero"),
    ],
)
def test_budgets_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        funnel(**change)


@pytest.mark.parametrize(
    "stages, message",
    [
        pytest.param({"rank": lambda c: np.zeros(3)}, r"rank must give \[\d+\] scores", id="short"),
        pytest.param({"prerank": lambda c: np.full(len(c), np.nan)}, "prerank gave NaN", id="nan"),
        pytest.param(
            {"recall": lambda users, budget, e: Candidates.of(users, [np.array([1, 1])])},
            "an item twice",
            id="twice",
        ),
        pytest.param(
            {"recall": lambda users, budget, e: Candidates.of(users, [np.array([40])])},
            r"rows in \[0, 40\)",
            id="row",
        ),
        pytest.param(
            {
                "recall": lambda users, budget, e: Candidates.of(users, [np.array([2])]),
                "exclude": lambda users: [np.array([2])],
            },
            "that is excluded",
            id="excluded",
        ),
    ],
)
def test_a_stage_that_breaks_its_promise_is_named(stages, message):
    with pytest.raises(ValueError, match=message):
        funnel(**stages).recommend(["u1"], k=2)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"k must be in \[1, 8\]"):
        funnel().recommend(["u1"], k=9)
    with pytest.raises(ValueError, match="diversity must be in"):
        Rerank(diversity=2)
    with pytest.raises(ValueError, match="vectors must be given"):
        Rerank(diversity=0.5)
    with pytest.raises(ValueError, match="most must name groups"):
        Rerank(most={"brand": 2})
    with pytest.raises(ValueError, match="at least one source"):
        Funnel([], Taste(), Taste(), Rerank(), BUDGETS, items=ITEMS)
    with pytest.raises(ValueError, match="interests must be"):
        InterestRecall(lambda users: torch.zeros(1, 3), ExactSearch(VECTORS))(["u1"], 3, [[]])
