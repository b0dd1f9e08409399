"""Metrics against scikit-learn and against their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

import pylum
from pylum.evaluate import metrics
from pylum.ragged import Ragged, lengths_to_offsets


def rounded_scores(rng, *shape):
    """Scores with many ties."""
    return np.round(rng.normal(size=shape), 1)


@pytest.mark.parametrize("rows", [2, 17, 1000])
@pytest.mark.parametrize("weighted", [False, True])
def test_auc_equals_sklearn(rows, weighted):
    rng = np.random.default_rng(rows)
    labels = rng.integers(0, 2, rows)
    labels[:2] = 0, 1
    scores = rounded_scores(rng, rows)
    weights = rng.integers(0, 3, rows).astype(float) + 0.5 if weighted else None
    expected = sk.roc_auc_score(labels, scores, sample_weight=weights)
    assert metrics.auc(labels, scores, weights) == pytest.approx(expected, abs=1e-12)


def test_auc_of_one_class_is_nan():
    assert np.isnan(metrics.auc(np.ones(3), np.arange(3.0)))
    assert np.isnan(metrics.auc(np.zeros(0), np.zeros(0)))
    assert np.isnan(metrics.gauc(np.ones(3), np.arange(3.0), np.arange(3)))
    with pytest.raises(ValueError, match="NaN"):
        metrics.auc(np.array([0, 1]), np.array([np.nan, 1.0]))


@pytest.mark.parametrize("weighted", [False, True])
def test_auc_of_constant_scores_is_that_of_sklearn(weighted):
    labels, scores = np.array([0, 1, 1, 0, 1]), np.full(5, 0.3)
    weights = np.array([1.0, 0.0, 2.0, 0.5, 3.0]) if weighted else None
    expected = sk.roc_auc_score(labels, scores, sample_weight=weights)
    assert metrics.auc(labels, scores, weights) == expected == 0.5
    # Rows of weight zero are not there.
    if weights is not None:
        scores = np.array([0.1, 0.9, 0.4, 0.4, 0.2])
        kept = weights > 0
        assert metrics.auc(labels, scores, weights) == pytest.approx(
            sk.roc_auc_score(labels[kept], scores[kept], sample_weight=weights[kept]), abs=1e-12
        )


@pytest.mark.parametrize("rate", [0.01, 0.5, 0.97])
def test_normalised_entropy_is_a_ratio_of_sklearns_log_losses(rate):
    rng = np.random.default_rng(3)
    labels = (rng.random(5000) < rate).astype(int)
    p = np.clip(rate + 0.2 * rng.normal(size=5000), 0.001, 0.999)
    constant = np.full(5000, labels.mean())
    expected = sk.log_loss(labels, p) / sk.log_loss(labels, constant)
    assert metrics.normalised_entropy(labels, p) == pytest.approx(expected, abs=1e-12)
    assert metrics.normalised_entropy(labels, constant) == pytest.approx(1, abs=1e-12)
    assert np.isnan(metrics.normalised_entropy(np.ones(4), np.full(4, 0.9)))
    # One class has a log loss, which scikit-learn gives where it is told both.
    assert metrics.log_loss(np.ones(4), np.full(4, 0.9)) == pytest.approx(
        sk.log_loss(np.ones(4), np.full(4, 0.9), labels=[0, 1]), abs=1e-12
    )


def test_gauc_equals_weighted_sklearn():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 500)
    labels, scores = rng.integers(0, 2, 500), rounded_scores(rng, 500)
    labels[groups < 5] = 1
    total = rows = 0.0
    for group in range(5, 40):
        mine = groups == group
        if len(set(labels[mine])) == 2:
            total += mine.sum() * sk.roc_auc_score(labels[mine], scores[mine])
            rows += mine.sum()
    assert metrics.gauc(labels, scores, groups) == pytest.approx(total / rows, abs=1e-12)
    assert np.isnan(metrics.group_auc(labels, scores, groups)[0][:5]).all()


def test_log_loss_equals_sklearn():
    rng = np.random.default_rng(0)
    labels, p = rng.integers(0, 2, 100), rng.uniform(size=100)
    assert metrics.log_loss(labels, p) == pytest.approx(sk.log_loss(labels, p), abs=1e-12)
    assert np.isfinite(metrics.log_loss(np.array([1, 0]), np.array([0.0, 1.0])))


def test_ranking_metrics_equal_sklearn():
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(50, 30)))
    targets = torch.from_numpy(rng.integers(0, 30, 50))
    ranks = metrics.ranks_of_scores(scores, targets).numpy()
    truth = np.zeros((50, 30))
    truth[np.arange(50), targets] = 1
    assert metrics.ndcg(ranks, 10).mean() == pytest.approx(
        sk.ndcg_score(truth, scores.numpy(), k=10), abs=1e-12
    )
    assert metrics.hit_rate(ranks, 10).mean() == pytest.approx(
        sk.top_k_accuracy_score(targets, scores.numpy(), k=10, labels=np.arange(30)), abs=1e-12
    )
    assert metrics.reciprocal_rank(ranks).mean() == pytest.approx(
        sk.label_ranking_average_precision_score(truth, scores.numpy()), abs=1e-12
    )


@pytest.mark.parametrize("k", [1, 5, 30])
def test_ranking_metrics_of_ties_equal_sklearn(k):
    """Equal scores go to the lower row: scikit-learn agrees where a trifle says so."""
    rng = np.random.default_rng(1)
    scores = torch.from_numpy(rounded_scores(rng, 60, 30))
    scores[:5] = 1.0
    targets = torch.from_numpy(rng.integers(0, 30, 60))
    ranks = metrics.ranks_of_scores(scores, targets).numpy()
    told = scores.numpy() - 1e-6 * np.arange(30)
    truth = np.zeros((60, 30))
    truth[np.arange(60), targets] = 1
    assert metrics.ndcg(ranks, k).mean() == pytest.approx(
        sk.ndcg_score(truth, told, k=k), abs=1e-12
    )
    assert metrics.reciprocal_rank(ranks).mean() == pytest.approx(
        sk.label_ranking_average_precision_score(truth, told), abs=1e-12
    )
    if k < 30:
        assert metrics.hit_rate(ranks, k).mean() == pytest.approx(
            sk.top_k_accuracy_score(targets, told, k=k, labels=np.arange(30)), abs=1e-12
        )
    assert ranks[:5].tolist() == targets[:5].tolist()


def test_recall_of_several_relevant_items():
    found = np.array([[3, 1, -1], [2, 5, 7], [0, 1, 2]])
    relevant = Ragged.from_lists([[1, 9], [5, 7, 2], []])
    assert metrics.recall(found, relevant, 3)[:2].tolist() == [0.5, 1.0]
    assert metrics.recall(found, relevant, 1)[:2].tolist() == [0.0, pytest.approx(1 / 3)]
    assert np.isnan(metrics.recall(found, relevant, 3)[2])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rank_is_the_place_in_topk(data):
    """With ties, exclusions and candidates, the rank is where topk puts the target."""
    count = data.draw(st.integers(0, 5))
    items = data.draw(st.integers(1, 20))
    seed = data.draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randint(-1, 2, (count, 3), generator=generator).float()
    table = torch.randint(-1, 2, (items, 3), generator=generator).float()
    targets = torch.randint(0, items, (count,), generator=generator)
    chosen = [torch.rand(items, generator=generator) < 0.4 for _ in range(2 * count)]
    for q in range(count):
        chosen[q][targets[q]] = False
        chosen[count + q][targets[q]] = True
    exclude = _ragged(chosen[:count])
    candidates = _ragged(chosen[count:])
    for limits in ({}, {"exclude": exclude}, {"candidates": candidates, "exclude": exclude}):
        ranks = metrics.ranks(queries, table, targets, **limits)
        _, rows = pylum.reference.topk(queries, table, items, **limits)
        for q in range(count):
            assert rows[q].tolist().index(int(targets[q])) == int(ranks[q])


def _ragged(chosen):
    rows = [mask.nonzero().squeeze(1) for mask in chosen]
    values = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)
    return Ragged(values, lengths_to_offsets(torch.tensor([len(r) for r in rows])))


def test_chunks_do_not_change_ranks(monkeypatch):
    queries, table = torch.randn(23, 4), torch.randn(50, 4)
    targets = torch.arange(23)
    exclude = _ragged([torch.rand(50) < 0.2 for _ in range(23)])
    whole = metrics.ranks(queries, table, targets, exclude=exclude)
    monkeypatch.setattr(metrics, "CHUNK_SCORES", 150)
    assert torch.equal(metrics.ranks(queries, table, targets, exclude=exclude), whole)


def test_constant_scores_are_no_hits():
    """A model that scores all alike gets the expected rate of its row order, not a perfect one."""
    ranks = metrics.ranks(torch.zeros(10, 2), torch.ones(10, 2), torch.arange(10))
    assert ranks.tolist() == list(range(10))


def test_nan_target_ranks_last():
    scores = torch.tensor([[0.0, float("nan"), 1.0]])
    assert metrics.ranks_of_scores(scores, torch.tensor([1])).tolist() == [2]


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"targets must be \[2\], got \[3\]"):
        metrics.ranks(torch.zeros(2, 2), torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"rows in \[0, 4\)"):
        metrics.ranks(torch.zeros(1, 2), torch.zeros(4, 2), torch.tensor([4]))
    with pytest.raises(ValueError, match="exclude must have 1 rows"):
        metrics.ranks(torch.zeros(1, 2), torch.zeros(4, 2), torch.tensor([1]), exclude=_ragged([]))
